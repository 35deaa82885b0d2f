"""``pull``: fetch a model of a hub into the folder of fetched models.

NAME is ``ORG/REPO``, with the tag of a quantisation behind a colon: the file whose name has it,
with all its parts. Without a tag: Q4_K_M, else Q8_0, else the first file. What breaks off is
continued by the next call, also after a kill, and a file is kept only if its digest is the hub's.
"""

from __future__ import annotations

import json
import sys

import click

from runtime import errors
from runtime.cli.options import json_option, node_command


@node_command()
@click.argument("name", metavar="NAME", help="ORG/REPO or ORG/REPO:TAG; hf.co/ may stand before it")
@json_option("print the record as one JSON object")
def command(name: str, *, as_json: bool) -> int:
    from runtime.catalog.names import hub_name
    from runtime.catalog.store import Store
    from runtime.cli.fetch import fetched
    from runtime.settings.model_folders import store_folder

    wanted = hub_name(name)
    if wanted is None:
        raise errors.InvalidRequest(
            f"{name!r} names no model of a hub; write ORG/REPO:TAG, for instance "
            "unsloth/Qwen3-0.6B-GGUF:Q4_K_M"
        )
    model, is_new = fetched(wanted, Store(store_folder()))
    if not is_new:
        sys.stderr.write(f"{model.name} is here already, as the hub has it: {model.path}\n")
    if as_json:
        from runtime.catalog.catalog import known_as
        from runtime.cli.ls import plain_model

        sys.stdout.write(json.dumps(plain_model(known_as(model)), indent=2) + "\n")
    return 0
