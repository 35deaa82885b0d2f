"""Fetches a model of a hub into the store: chosen by its tag, verified, recorded."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from runtime.catalog.copies import adopted, copy_of
from runtime.catalog.fetching import PAUSES_S, fetch, missing_bytes, require_space
from runtime.catalog.hub import Hub, Listing
from runtime.catalog.names import HubName
from runtime.catalog.quantisations import chosen, part_count, tags_in
from runtime.catalog.store import Store, StoredFile, StoredModel, size_of
from runtime.errors import FetchFailed
from supervision.frozen import frozen

_SHOWN_TAGS: Final = 40


@frozen
class Elsewhere:
    """Folders of other programs that may have a file already."""

    ollama_folders: Sequence[Path] = ()
    hub_caches: Sequence[Path] = ()


NOWHERE: Final = Elsewhere()


@frozen
class Plan:
    """A model as the hub has it, and what of it is to be fetched."""

    model: StoredModel
    n_missing: int
    """Bytes."""
    copies: Mapping[str, Path]
    """Files that another program has on this machine, by their path in the repository."""

    @property
    def is_complete(self) -> bool:
        return not self.n_missing


def planned(hub: Hub, name: HubName, store: Store, elsewhere: Elsewhere = NOWHERE) -> Plan:
    """What a pull would fetch; raises FetchFailed with what the hub, or the tag, lacks.

    Files that other programs keep in the folders ``elsewhere`` are not fetched again.
    """
    listing = hub.listing()
    model = StoredModel(
        store.folder_of(listing.repo),
        listing.repo,
        listing.revision,
        hub.endpoint,
        time.time(),
        _files(listing, name),
    )
    same_repo = (one for one in store.models() if one.folder == model.folder)
    known = {(file.path, file.digest) for one in same_repo for file in one.files}
    missing = 0
    for file in model.files:
        final, partial = model.folder / file.path, store.partial_of(model.repo, file)
        has_another = final.exists() and (file.path, file.digest) not in known
        missing += file.n_bytes if has_another else missing_bytes(file, final, partial)
    return Plan(model, missing, _copies(model, elsewhere))


def _copies(model: StoredModel, elsewhere: Elsewhere) -> dict[str, Path]:
    found = {
        one.path: copy_of(one, model.repo, elsewhere.ollama_folders, elsewhere.hub_caches)
        for one in model.files
    }
    return {path: copy for path, copy in found.items() if copy is not None}


def pull(
    hub: Hub,
    plan: Plan,
    store: Store,
    *,
    progress: Callable[[float], None] = lambda _: None,
    pauses_s: Sequence[float] = PAUSES_S,
) -> StoredModel:
    """Fetch what is missing and record the model; ``progress`` is called with 0 to 1."""
    model = plan.model
    try:
        if plan.n_missing:
            model.folder.mkdir(parents=True, exist_ok=True)
            require_space(model.folder, _adopt(plan, store), model.name)
        _fetch_files(hub, plan, store, progress, pauses_s)
    finally:
        store.tidy(model)
    store.record(model)
    store.drop_partial(model)
    return model


def _fetch_files(
    hub: Hub,
    plan: Plan,
    store: Store,
    progress: Callable[[float], None],
    pauses_s: Sequence[float],
) -> None:
    model = plan.model
    total, before = max(1, model.n_bytes), 0
    for file in () if plan.is_complete else model.files:
        fetch(
            model.name,
            file,
            model.folder / file.path,
            store.partial_of(model.repo, file),
            functools.partial(hub.body, model.revision),
            advance=functools.partial(_advance, progress, before, total),
            pauses_s=pauses_s,
        )
        before += file.n_bytes


def _adopt(plan: Plan, store: Store) -> int:
    """Take over the files that are on this machine; returns the bytes that are still missing."""
    model, missing = plan.model, 0
    for file in model.files:
        final, copy = model.folder / file.path, plan.copies.get(file.path)
        is_here = size_of(final) == file.n_bytes
        if is_here or copy is None or not adopted(file, copy, final):
            missing += missing_bytes(file, final, store.partial_of(model.repo, file))
    return missing


def _advance(progress: Callable[[float], None], before: int, total: int, at: int) -> None:
    progress((before + at) / total)


def _files(listing: Listing, name: HubName) -> tuple[StoredFile, ...]:
    by_path = {one.path: one for one in listing.files}
    paths = chosen(list(by_path), name.tag)
    if not paths:
        raise FetchFailed(str(name), _nothing(list(by_path), name))
    lacking = part_count(paths[0]) - len(paths)
    if lacking:
        raise FetchFailed(
            str(name), f"{name.repo} lacks {lacking} of the parts of {paths[0]}; choose another tag"
        )
    return tuple(by_path[one] for one in paths)


def _nothing(paths: Sequence[str], name: HubName) -> str:
    tags = tags_in(paths)
    if not tags:
        return (
            f"{name.repo} has no GGUF file; repositories with quantised models are usually called "
            "…-GGUF"
        )
    shown = ", ".join(tags[:_SHOWN_TAGS]) + (", …" if len(tags) > _SHOWN_TAGS else "")
    return f"{name.repo} has no {name.tag}; it has {shown}"
