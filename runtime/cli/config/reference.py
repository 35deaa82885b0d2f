"""``config reference``: every setting, as Markdown."""

from __future__ import annotations

import sys

from runtime.cli.options import node_command


@node_command()
def command() -> int:
    from runtime.settings.reference import markdown

    sys.stdout.write(markdown())
    return 0
