"""Load a node's configured models: ``-m runtime.cli.load_models LAUNCHER_PID < SETTINGS``."""

from __future__ import annotations

import json
import sys

from runtime import errors
from runtime.cli.progress import ProgressLine
from runtime.launch.launcher import write_note
from runtime.node import Node
from runtime.settings.config import from_mapping
from supervision import stdio
from supervision.process import die_with_parent


def main() -> int:
    """Load every configured model; returns 1 if one of them failed.

    A client like any other, in a process of its own: the launcher must not have threads or wait.
    """
    stdio.prepare()
    die_with_parent(int(sys.argv[1]))
    config = from_mapping(json.load(sys.stdin))
    failures = 0
    with Node.attach(config.admin_port, runtime_dir=config.runtime_dir) as node:
        for model, model_config in config.models.items():
            if model_config.autoload:
                continue
            try:
                with ProgressLine(f"loading {model}") as line:
                    status = node.client.load(model, model_config, progress=line.share)
                write_note(f"loaded {model} from {model_config.path}")
                for note in status.notes:
                    write_note(f"note: {model}: {note}")
            except errors.LlamaActorsError as error:
                failures += 1
                write_note(f"error: {model} was not loaded: {error}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
