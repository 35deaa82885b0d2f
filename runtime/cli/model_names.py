"""What commands that take the name of a model on this machine have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import click
from click.shell_completion import CompletionItem

from runtime.cli.options import USER_PATH, Decorator
from runtime.embedded import EMBEDDED_MODEL_ID
from runtime.errors import LlamaActorsError, NoSuchModel

if TYPE_CHECKING:
    from runtime.catalog.catalog import Catalog, Known

_CUTOFF: Final = 0.5
"""How alike two names are that are taken for the same, 0 to 1."""


def models_dir_option() -> Decorator[Any]:
    """``--models-dir``; ``catalog_of`` reads it."""
    return click.option(
        "--models-dir",
        type=USER_PATH,
        metavar="DIR",
        help="a folder of GGUF files besides (default: LLAMA_ACTORS_MODELS_DIR)",
    )


def catalog_of(given: Mapping[str, Any]) -> Catalog:
    """All models of this machine, with the folder that the parameters of a command name."""
    from runtime.catalog.catalog import Catalog
    from runtime.catalog.store import Store
    from runtime.settings.model_folders import models_folder, ollama_folders, store_folder

    return Catalog(Store(store_folder()), models_folder(given.get("models_dir")), ollama_folders())


def no_such_model(catalog: Catalog, name: str) -> NoSuchModel:
    """The error for a name that none has: how to get the model, or names that are like it."""
    from difflib import get_close_matches

    from runtime.catalog.names import hub_name

    names = [one.name for one in catalog.all()]
    if hub_name(name) is not None:
        return NoSuchModel(
            name,
            f"there is no {name} on this machine; `llama-actors pull {name}` fetches it from the "
            "hub",
        )
    near = get_close_matches(name, names, cutoff=_CUTOFF)
    hint = f"{' or '.join(near)} is near it" if near else "`llama-actors ls` lists what there is"
    return NoSuchModel(
        name,
        f"there is no model {name} on this machine; {hint}, and a model of a hub is named "
        "ORG/REPO:TAG",
    )


def known(given: Mapping[str, Any], name: str) -> Known:
    """The model on this machine that the name means; raises NoSuchModel."""
    catalog = catalog_of(given)
    found = catalog.find(name)
    if found is None:
        raise no_such_model(catalog, name)
    return found


def _names(
    ctx: click.Context,
    param: click.Parameter,  # noqa: ARG001 - click's interface
    incomplete: str,
) -> list[CompletionItem]:
    """For shells: names of models on this machine, and files."""
    names = [EMBEDDED_MODEL_ID]
    with contextlib.suppress(LlamaActorsError, OSError):
        names += [one.name for one in catalog_of(ctx.params).all()]
    found = [CompletionItem(one) for one in names if one.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]


name_argument: Final = click.argument(
    "name",
    metavar="NAME",
    shell_complete=_names,
    help="a name that `ls` shows, a path, or ORG/REPO:TAG of a hub",
)
