"""``config``: reference, defaults and JSON schema of the configuration, and a check of a file."""

from __future__ import annotations

from typing import Final

from runtime.cli.lazy_group import HELP_FLAGS, LazyGroup

COMMANDS: Final = {
    "reference": ("runtime.cli.config.reference", "every setting, as Markdown"),
    "show-default": (
        "runtime.cli.config.show_default",
        "a TOML file of all defaults",
    ),
    "schema": ("runtime.cli.config.schema", "the JSON schema of the file, for editors"),
    "check": ("runtime.cli.config.check", "check a file without starting a node"),
}

command: Final = LazyGroup("config", COMMANDS, context_settings=HELP_FLAGS)
