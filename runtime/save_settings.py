"""What is saved when, as settings: the ``[save]`` table, and what became of other caches' gates."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from cache.errors import InvalidPolicy
from cache.policy import SAVE_ALL, SavePolicy
from runtime.errors import ConfigError

KEYS: Final = (
    "min_tokens",
    "min_tail_tokens",
    "save_prompt_tail",
    "save_while_generating",
    "save_finish_tail",
    "session_resume_wait_ms",
)
REPLACED: Final[Mapping[str, str]] = {
    "cold_min_tokens": "every complete block of a prompt is saved; min_tokens sets the least",
    "cold_max_tokens": "prompts of any length are saved, block by block; leave it out",
    "continued_interval": (
        "each block is saved when it is complete, once; save_while_generating turns that off"
    ),
    "boundary_trim_tokens": (
        "a hit may end anywhere, also inside a block, so nothing has to be trimmed; leave it out"
    ),
    "boundary_align_tokens": "blocks of 64 tokens are the alignment; leave it out",
    "evict_save_timeout_ms": (
        "rows are written behind, so an eviction has nothing left to save; leave it out"
    ),
}
"""Gates of caches that store whole prefixes, and what blocks have in their place."""


def save_policy_from(values: object) -> SavePolicy:
    """The policy of a ``[save]`` table; raises ConfigError naming the key and the fix."""
    if isinstance(values, SavePolicy):
        return values
    if not isinstance(values, Mapping):
        raise ConfigError("save", "must be a table, for instance [save] min_tokens = 100")
    changed: dict[str, Any] = {}
    for key, value in values.items():
        if key in REPLACED:
            raise ConfigError(f"save.{key}", f"there is no such gate here: {REPLACED[key]}")
        if key not in KEYS:
            raise ConfigError(f"save.{key}", f"unknown setting; known are {', '.join(KEYS)}")
        wanted = type(getattr(SAVE_ALL, key))
        if type(value) is not wanted:
            kind = "true or false" if wanted is bool else "a whole number"
            raise ConfigError(f"save.{key}", f"{value!r} is not {kind}")
        changed[key] = value
    try:
        policy: SavePolicy = dataclasses.replace(SAVE_ALL, **changed)
    except InvalidPolicy as error:
        raise ConfigError("save", str(error)) from error
    return policy


def save_mapping(policy: SavePolicy) -> dict[str, Any]:
    """The inverse of ``save_policy_from``."""
    return {key: getattr(policy, key) for key in KEYS}
