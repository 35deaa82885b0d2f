"""Where an actor listens: a plain value, so that messages never carry a library's objects."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """One endpoint of the node, on loopback.

    Ports are used again by the kernel: an address names a process only together with an id and
    an incarnation, which is why messages to a named actor carry both (see ``Addressed``).
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """The inverse of ``str``."""
        host, _, port = text.rpartition(":")
        return cls(host, int(port))
