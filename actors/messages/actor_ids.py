"""Ids of actors in the tree that follow from another name."""

from __future__ import annotations


def model_actor_id(model: str) -> str:
    """The id of a model's actor in the tree."""
    return f"model:{model}"
