"""What is kept where and for how long, as settings; and what became of other caches' gates.

Four tables: ``[save]`` says what is stored, ``[live]`` what stays in a context after its request,
``[logits]`` when the logits of a prompt's end are kept, ``[restore]`` when computing is faster than
restoring. Their keys, defaults and limits are those of ``cache.policy``; sizes may carry units.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from cache.errors import InvalidPolicy
from cache.policy import SAVE_ALL, LivePolicy, LogitsPolicy, RestorePolicy, SavePolicy
from runtime.errors import ConfigError
from runtime.settings.sizes import parse_size

KEYS: Final = (
    "min_tokens",
    "min_tail_tokens",
    "save_prompt_tail",
    "save_while_generating",
    "save_finish_tail",
    "tail_delay_ms",
    "tail_disk_delay_s",
    "session_resume_wait_ms",
)
TABLES: Final = ("live", "logits", "restore")
"""Tables beside ``[save]`` whose values are part of the policy."""
_SIZES: Final = ("memory_bytes",)
_KINDS: Final = {bool: "true or false", int: "a whole number", float: "a number"}

Policy = TypeVar("Policy", SavePolicy, LivePolicy, LogitsPolicy, RestorePolicy)


def save_policy_from(values: object, tables: Mapping[str, object] | None = None) -> SavePolicy:
    """The policy of a ``[save]`` table and those beside it; raises ConfigError naming the key."""
    policy = values if isinstance(values, SavePolicy) else _changed(SAVE_ALL, values, "save", KEYS)
    more = {
        name: _changed(getattr(policy, name), values, name, _fields(getattr(policy, name)))
        for name, values in (tables or {}).items()
    }
    changed: SavePolicy = dataclasses.replace(policy, **more)
    return changed


def save_mapping(policy: SavePolicy) -> dict[str, dict[str, Any]]:
    """The inverse of ``save_policy_from``: all four tables."""
    tables = {name: dataclasses.asdict(getattr(policy, name)) for name in TABLES}
    return {"save": {key: getattr(policy, key) for key in KEYS}, **tables}


def _fields(policy: Any) -> tuple[str, ...]:
    return tuple(one.name for one in dataclasses.fields(policy))


def _changed(policy: Policy, values: object, table: str, known: tuple[str, ...]) -> Policy:
    if not isinstance(values, Mapping):
        example = f"[{table}] {known[0]} = {getattr(policy, known[0])}"
        raise ConfigError(table, f"must be a table, for instance {example}")
    changed: dict[str, Any] = {}
    for key, value in values.items():
        where = f"{table}.{key}"
        if key not in known:
            raise ConfigError(where, f"unknown setting; known are {', '.join(known)}")
        changed[key] = _value(value, type(getattr(policy, key)), where, is_size=key in _SIZES)
    try:
        new: Policy = dataclasses.replace(policy, **changed)
    except InvalidPolicy as error:
        raise ConfigError(table, str(error)) from error
    return new


def _value(value: object, wanted: type, where: str, *, is_size: bool) -> object:
    if is_size:
        return parse_size(value, where)
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise ConfigError(where, f"{value!r} is not {_KINDS[wanted]}")
    return value
