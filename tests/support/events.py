"""A reader of ``GET /llama/v1/events``, in a thread of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from tests.support.gateways import TIMEOUT_S, Gateway


class Reader:
    """What one stream of events has shown so far."""

    def __init__(self, gateway: Gateway, headers: Mapping[str, str]) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=TIMEOUT_S)
        self.connection.request("GET", "/llama/v1/events", headers=dict(headers))
        self.answer = self.connection.getresponse()
        self.events: list[tuple[str, Any]] = []
        self.requests: dict[str, dict[str, Any]] = {}
        self.last_id = ""
        self.is_over = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        name = ""
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError, AttributeError):
            while line := self.answer.readline().decode():
                field, _, text = line.rstrip("\n").partition(": ")
                if field == "event":
                    name = text
                elif field == "id":
                    self.last_id = text
                elif field == "data":
                    self._note(name, json.loads(text))
        self.is_over = True

    def _note(self, name: str, data: Any) -> None:
        if name == "requests":
            known = {} if data["all"] else dict(self.requests)
            known |= {one["id"]: one for one in data["requests"]}
            self.requests = {key: one for key, one in known.items() if key not in data["gone"]}
        self.events.append((name, data))

    def named(self, name: str) -> list[Any]:
        return [data for known, data in self.events if known == name]

    @property
    def snapshot(self) -> Any:
        found = self.named("snapshot")
        return found[-1] if found else None

    def process(self, actor: str) -> Any:
        """What the last snapshot shows of a process; None: nothing."""
        left = [self.snapshot["tree"]] if self.snapshot else []
        while left:
            one = left.pop()
            if one["id"] == actor:
                return one
            left += one["children"]
        return None

    def close(self) -> None:
        sock = self.connection.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(2)
        self._thread.join(TIMEOUT_S)
        self.connection.close()


@contextlib.contextmanager
def reading(gateway: Gateway, **headers: str) -> Iterator[Reader]:
    """A stream of events; ``last_event_id`` and so on are its headers."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    reader = Reader(gateway, {**gateway.headers, **named})
    try:
        yield reader
    finally:
        reader.close()
