"""One record per event, written by the process it happens in, with one append per record.

Thespian replaces the logging root of every actor by one that sends each record as a message to
a logger process: slow, and it may lose the last lines before a crash. The node uses its own root
handler instead; ``restore`` puts it back after Thespian has taken it away.

A record is text, or one JSON object on one line. Life-cycle events carry fields (``event``); in
JSON they are keys beside the fixed ones:

    ts           UTC, ISO 8601 with milliseconds
    level        INFO, WARNING, ERROR
    pid          the process that wrote the record
    logger       supervision.<id of the actor>
    event        up down restart give_up kill crash_report crashed init_failed stopped
                 node_up node_stopping node_stopped node_down node_gave_up; http_request, a request
                 of the gateway, with keys of its own; other records: log
    message      the sentence that the text format shows
    child        whom it is about; with incarnation, and child_pid where a process is meant
    reason_kind  normal shutdown abnormal killed; with reason, a sentence for people
    action       after a death, what the supervisor does: restart give_up stopping none

A crash report has uptime_s, turns, mailbox and last (message, age_s, took_s: null for the one it
died in) as well, and stack where a fault left one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from pathlib import Path
from typing import Final, Literal

from supervision.exits import ExitReason

LogFormat = Literal["text", "json"]
LOG_FORMATS: Final[tuple[LogFormat, ...]] = ("text", "json")
LOGGER: Final = "supervision"
_FORMAT: Final = "%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s"
_FAULT_BYTES: Final = 64 * 1024


class JsonFormatter(logging.Formatter):
    """One object on one line; the module's docstring lists the keys."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.gmtime(record.created)
        entry: dict[str, object] = {
            "ts": f"{time.strftime('%Y-%m-%dT%H:%M:%S', moment)}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "pid": record.process,
            "logger": record.name,
            "event": getattr(record, "event", "log"),
            "message": record.getMessage(),
        }
        for key, value in getattr(record, "fields", {}).items():
            if isinstance(value, ExitReason):
                entry["reason_kind"], entry["reason"] = value.kind.value, value.text
            elif value is not None:
                entry.setdefault(key, value)
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class AppendHandler(logging.Handler):
    """Writes each record with one ``write`` to a descriptor, so that lines never interleave."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.fd = fd

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "root" and record.levelno < logging.WARNING:
            return  # Thespian's start messages
        try:
            os.write(self.fd, (self.format(record) + "\n").encode("utf-8", "replace"))
        except OSError:
            self.handleError(record)


class _Setup:
    """The logging state that every process of this node must have."""

    handler: AppendHandler | None = None
    root: logging.Logger | None = None
    manager: logging.Manager | None = None
    faults_fd = -1
    """JSON only: where faults write their Python stack, for the supervisor's crash report."""


def event(logger: logging.Logger, level: int, what: str, text: str, /, **fields: object) -> None:
    """Write a life-cycle event: a sentence and fields.

    An ``ExitReason`` among the fields, whatever its name, becomes ``reason_kind`` and ``reason``;
    a field that is None is left out.
    """
    logger.log(level, "%s", text, extra={"event": what, "fields": fields})


def open_log(log_file: Path | None, log_format: LogFormat = "text") -> None:
    """Log to ``log_file`` (appended, 0600), or to standard error; in the launcher, before forks."""
    fd = 2
    if log_file is not None:
        fd = os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    handler = AppendHandler(fd)
    handler.setFormatter(JsonFormatter() if log_format == "json" else logging.Formatter(_FORMAT))
    _Setup.handler = handler
    _Setup.root = logging.getLogger()
    _Setup.manager = logging.Logger.manager
    _Setup.root.handlers[:] = [handler]
    _Setup.root.setLevel(logging.INFO)
    if log_format == "json":
        _Setup.faults_fd = _new_faults()


def close_log() -> None:
    """Undo ``open_log`` in the launcher."""
    handler, root = _Setup.handler, _Setup.root
    if handler is None or root is None:
        return
    root.removeHandler(handler)
    if handler.fd != 2:
        os.close(handler.fd)
    if _Setup.faults_fd >= 0:
        os.close(_Setup.faults_fd)
        _Setup.faults_fd = -1
    _Setup.handler = None


def restore() -> None:
    """Take the root logger back from Thespian, in a process that was just forked."""
    if _Setup.root is not None and _Setup.manager is not None:
        logging.root = _Setup.root  # type: ignore[assignment]  # the stubs expect RootLogger, it is one
        logging.Logger.root = _Setup.root  # type: ignore[assignment]
        logging.Logger.manager = _Setup.manager


# ── faults ───────────────────────────────────────────────────────────────────


def log_fd() -> int:
    """Where a fault, such as a segmentation fault, leaves its Python stack.

    The log itself where that is text; else memory that the supervisor reads for its report.
    """
    if _Setup.faults_fd >= 0:
        return _Setup.faults_fd
    return _Setup.handler.fd if _Setup.handler is not None else 2


def collect_faults() -> None:
    """In a supervisor: it reports the faults of the children that it will fork."""
    if _Setup.faults_fd >= 0:
        _Setup.faults_fd = _new_faults()  # the old one is where this process leaves its own


def take_faults() -> str | None:
    """What faults of children have left since the last call; None: nothing."""
    fd = _Setup.faults_fd
    if fd < 0:
        return None
    stack = b""
    with contextlib.suppress(OSError):
        stack = os.pread(fd, _FAULT_BYTES, 0)
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, os.SEEK_SET)
    return stack.decode("utf-8", "replace").rstrip() or None


def _new_faults() -> int:
    return os.memfd_create("faults", os.MFD_CLOEXEC)
