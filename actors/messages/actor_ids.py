"""Ids of actors in the tree that follow from another name, and names of their processes.

The id of a model's actor is ``model:<model>``, that of a file tier's ``tier:<tier>``; every other
actor has a fixed id. A holder of leases and reservations is one process of an actor: its id and its
incarnation. These functions are the only place where such a text is put together.
"""

from __future__ import annotations

from typing import Final

RESIDENCY: Final = "residency"
_MODEL: Final = "model:"
_TIER: Final = "tier:"
_INCARNATION: Final = "#"


def model_actor_id(model: str) -> str:
    """The id of a model's actor in the tree."""
    return _MODEL + model


def model_of(actor_id: str) -> str | None:
    """The model whose actor this is; ``None`` for every other actor."""
    return actor_id[len(_MODEL) :] if actor_id.startswith(_MODEL) else None


def tier_actor_id(tier: str) -> str:
    """The id of a file tier's actor in the tree."""
    return _TIER + tier


def tier_of(actor_id: str) -> str | None:
    """The file tier whose actor this is; ``None`` for every other actor."""
    return actor_id[len(_TIER) :] if actor_id.startswith(_TIER) else None


def holder_name(actor_id: str, incarnation: int) -> str:
    """The name under which one process of an actor holds leases and reservations."""
    return f"{actor_id}{_INCARNATION}{incarnation}"


def actor_of(holder: str) -> str:
    """The actor whose process this holder is. A model's id may contain the separator."""
    return holder.rpartition(_INCARNATION)[0]
