"""``config check``: read a configuration file as ``serve`` does, and start nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from runtime.cli.options import USER_PATH, node_command


@node_command()
@click.argument("file", type=USER_PATH)
def command(file: Path) -> int:
    from runtime.settings.config import from_file

    config = from_file(file)
    sys.stdout.write(f"{file}: ok, {len(config.models)} models, port {config.admin_port}\n")
    return 0
