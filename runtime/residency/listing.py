"""Models as they are listed: their states, and pages of them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from actors import messages as m

if TYPE_CHECKING:
    from supervision import Entry

PAGE_BYTES: Final = 32 << 10
_FIXED_BYTES: Final = 256


def page(models: Sequence[m.KnownModel], asked: m.ListModels) -> m.ModelsListed:
    """So many of these, sorted by their ids, as fit one message."""
    rest = [one for one in models if one.model > asked.after]
    shown: list[m.KnownModel] = []
    size = 0
    for one in rest:
        size += _FIXED_BYTES + len(one.path.encode()) + len(one.failure.encode())
        if shown and size > PAGE_BYTES:
            break
        shown.append(one)
    return m.ModelsListed(asked.ref, tuple(shown), len(shown) == len(rest))


def state_of(
    entry: Entry | None, *, is_coming: bool, is_leaving: bool, failure: str | None, is_asleep: bool
) -> tuple[m.ModelState, str]:
    """The state of a model, and why it is not loaded if it failed.

    ``entry``: its place in the tree. ``failure``: of its last load, while that is not repeated.
    """
    if entry is not None and entry.is_up and not is_leaving:
        return m.ModelState.UP, ""
    if is_coming:
        return m.ModelState.LOADING, ""
    if is_leaving or (entry is not None and entry.state == "stopping"):
        return m.ModelState.DRAINING, ""
    if entry is not None and entry.state == "down":
        why = f"it crashed so often that it was stopped: {entry.last_exit}"
        return m.ModelState.FAILED, why
    if entry is not None:
        return m.ModelState.LOADING, ""
    if failure is not None:
        return m.ModelState.FAILED, failure
    return (m.ModelState.ASLEEP if is_asleep else m.ModelState.AVAILABLE), ""
