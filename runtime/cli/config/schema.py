"""``config schema``: the JSON schema of a configuration file."""

from __future__ import annotations

import json
import sys

from runtime.cli.options import node_command


@node_command()
def command() -> int:
    from runtime.settings.reference import json_schema

    sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")
    return 0
