"""What a worker may do with its process; the shell provides it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NoReturn, Protocol

from supervision.address import Address
from supervision.pulse import Page


class Mailbox(Protocol):
    """The services of a process for its worker."""

    address: Address
    pulse: Page
    """Where this process shows that it lives."""

    def send(
        self,
        target: Address | int,
        message: object,
        done: Callable[[bool], None] | None = None,
        *,
        prompt: bool = False,
    ) -> None:
        """Send to an address, or to a child by pid; ``done`` is called with whether it arrived."""

    def backlog(self, target: Address | int) -> int:
        """Messages for this target that it has not accepted yet."""

    def after(self, seconds: float, payload: object) -> None:
        """Hand ``payload`` to the worker after so many seconds; equal times keep their order."""

    def watch(self, fds: Iterable[int]) -> None:
        """Call the worker's ``_readable`` whenever one of exactly these descriptors is readable."""

    def fork_child(self, page: Page, actor: str) -> int:
        """Fork an actor process, which writes this page and waits for Init; its pid.

        Its Thespian actor class is named after ``actor``, the class path of its worker.
        """

    def exit(self, code: int) -> NoReturn:
        """Let what was sent go out, within a second, and end the process."""
