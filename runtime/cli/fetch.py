"""A model of a hub, fetched with a progress bar at a terminal; for ``pull`` and ``run``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from runtime.catalog.names import HubName
from runtime.catalog.store import Store, StoredModel
from runtime.cli.progress import ProgressLine
from runtime.settings.sizes import format_size

if TYPE_CHECKING:
    from runtime.catalog.hub import Hub
    from runtime.catalog.pulling import Plan


def fetched(name: HubName, store: Store) -> tuple[StoredModel, bool]:
    """The model, whole and recorded, and whether anything of it had to be fetched."""
    hub, plan = _planned(name, store)
    return _pulled(hub, plan, store), not plan.is_complete


def fetched_if_wanted(name: HubName, store: Store) -> StoredModel | None:
    """Ask at a terminal, then fetch it; None where the answer is no."""
    hub, plan = _planned(name, store)
    model = plan.model
    question = f"{name} is not on this machine. Fetch {format_size(plan.n_missing)} of {model.name}"
    if not click.confirm(f"{question} from {hub.endpoint}?", err=True):
        return None
    return _pulled(hub, plan, store)


def _planned(name: HubName, store: Store) -> tuple[Hub, Plan]:
    from runtime.catalog.hub import Hub
    from runtime.catalog.pulling import Elsewhere, planned
    from runtime.settings.model_folders import hub_caches, ollama_folders

    hub = Hub(name)
    return hub, planned(hub, name, store, Elsewhere(ollama_folders(), hub_caches()))


def _pulled(hub: Hub, plan: Plan, store: Store) -> StoredModel:
    from runtime.catalog.pulling import pull

    with ProgressLine(f"fetching {plan.model.name}") as line:
        model = pull(hub, plan, store, progress=line.share)
    if not plan.is_complete:
        sys.stderr.write(f"fetched {model.name}, {format_size(model.n_bytes)}, to {model.path}\n")
    return model
