"""``config show-default``: a TOML file with every default, commented."""

from __future__ import annotations

import sys

from runtime.cli.options import node_command


@node_command()
def command() -> int:
    from runtime.settings.reference import default_toml

    sys.stdout.write(default_toml())
    return 0
