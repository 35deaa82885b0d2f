"""One llama-server built by ``bench.peers``, on a free loopback port, ended by its process id.

It has the same model, threads, batch, context, KV types, flash attention and unified KV as the
node, and otherwise its own defaults, which are its best ones for these tasks: prompts reuse the KV
of their slot, 8 GiB of host memory keep the KV of idle slots, and warm-up is on.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from bench import peers
from bench.peers import PeersFailed
from native.machine import physical_cores
from native.params import ModelParams
from supervision.process import die_with_parent
from tests.support.waiting import eventually

CONFIGURATION = "its defaults: prompt cache on, --cache-ram 8192, idle slots cached, warm-up"
_START_S, _STOP_S, _REQUEST_S = 120.0, 20.0, 600.0
_OK = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """The server's reply to one prompt, and how long the client waited for all of it."""

    milliseconds: float
    n_generated: int
    n_cached: int
    """Tokens of the prompt that it did not compute."""


def same_flags(params: ModelParams, *, context: bool = True) -> list[str]:
    """The options that programs of llama.cpp share, as our wrapper sets them."""
    return [
        *(("-c", str(params.n_ctx)) if context else ()),
        *("-b", str(params.n_batch), "-ub", str(params.n_ubatch)),
        *("-ctk", params.type_k, "-ctv", params.type_v),
        *("-fa", "on" if params.flash_attn else "off"),
        *("-t", str(n_threads(params)), "-ngl", str(params.n_gpu_layers)),
    ]


def n_threads(params: ModelParams) -> int:
    """Threads as our wrapper counts them."""
    return params.n_threads or physical_cores()


class LlamaServer:
    """Use as a context manager. Slots are numbered from 0; files of slots lie in ``folder``."""

    def __init__(
        self,
        model: Path | None,
        params: ModelParams,
        folder: Path,
        extra: Sequence[str] = (),
    ) -> None:
        """``extra``: more options. Without a model it is a router, if they have it be one."""
        program = peers.program(peers.SERVER)
        if program is None:
            raise PeersFailed(peers.missing(peers.SERVER))
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "server.log"
        self._port = _free_port()
        parent = os.getpid()
        chosen = () if model is None else ("-m", str(model))
        command = [str(program), *chosen, *same_flags(params), *extra]
        command += ["-tb", str(n_threads(params)), "-np", str(params.n_seq_max), "-kvu"]
        command += ["--host", "127.0.0.1", "--port", str(self._port), "--offline", "--no-ui"]
        command += ["--fit", "off", "--slot-save-path", str(folder)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=dict(peers.environment()),
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(parent),  # noqa: PLW1509 - before any thread
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def complete(self, tokens: Sequence[int], n_predict: int, slot: int = -1) -> Answer:
        """Greedy tokens after ``tokens``; slot -1 lets the server choose."""
        body = {
            "prompt": list(tokens),
            "n_predict": n_predict,
            "temperature": 0.0,
            "cache_prompt": True,
            "id_slot": slot,
            "ignore_eos": True,
        }
        began = time.perf_counter()
        reply = self._post("/completion", body)
        taken = 1e3 * (time.perf_counter() - began)
        return Answer(taken, int(reply["tokens_predicted"]), int(reply["timings"]["cache_n"]))

    def complete_as(self, model: str, tokens: Sequence[int], n_predict: int) -> None:
        """The same by one of a router's models."""
        body = {"model": model, "prompt": list(tokens), "n_predict": n_predict, "temperature": 0.0}
        self._post("/completion", body | {"cache_prompt": True, "ignore_eos": True})

    def is_sleeping(self) -> bool:
        """Whether it has given its memory back."""
        status, body = self._ask("GET", "/props", b"")
        return status == _OK and bool(json.loads(body).get("is_sleeping"))

    @property
    def port(self) -> int:
        """At which it listens on this machine."""
        return self._port

    def save_slot(self, slot: int, name: str) -> None:
        """Write a slot's state to a file. PeersFailed if the slot is empty."""
        reply = self._post(f"/slots/{slot}?action=save", {"filename": name})
        if int(reply["n_saved"]) < 1:
            raise PeersFailed(f"llama-server saved nothing: {reply}")

    def restore_slot(self, slot: int, name: str) -> float:
        """Read a slot's state from a file; milliseconds."""
        began = time.perf_counter()
        reply = self._post(f"/slots/{slot}?action=restore", {"filename": name})
        taken = 1e3 * (time.perf_counter() - began)
        if int(reply["n_restored"]) < 1:
            raise PeersFailed(f"llama-server restored nothing: {reply}")
        return taken

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_STOP_S)

    def kill(self) -> None:
        """End it by SIGKILL."""
        self._process.kill()
        self._process.wait(_STOP_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait_until_ready(self) -> None:
        def is_over() -> bool:
            if self._process.poll() is not None:
                return True
            with contextlib.suppress(OSError):
                return self._ask("GET", "/health", b"")[0] == _OK
            return False

        eventually(is_over, within_s=_START_S, every_s=0.05, what="llama-server is ready")
        if self._process.poll() is not None:
            tail = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
            raise PeersFailed("llama-server did not start:\n" + "\n".join(tail))

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        status, reply = self._ask("POST", path, json.dumps(body).encode())
        if status != _OK:
            raise PeersFailed(f"llama-server answered {status} to {path}: {reply[:300]!r}")
        found: dict[str, Any] = json.loads(reply)
        return found

    def _ask(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_REQUEST_S)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
