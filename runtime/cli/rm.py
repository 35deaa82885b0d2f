"""``rm``: remove the files of a model that ``pull`` fetched; of no other.

Asks at a terminal. A model that the node has loaded is refused; other nodes are not asked.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from runtime import errors
from runtime.cli.model_names import catalog_of, name_argument, no_such_model
from runtime.cli.options import attached_here, node_command, port_option
from runtime.settings.sizes import format_size

if TYPE_CHECKING:
    from runtime.catalog.catalog import Catalog, Known
    from runtime.catalog.store import StoredModel

_NOT_OURS = {
    "embedded": "{name} is part of this package; uninstalling that removes it",
    "folder": "{name} is a file of your own folder; remove {path} yourself",
    "file": "{name} is a file of your own; remove {path} yourself",
    "ollama": "{name} is Ollama's; `ollama rm {name}` removes it",
}


@node_command()
@port_option
@name_argument
@click.option("--yes", is_flag=True, help="do not ask")
def command(name: str, *, yes: bool, **given: Any) -> int:
    catalog = catalog_of(given)
    model = _removable(catalog, name)
    _require_unloaded(model, given)
    size = format_size(model.n_bytes)
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("this cannot be asked here; --yes removes it all the same")
        if not click.confirm(f"Remove {model.name} ({size}) from {model.folder}?", err=True):
            return 1
    catalog.store.remove(model)
    sys.stderr.write(f"removed {model.name}, {size}\n")
    return 0


def _removable(catalog: Catalog, name: str) -> StoredModel:
    """The fetched model of that name, also one that lacks a file; raises NotRemovable."""
    found = catalog.find(name, whole=False)
    if found is None:
        raise no_such_model(catalog, name)
    if found.stored is None:
        raise errors.NotRemovable(name, _why_not(found))
    return found.stored


def _why_not(found: Known) -> str:
    words = _NOT_OURS[found.source.value]
    return f"{words.format(name=found.name, path=found.path)}; `rm` removes what `pull` fetched"


def _require_unloaded(model: StoredModel, given: dict[str, Any]) -> None:
    """NotRemovable where the running node, if there is one, has the model loaded."""
    from runtime.cli.background import ids_of_file

    try:
        node = attached_here(given)
    except errors.NodeNotRunning:
        return
    with node:
        ids = ids_of_file(node, model.path)
    if ids:
        raise errors.NotRemovable(
            model.name,
            f"{model.name} is loaded as {ids[0]}; `llama-actors unload {ids[0]}` first",
        )
