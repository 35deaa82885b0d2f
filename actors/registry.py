"""Model id and actor id → current address and incarnation, for callers outside the tree.

Owns: nothing that could be lost; the directory is pushed to it by the supervisors. Answers:
``WhereIs``, ``ListDirectory``. A process of its own so that callers never wait behind a supervisor
that is busy healing something.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from supervision import Worker
from supervision.messages import DirectoryListing, ListDirectory, Located, NotLocated, WhereIs

if TYPE_CHECKING:
    from supervision import Address


class RegistryActor(Worker):
    """Answers where things are."""

    def handle(self, message: object, sender: Address) -> None:
        match message:
            case WhereIs(ref, wanted):
                entry = self.directory.get(wanted)
                self.tell(sender, Located(ref, entry) if entry else NotLocated(ref, wanted))
            case ListDirectory(ref):
                self.tell(sender, DirectoryListing(ref, tuple(self.directory.values())))

    def status(self) -> dict[str, object]:
        return {"entries": len(self.directory)}
