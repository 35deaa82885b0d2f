"""Model id and actor id → current address and incarnation, for callers outside the tree.

Owns: nothing that could be lost; the directory is pushed to it by the supervisors. Answers:
``WhereIs``, ``ListDirectory``, ``DescribeNode``. A process of its own so that callers never wait
behind a supervisor that is busy healing something.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors import messages as m
from supervision import Worker
from supervision.messages import DirectoryListing, ListDirectory, Located, NotLocated, WhereIs

if TYPE_CHECKING:
    from supervision import Address


@dataclass(frozen=True, slots=True)
class RegistryArgs:
    """What the registry tells whoever wants to start a model."""

    arena_path: str | None
    tier_dirs: tuple[tuple[str, str], ...]
    cache_salt: str


class RegistryActor(Worker):
    """Answers where things are."""

    def init(self, args: object) -> None:
        if not isinstance(args, RegistryArgs):
            raise TypeError(f"the registry is started with RegistryArgs, not {args!r}")
        self._facts = args

    def handle(self, message: object, sender: Address) -> None:
        match message:
            case m.DescribeNode(ref):
                facts = self._facts
                self.tell(
                    sender,
                    m.NodeDescribed(ref, facts.arena_path, facts.tier_dirs, facts.cache_salt),
                )
            case WhereIs(ref, wanted):
                entry = self.directory.get(wanted)
                self.tell(sender, Located(ref, entry) if entry else NotLocated(ref, wanted))
            case ListDirectory(ref):
                self.tell(sender, DirectoryListing(ref, tuple(self.directory.values())))
            case _:
                self.log.warning("dropped an unknown %s", type(message).__name__)

    def status(self) -> dict[str, object]:
        return {"entries": len(self.directory)}
