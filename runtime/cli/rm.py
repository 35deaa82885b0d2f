"""``rm``: remove the files of a model that ``pull`` fetched; of no other.

Asks at a terminal. A model that the node has loaded is refused; other nodes are not asked.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runtime import errors
from runtime.cli.model_names import catalog_of, name_argument, no_such_model
from runtime.cli.options import attached_here, node_command, port_option
from runtime.settings.sizes import format_size
from supervision.frozen import frozen

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
    target = _unfinished(catalog, name) or _fetched(catalog, name, given)
    what = f"{target.what}, {format_size(target.n_bytes)}"
    if not (yes or _is_confirmed(f"Remove {what}, from {target.folder}?")):
        return 1
    target.remove()
    sys.stderr.write(f"removed {what}\n")
    return 0


@frozen
class _Target:
    """What is to be removed, and how."""

    what: str
    folder: Path
    n_bytes: int
    remove: Callable[[], object]


def _is_confirmed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise click.UsageError("this cannot be asked here; --yes removes it all the same")
    return click.confirm(question, err=True)


def _unfinished(catalog: Catalog, name: str) -> _Target | None:
    """What was begun of a repository, where the name means no model that is whole."""
    from runtime.catalog.names import hub_name

    wanted = hub_name(name)
    if wanted is None or catalog.find(name, whole=False) is not None:
        return None
    store = catalog.store
    for one in store.unfinished():
        if one.repo.lower() == wanted.repo.lower():
            remove = functools.partial(store.drop_unfinished, one)
            what = f"the unfinished files of {one.repo}"
            return _Target(what, store.folder_of(one.repo), one.n_bytes, remove)
    return None


def _fetched(catalog: Catalog, name: str, given: Mapping[str, Any]) -> _Target:
    """A model that was fetched and is not loaded."""
    model = _removable(catalog, name)
    _require_unloaded(model, given)
    remove = functools.partial(catalog.store.remove, model)
    return _Target(model.name, model.folder, model.n_bytes, remove)


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


def _require_unloaded(model: StoredModel, given: Mapping[str, Any]) -> None:
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
