"""``gateway keys``: what a file of keys holds; the keys themselves are nowhere."""

from __future__ import annotations

from pathlib import Path

import click

from runtime.cli.options import USER_PATH, node_command
from runtime.errors import ConfigError


@node_command()
@click.argument("file", type=USER_PATH)
def command(file: Path) -> int:
    from runtime.cli.table import Column, write_table
    from runtime.gateway.keys import BadKeys, keys_from

    try:
        found = keys_from(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(str(file), f"cannot be read: {error.strerror}") from error
    except BadKeys as error:
        raise ConfigError(str(file), str(error)) from error
    rows = [
        (
            key.name,
            " ".join(key.models),
            key.namespace,
            "yes" if key.is_admin else "no",
            "never" if key.expires is None else str(key.expires),
        )
        for key in found.by_hash.values()
    ]
    write_table([Column(one) for one in ("NAME", "MODELS", "ROWS", "ADMIN", "EXPIRES")], rows)
    return 0
