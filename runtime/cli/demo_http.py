"""The demo's last step: a stream over HTTP whose server process is killed in the middle of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import time
from dataclasses import dataclass
from typing import Any, Final

from runtime.errors import LlamaActorsError
from runtime.node import Node

WORKER: Final = "http:0"
TOKENS: Final = 300
KILL_AFTER: Final = 20
"""Pieces of text."""
_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class KilledStream:
    """What a client saw of it."""

    pause_ms: float
    """The longest time between two pieces."""
    trouble: str | None

    def to_dict(self) -> dict[str, Any]:
        return {"pause_ms": round(self.pause_ms, 1), "trouble": self.trouble}

    def __str__(self) -> str:
        return (
            f"A stream over HTTP went on {self.pause_ms:.0f} ms after kill -9 of its server "
            "process, on the same connection and with every character."
        )


def killed_stream(node: Node, model: str, port: int) -> KilledStream:
    """Read a stream, kill the process that writes it, and compare with the reply as it should be.

    With ``always`` the reply is determined to the bit, so that any difference shows.
    """
    prompt, options = "Once upon a time", {"max_tokens": TOKENS, "exact": "always"}
    wanted = node.complete(model, prompt, ignore_eos=True, **options).text  # type: ignore[arg-type]
    body = {"prompt": prompt, "temperature": 0, "ignore_eos": True, "stream": True, **options}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    try:
        text, pause_s = _read(node, connection, body)
    except (OSError, ValueError, http.client.HTTPException, LlamaActorsError) as error:
        return KilledStream(0.0, f"{type(error).__name__}: {error}")
    finally:
        connection.close()
    trouble = None if text == wanted else f"was {text[-80:]!r}, not {wanted[-80:]!r}"
    return KilledStream(1e3 * pause_s, trouble)


def _read(
    node: Node, connection: http.client.HTTPConnection, body: dict[str, Any]
) -> tuple[str, float]:
    connection.request("POST", "/v1/completions", json.dumps(body))
    answer = connection.getresponse()
    pieces: list[str] = []
    longest, last, is_whole = 0.0, time.perf_counter(), False
    for line in answer:
        if not line.startswith(b"data: "):
            continue
        if line == b"data: [DONE]\n":
            is_whole = True
            continue
        found = json.loads(line[len(b"data: ") :])
        pieces += [choice["text"] for choice in found.get("choices", ()) if choice["text"]]
        now = time.perf_counter()
        longest, last = max(longest, now - last if len(pieces) > 1 else 0.0), now
        if len(pieces) == KILL_AFTER:
            _kill(node)
            pieces.append("")  # so that it is done once
    if not is_whole:
        raise ValueError("the stream ended without its last frame")
    return "".join(pieces), longest


def _kill(node: Node) -> None:
    worker = node.tree().find(WORKER)
    if worker is not None and worker.pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)
