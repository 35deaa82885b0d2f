"""``gateway``: the keys of the HTTP gateway."""

from __future__ import annotations

from typing import Final

from runtime.cli.lazy_group import HELP_FLAGS, LazyGroup

COMMANDS: Final = {
    "key": ("runtime.cli.gateway.key", "make a key, and add its hash to a file of keys"),
    "keys": ("runtime.cli.gateway.keys", "the names in a file of keys, and what each may do"),
}

command: Final = LazyGroup("gateway", COMMANDS, context_settings=HELP_FLAGS)
