"""``show``: where a model on this machine is from, and what `inspect` shows of its file."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from runtime.cli.model_names import known, models_dir_option, name_argument
from runtime.cli.options import json_option, node_command

if TYPE_CHECKING:
    from runtime.catalog.catalog import Known


@node_command()
@name_argument
@models_dir_option()
@json_option()
def command(name: str, *, as_json: bool, **given: Any) -> int:
    from native.params import ModelParams
    from runtime.cli.inspect_model import inspect_model

    found = known(given, name)
    inspect_model(found.path, ModelParams(), as_json=as_json, origin=_origin(found))
    return 0


def _origin(found: Known) -> dict[str, str]:
    lines = {"name": found.name, "from": found.source.value}
    stored = found.stored
    if stored is not None:
        day = time.strftime("%Y-%m-%d", time.localtime(stored.fetched_at))
        lines |= {
            "repository": f"{stored.repo} at {stored.endpoint}, fetched {day}",
            "revision": stored.revision,
            "digest": ", ".join(one.digest for one in stored.files),
        }
    elif found.digest:
        lines["digest"] = found.digest
    return lines
