"""Why a process ended: a closed type, so that restart policy is a table and not a guess."""

from __future__ import annotations

import enum
import signal
from typing import Final

from supervision.frozen import frozen


class ExitKind(enum.Enum):
    """The four ways to end."""

    NORMAL = "normal"
    """It finished its work and reported it."""
    SHUTDOWN = "shutdown"
    """Its supervisor, or an operator, requested it."""
    ABNORMAL = "abnormal"
    """It failed: an exception, a failed init, an exit without a reason, intensity exceeded."""
    KILLED = "killed"
    """A signal ended it: SIGKILL, a segmentation fault, the OOM killer."""


FAILURES: Final = frozenset({ExitKind.ABNORMAL, ExitKind.KILLED})
"""The kinds that get a crash report, and after which a transient child restarts."""


@frozen
class ExitReason:
    """One exit: its kind and a sentence for people. Never parse the text."""

    kind: ExitKind
    text: str = ""
    signal: int | None = None
    """Which signal ended the process, where that is all that is known of its end."""

    def __str__(self) -> str:
        return f"{self.kind.value}: {self.text}" if self.text else self.kind.value


NORMAL = ExitReason(ExitKind.NORMAL)
SHUTDOWN = ExitReason(ExitKind.SHUTDOWN)


def reason_of_exit_code(code: int | None) -> ExitReason:
    """The reason of a process that left no notice.

    ``code`` is as in ``multiprocessing``: negative is minus the signal number. A status of 0
    without a notice is abnormal too: some library called exit() under the actor.
    """
    if code is None:
        return ExitReason(ExitKind.ABNORMAL, "vanished; its exit status could not be read")
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return ExitReason(ExitKind.KILLED, f"killed by {name}", -code)
    return ExitReason(ExitKind.ABNORMAL, f"exited with status {code} without a reason")
