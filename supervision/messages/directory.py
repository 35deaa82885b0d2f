"""Entries of the directory, and how they travel."""

from __future__ import annotations

from supervision.address import Address
from supervision.exits import ExitReason
from supervision.frozen import frozen
from supervision.spec import ChildKind


@frozen
class Entry:
    """One child of the tree, in the directory."""

    id: str
    kind: ChildKind
    parent: str
    actor: str
    address: Address | None
    """None until the child is up."""
    pid: int | None
    incarnation: int
    """How many times this id has been started."""
    state: str
    """``starting | up | stopping | restarting | down``."""
    restarts: int
    started_at: float
    """Unix time of the last start; 0.0 if it never started."""
    last_exit: ExitReason | None = None

    @property
    def is_up(self) -> bool:
        """Ready to take messages."""
        return self.state == "up" and self.address is not None


@frozen
class WhereIs:
    """Any process → supervisor: locate this id. Answered by Located or NotLocated.

    With ``until_up_s`` a supervisor answers when the child is up, or after so many seconds.
    """

    ref: str
    id: str
    until_up_s: float = 0.0


@frozen
class Located:
    """Supervisor → asker: the entry, which may be down."""

    ref: str
    entry: Entry


@frozen
class NotLocated:
    """Supervisor → asker: no child of the tree has this id."""

    ref: str
    id: str


@frozen
class ListDirectory:
    """Any process → supervisor: list every entry. Answered by DirectoryListing."""

    ref: str


@frozen
class DirectoryListing:
    """Supervisor → asker: the whole directory."""

    ref: str
    entries: tuple[Entry, ...]


@frozen
class SubtreeChanged:
    """Supervisor → its supervisor: these entries below it changed; these left the tree.

    ``lost`` names supervisors that died: all entries below them are gone with them.
    """

    id: str
    incarnation: int
    changed: tuple[Entry, ...]
    removed: tuple[Entry, ...] = ()
    lost: tuple[str, ...] = ()


@frozen
class DirectoryChanged:
    """Supervisor → child: these entries changed anywhere in the tree; these left it."""

    changed: tuple[Entry, ...]
    removed: tuple[Entry, ...] = ()
