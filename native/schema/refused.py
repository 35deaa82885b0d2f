"""Why a JSON schema cannot be obeyed, and where."""

from __future__ import annotations


class Refused(Exception):
    """``place`` is a JSON pointer with ``#`` in front, ``why`` the end of a sentence about it."""

    def __init__(self, place: str, why: str) -> None:
        super().__init__(place, why)
        self.place = place
        self.why = why
