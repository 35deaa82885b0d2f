"""A request that cannot run, with the reason that its caller receives."""

from __future__ import annotations

from actors.messages.completion import FailReason


class RequestRefused(Exception):
    """The request cannot run, because of what it asks for or the state of the model."""

    def __init__(self, reason: FailReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
