"""All models of this machine by their names: fetched, in a folder, in Ollama's store, files.

A name is looked up in this order: the embedded model, a file, a model that was fetched, one in the
user's folder, one of Ollama's, and last a fetched one by its file's or its repository's name alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path

from runtime.catalog import ollama
from runtime.catalog.files import PART, SUFFIX, ModelFile, found_in
from runtime.catalog.names import HOSTS, hub_name, model_id, stem_of
from runtime.catalog.store import Store, StoredModel
from runtime.embedded import EMBEDDED_MODEL_ID
from runtime.embedded import path as embedded_model_path
from runtime.errors import ConfigError, NoSuchModel
from runtime.settings.user_paths import user_path
from supervision.frozen import frozen


class Source(Enum):
    """Where a model's files are."""

    EMBEDDED = "embedded"
    STORE = "fetched"
    FOLDER = "folder"
    OLLAMA = "ollama"
    FILE = "file"


@frozen
class Known:
    """A model that is on this machine."""

    name: str
    id: str
    """What a node calls it."""
    source: Source
    path: Path
    """Of the file to load."""
    n_bytes: int
    """Of all its files."""
    mtime: float
    """Unix time of its latest change."""
    missing: tuple[str, ...] = ()
    """Names of files without which it cannot be loaded."""
    stored: StoredModel | None = None
    digest: str = ""
    """Of a model of Ollama's."""


class Catalog:
    """Looks names up; reads folders when it is asked, no files but records and manifests."""

    def __init__(
        self, store: Store, folder: Path | None = None, ollama_folders: Sequence[Path] = ()
    ) -> None:
        """``folder`` is the user's own, which must be there; Ollama's may be missing."""
        self.store = store
        self._folder = folder
        self._ollama_folders = ollama_folders

    def all(self) -> list[Known]:
        """Every model that has a name; without the embedded one and files elsewhere."""
        return [*self._stored(), *self._in_folder(), *self._of_ollama()]

    def find(self, name: str, *, whole: bool = True) -> Known | None:
        """The model that a name means; None if none does.

        Raises NoSuchModel for a path that is no file and, unless ``whole`` is False, for a model
        that lacks a file.
        """
        found = self._find(name)
        if whole and found is not None and found.missing:
            again = "pull it again" if found.source is Source.STORE else "it cannot be loaded"
            raise NoSuchModel(name, f"{name} lacks {', '.join(found.missing)}; {again}")
        return found

    def _find(self, name: str) -> Known | None:
        if name == EMBEDDED_MODEL_ID:
            return _file(EMBEDDED_MODEL_ID, embedded_model_path(), Source.EMBEDDED)
        if looks_like_path(name):
            return file_named(name)
        hub = hub_name(name)
        stored = None if hub is None else self.store.find(hub)
        if stored is not None:
            return known_as(stored)
        for one in self._in_folder():
            if name in (one.name, f"{one.name}{SUFFIX}"):
                return one
        at_hub = () if hub is None else tuple(f"{host}{hub}" for host in HOSTS)
        for one in self._of_ollama():
            if any(ollama.is_meant(one.name, asked) for asked in (name, *at_hub)):
                return one
        return next((one for one in self._stored() if _is_short_name(one, name)), None)

    def _stored(self) -> Iterator[Known]:
        yield from map(known_as, self.store.models())

    def _in_folder(self) -> Iterator[Known]:
        for one in self._files_in_folder():
            yield Known(
                one.name,
                model_id(one.name),
                Source.FOLDER,
                one.path,
                one.n_bytes,
                one.mtime,
                one.missing,
            )

    def _files_in_folder(self) -> list[ModelFile]:
        if self._folder is None:
            return []
        try:
            return found_in(self._folder)
        except OSError as error:
            raise ConfigError(
                "--models-dir", f"{self._folder} cannot be read: {error.strerror}"
            ) from error

    def _of_ollama(self) -> Iterator[Known]:
        seen: set[str] = set()
        for folder in self._ollama_folders:
            for one in ollama.models_of(folder):
                if one.name not in seen:
                    seen.add(one.name)
                    yield Known(
                        one.name,
                        model_id(one.name),
                        Source.OLLAMA,
                        one.path,
                        one.n_bytes,
                        one.mtime,
                        digest=f"sha256:{one.digest}",
                    )


def looks_like_path(name: str) -> bool:
    """Whether a name is a file that is there, or could be nothing else."""
    return name.startswith(("/", "./", "../", "~")) or os.path.isfile(name)


def _is_short_name(one: Known, name: str) -> bool:
    stored = one.stored
    if stored is None:
        return False
    repo = stored.repo.rpartition("/")[2]
    tag = one.name.rpartition(":")[2]
    return name.lower() in {each.lower() for each in (stored.stem, repo, f"{repo}:{tag}")}


def known_as(model: StoredModel) -> Known:
    """A fetched model, as the catalog lists it."""
    return Known(
        model.name,
        model_id(model.stem),
        Source.STORE,
        model.path,
        model.n_bytes,
        model.fetched_at,
        model.missing,
        model,
    )


def file_named(name: str) -> Known:
    """The model of a file; raises NoSuchModel where there is none."""
    path = user_path(name, "the model")
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not there"
        raise NoSuchModel(name, f"{path} {what}; name a GGUF file")
    part = PART.fullmatch(path.name.removesuffix(SUFFIX))
    if part is not None:  # any part stands for the model
        path = path.with_name(f"{part['stem']}-00001-of-{part['count']}{SUFFIX}")
    return _file(name, path, Source.FILE)


def _file(name: str, path: Path, source: Source) -> Known:
    part = PART.fullmatch(path.name.removesuffix(SUFFIX))
    count = 1 if part is None else int(part["count"])
    files = [path]
    if part is not None:
        stem = part["stem"]
        files = [
            path.with_name(f"{stem}-{n:05}-of-{count:05}{SUFFIX}") for n in range(1, count + 1)
        ]
    there = [one for one in files if one.is_file()]
    return Known(
        name,
        name if source is Source.EMBEDDED else model_id(stem_of(path.name)),
        source,
        path,
        sum(one.stat().st_size for one in there),
        max((one.stat().st_mtime for one in there), default=0.0),
        tuple(one.name for one in files if one not in there),
    )
