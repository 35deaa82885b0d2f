"""What the parts of the actor may do: send, and have it decided again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from actors import messages as m
    from supervision import Address

AGAIN_S: Final = 0.1
"""Until something is tried again that another process could not do."""


class Outside(Protocol):
    """The actor, to its parts."""

    def tell(self, target: Address | str, message: object) -> bool:
        """Send; False: no process of this id is up."""

    def weigh(self, spec: m.LoadModel) -> None:
        """Have it found out what the model needs; ``Loading.weighed`` takes the answer."""

    def look(self) -> None:
        """Decide again, with fresh readings."""

    def look_in(self, seconds: float) -> None:
        """The same after so many seconds."""
