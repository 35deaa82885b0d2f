"""What ``cache_meta`` holds about one file tier: its health, and the copies under way to it."""

from __future__ import annotations

from dataclasses import dataclass, field

from actors import messages as m

WRITES_IN_FLIGHT = 32  # rows a tier: two batches of the writer


@dataclass(slots=True)
class TierHealth:
    """Whether a tier takes rows, and if not, why."""

    is_open: bool = True
    is_there: bool = True
    """Its directory can be listed; rows in it may be read though it takes none."""
    trouble: str = ""
    """Why it is closed; of use while it is."""
    is_warned: bool = False
    """The log has a line about this trouble."""
    outages: int = 0

    def close(self, trouble: str) -> bool:
        """Take no rows because of this; whether it took some until now."""
        self.trouble = trouble
        was_open, self.is_open = self.is_open, False
        self.outages += was_open
        return was_open

    def open(self) -> None:
        self.is_open, self.trouble = True, ""


@dataclass(slots=True)
class TierWrites:
    """Copies that are being made to one tier."""

    sizes: dict[bytes, int] = field(default_factory=dict)
    """Of the rows that are reserved there, in bytes by key."""
    unsent: list[m.CopyRow] = field(default_factory=list)
    """Orders that wait until the files are gone that they displace."""
    moved_at: float = 0.0
    """When one was last finished, or begun after none was under way."""
    copied: int = 0
    failed: int = 0

    def begin(self, order: m.CopyRow) -> None:
        self.sizes[order.key] = order.row_bytes
        self.unsent.append(order)

    def end(self, key: bytes, now: float, *, is_copied: bool) -> None:
        self.sizes.pop(key, None)
        self.moved_at = now
        self.copied += is_copied
        self.failed += not is_copied

    def room(self, most_bytes: int, row_bytes: int) -> int:
        """How many more rows may be under way, of about ``row_bytes`` each; one at least."""
        by_bytes = (most_bytes - sum(self.sizes.values())) // row_bytes
        at_least = 0 if self.sizes else 1
        return max(at_least, min(WRITES_IN_FLIGHT - len(self.sizes), by_bytes))

    def take_unsent(self) -> list[m.CopyRow]:
        """The orders that wait, which do not wait here any more."""
        taken, self.unsent = self.unsent, []
        return taken


@dataclass(slots=True)
class FileTierState:
    """One file tier."""

    name: str
    health: TierHealth = field(default_factory=TierHealth)
    writes: TierWrites = field(default_factory=TierWrites)
    scanned_by: str | None = None
    """The process of the tier that has reported all its rows."""
    drops: set[int] = field(default_factory=set)
    """``DropFiles`` that it has not confirmed."""

    def status(self) -> dict[str, object]:
        """What is known of the tier beside its bytes."""
        health = self.health
        return {
            "state": "open" if health.is_open else "closed" if health.is_there else "gone",
            "trouble": None if health.is_open else health.trouble,
            "copied": self.writes.copied,
            "failed": self.writes.failed,
            "outages": health.outages,
            "being_written": len(self.writes.sizes),
            "being_removed": len(self.drops),
        }
