"""One line per event, written by the process it happens in, with one append per record.

Thespian replaces the logging root of every actor by one that sends each record as a message to
a logger process: slow, and a way to lose the last words of a crash. The node uses its own root
handler instead; ``restore`` puts it back after Thespian has taken it away.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

LOGGER: Final = "supervision"
_FORMAT: Final = "%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s"


class AppendHandler(logging.Handler):
    """Writes each record with one ``write`` to a descriptor, so that lines never interleave."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.fd = fd

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "root" and record.levelno < logging.WARNING:
            return  # Thespian's greetings
        try:
            os.write(self.fd, (self.format(record) + "\n").encode("utf-8", "replace"))
        except OSError:
            self.handleError(record)


class _Setup:
    """The logging state that every process of this node must have."""

    handler: AppendHandler | None = None
    root: logging.Logger | None = None
    manager: logging.Manager | None = None


def open_log(log_file: Path | None) -> None:
    """Log to ``log_file`` (appended, 0600), or to standard error; in the launcher, before forks."""
    fd = 2
    if log_file is not None:
        fd = os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    handler = AppendHandler(fd)
    handler.setFormatter(logging.Formatter(_FORMAT))
    _Setup.handler = handler
    _Setup.root = logging.getLogger()
    _Setup.manager = logging.Logger.manager
    _Setup.root.handlers[:] = [handler]
    _Setup.root.setLevel(logging.INFO)


def close_log() -> None:
    """Undo ``open_log`` in the launcher."""
    handler, root = _Setup.handler, _Setup.root
    if handler is None or root is None:
        return
    root.removeHandler(handler)
    if handler.fd != 2:
        os.close(handler.fd)
    _Setup.handler = None


def restore() -> None:
    """Take the root logger back from Thespian, in a process that was just forked."""
    if _Setup.root is not None and _Setup.manager is not None:
        logging.root = _Setup.root  # type: ignore[assignment]  # stubs say RootLogger, it is one
        logging.Logger.root = _Setup.root  # type: ignore[assignment]
        logging.Logger.manager = _Setup.manager


def log_fd() -> int:
    """The descriptor that records go to."""
    return _Setup.handler.fd if _Setup.handler is not None else 2
