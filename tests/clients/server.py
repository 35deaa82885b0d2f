"""The server under test: the gateway, or another one that is named on the command line."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervision.ports import free_port
from tests.clients.processes import clean, kill_group
from tests.support.nodes import ROOT
from tests.support.waiting import eventually

_START_S = 120.0
_STOP_S = 30.0
_SETTINGS = """\
[gateway]
keepalive_s = 0.1

[gateway.sampling]
temperature = 0.0
"""
"""Comments in every stream that is silent for a moment: clients must skip them. Where a client
names no temperature, its run is the same each time: sampled JSON of a small model may not end."""


class ServerFailed(Exception):
    """The server did not start, or did not stop; the text has the end of its output."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server and the model that it serves."""

    url: str  # without a path: http://127.0.0.1:8080
    model: str
    log: Path

    def log_tail(self, n_characters: int = 2000) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-n_characters:]


def gateway_command(port: int, home: Path, model: str, *more: str) -> list[str]:
    """The node with its gateway and one model, so that any name of a model means that one.

    ``model`` is the embedded model's name, or a name and a file: ``NAME=PATH``. ``more`` are
    further options of ``serve``. Writes the node's settings into ``home``.
    """
    settings = home / "settings.toml"
    settings.write_text(_SETTINGS, encoding="utf-8")
    return [
        *(sys.executable, "-m", "runtime", "serve"),
        *("--config", str(settings)),
        *("--gateway", f"127.0.0.1:{port}"),
        *("--admin-port", str(free_port())),
        *("--model", model),
        *("--cache-dir", str(home / "cache")),
        *more,
    ]


@contextlib.contextmanager
def serve_gateway(
    home: Path, *more: str, model: str = "demo", command: str | None = None
) -> Iterator[Server]:
    """Start the server, wait until its model is loaded, and stop it at the end.

    ``model`` and ``more`` as in ``gateway_command``. ``command`` starts another server in its
    place; ``{port}`` in it is the port. Raises
    ``ServerFailed`` when it does not start, does not stop, or left a traceback in its output.
    """
    port = free_port()
    shutil.rmtree(home / "cache", ignore_errors=True)  # of a run before, when the folder is kept
    ours = gateway_command(port, home, model, *more)
    words = shlex.split(command.format(port=port)) if command else ours
    name = model.partition("=")[0]
    server = Server(f"http://127.0.0.1:{port}", name, home / "server.log")
    with server.log.open("wb") as log:
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env=clean(home),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_up(process, server)
        yield server
        _stop(process, server)
    finally:
        kill_group(process)


def _wait_until_up(process: subprocess.Popen[bytes], server: Server) -> None:
    def is_up() -> bool:
        if process.poll() is not None:
            raise ServerFailed(f"the server ended with {process.returncode}:\n{server.log_tail()}")
        return bool(_get(server, "/health") and (_get(server, "/v1/models") or {}).get("data"))

    try:
        eventually(is_up, within_s=_START_S, every_s=0.1, what="the server lists a model")
    except AssertionError as error:
        raise ServerFailed(f"{error}\n{server.log_tail()}") from error


def _get(server: Server, path: str) -> Any:
    """The JSON of an answer; None while it does not listen, or answers 503 as the model loads."""
    try:
        with urllib.request.urlopen(f"{server.url}{path}", timeout=5) as answer:
            return json.load(answer)
    except OSError:
        return None


def _stop(process: subprocess.Popen[bytes], server: Server) -> None:
    code = process.poll()
    if code is not None:
        raise ServerFailed(f"the server ended during the tests with {code}:\n{server.log_tail()}")
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired as error:
        raise ServerFailed(
            f"the server did not stop within {_STOP_S:.0f} s of SIGTERM:\n{server.log_tail()}"
        ) from error
    whole = server.log_tail(1 << 24)
    where = whole.find("Traceback (most recent call last)")
    if where >= 0:
        raise ServerFailed(f"the server printed a traceback:\n{whole[where : where + 2000]}")
