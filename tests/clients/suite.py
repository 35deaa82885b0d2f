"""What a suite is, and where it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.clients.install import Installed
from tests.clients.outcomes import Known, Outcome
from tests.clients.server import Server


@dataclass(frozen=True, slots=True)
class Place:
    """What a suite may use: the server, the programs, and a folder for this run alone."""

    server: Server
    installed: Installed
    folder: Path


@dataclass(frozen=True, slots=True)
class Suite:
    """Foreign tests of one kind, with what is known of them.

    ``floor``: at least so many pass. ``known``: these fail, see ``outcomes.Known``.
    """

    name: str
    about: str
    floor: int
    known: Sequence[Known]
    outcomes: Callable[[Place], list[Outcome]]
    needs_programs: bool = False
    needs_load: bool = False
