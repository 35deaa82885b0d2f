"""Run something in a process that is forked from this one, as preloading servers do."""

from __future__ import annotations

import json
import os
import select
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn


class Forked:
    """A forked child that runs ``work`` and reports its result, which must be JSON."""

    def __init__(self, work: Callable[[], Any]) -> None:
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reader)
            _work(work, writer)
        os.close(writer)
        self._reader = reader

    def result(self, within_s: float = 20.0) -> Any:
        """What the child returned; fails with its traceback, or when it takes too long."""
        readable, _, _ = select.select([self._reader], [], [], within_s)
        with os.fdopen(self._reader, "rb") as pipe:
            if not readable:
                os.kill(self.pid, 9)
            said = pipe.read()
        os.waitpid(self.pid, 0)
        assert readable, f"the child took longer than {within_s} s"
        kind, value = json.loads(said)
        assert kind == "result", value
        return value


def _work(work: Callable[[], Any], writer: int) -> NoReturn:
    try:
        answer = ["result", work()]
    except BaseException:  # noqa: BLE001 - reported by the parent
        answer = ["error", traceback.format_exc()]
    os.write(writer, json.dumps(answer).encode())
    sys.stderr.flush()
    os._exit(0)


def in_child(work: Callable[[], Any], within_s: float = 20.0) -> Any:
    """The result of ``work`` in a forked child."""
    return Forked(work).result(within_s)
