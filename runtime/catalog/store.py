"""The folder of models that were fetched: their files, and a record of where each is from.

``ORG/REPO/FILE.gguf`` is a model's file as its repository names it, so the folder can be given to
any program that loads GGUF files. A file has this name only when it is whole and its digest was
right. ``ORG/REPO/.records/FILE.json`` is written after the last file of a model, and makes it one;
``ORG/REPO/.partial/`` holds what is being fetched.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from glob import escape
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from runtime.catalog.names import HubName, stem_of
from runtime.catalog.quantisations import chosen, tag_of
from supervision.frozen import frozen

RECORDS: Final = ".records"
PARTIAL: Final = ".partial"
FORMAT: Final = 1


@frozen
class StoredFile:
    """A file of a fetched model."""

    path: str
    """Within its repository."""
    n_bytes: int
    digest: str
    """``sha256:…``, or ``git-sha1:…`` of a file that the hub keeps in git itself."""


@frozen
class StoredModel:
    """A fetched model, by its record."""

    folder: Path
    """Of its repository in the store."""
    repo: str
    revision: str
    """The commit that its files are of."""
    endpoint: str
    """The hub that it was fetched from."""
    fetched_at: float
    """Unix time."""
    files: tuple[StoredFile, ...]
    """The first part first."""

    @property
    def name(self) -> str:
        return f"{self.repo}:{tag_of(self.files[0].path)}"

    @property
    def stem(self) -> str:
        """The name of its file, without ending and part."""
        return stem_of(self.files[0].path)

    @property
    def path(self) -> Path:
        """Of the file to load."""
        return self.folder / self.files[0].path

    @property
    def n_bytes(self) -> int:
        return sum(one.n_bytes for one in self.files)

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of files that are gone, or have another size."""
        return tuple(
            one.path for one in self.files if size_of(self.folder / one.path) != one.n_bytes
        )


@frozen
class Unfinished:
    """Files of a repository that were begun and are not whole."""

    repo: str
    n_bytes: int
    files: tuple[Path, ...]


def size_of(path: Path) -> int:
    """Bytes of a regular file; -1 where there is none."""
    try:
        return path.stat().st_size if path.is_file() else -1
    except OSError:
        return -1


class Store:
    """The models below one folder, which need not be there yet."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def models(self) -> list[StoredModel]:
        """All of them, by their names; a record that cannot be read is left out."""
        found = (_read(path) for path in self.root.glob(f"*/*/{RECORDS}/*.json"))
        return sorted((one for one in found if one is not None), key=lambda one: one.name)

    def find(self, name: HubName) -> StoredModel | None:
        """The model that the name means among those that were fetched."""
        there = {
            one.files[0].path: one for one in self.models() if one.repo.lower() == name.repo.lower()
        }
        files = [file.path for one in there.values() for file in one.files]
        first = next(iter(chosen(files, name.tag)), None)
        return None if first is None else there.get(first)

    def folder_of(self, repo: str) -> Path:
        """Where the files of a repository are."""
        return self.root / repo

    def partial_of(self, repo: str, file: StoredFile) -> Path:
        """Where a file lies until it is whole; another content has another place."""
        mark = file.digest.rpartition(":")[2][:16]
        return self.folder_of(repo) / PARTIAL / f"{quote(file.path, safe='')}.{mark}"

    def record(self, model: StoredModel) -> None:
        """Make the files of ``model``, which are all there, a model of this store."""
        path = _record_of(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(
            {
                "format": FORMAT,
                "repo": model.repo,
                "revision": model.revision,
                "endpoint": model.endpoint,
                "fetched_at": model.fetched_at,
                "files": [
                    {"path": one.path, "n_bytes": one.n_bytes, "digest": one.digest}
                    for one in model.files
                ],
            },
            indent=2,
        )
        fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
        fresh.write_text(text + "\n", encoding="utf-8")
        fresh.replace(path)

    def remove(self, model: StoredModel) -> int:
        """Remove the record, then each file that no other record names; returns the bytes freed.

        What is left of a file that was being fetched goes too, and folders that are empty then.
        """
        _record_of(model).unlink(missing_ok=True)
        kept = {
            file.path for one in self.models() if one.folder == model.folder for file in one.files
        }
        freed = 0
        for file in model.files:
            if file.path in kept:
                continue
            path = model.folder / file.path
            freed += max(0, size_of(path))
            path.unlink(missing_ok=True)
            _drop_empty(path.parent, self.root)
        _drop_empty(model.folder / RECORDS, self.root)
        self.drop_partial(model)
        return freed

    def drop_partial(self, model: StoredModel) -> None:
        """Remove what was fetched of the model's files, of any content, and is not whole."""
        for file in model.files:
            partial = self.partial_of(model.repo, file)
            for one in partial.parent.glob(f"{escape(partial.stem)}.*"):
                one.unlink(missing_ok=True)
        self.tidy(model)

    def unfinished(self) -> list[Unfinished]:
        """What was begun and is not whole, by repository."""
        found: dict[Path, list[Path]] = {}
        for one in sorted(self.root.glob(f"*/*/{PARTIAL}/*")):
            found.setdefault(one.parent.parent, []).append(one)
        return [
            Unfinished(
                "/".join(folder.parts[-2:]),
                sum(max(0, size_of(one)) for one in files),
                tuple(files),
            )
            for folder, files in found.items()
        ]

    def drop_unfinished(self, one: Unfinished) -> None:
        """Remove what was fetched of it."""
        for path in one.files:
            path.unlink(missing_ok=True)
            _drop_empty(path.parent, self.root)

    def tidy(self, model: StoredModel) -> None:
        """Remove the folders of a model that is not there, as far as they are empty."""
        _drop_empty(model.folder / PARTIAL, self.root)


def _record_of(model: StoredModel) -> Path:
    return model.folder / RECORDS / f"{quote(model.files[0].path, safe='')}.json"


def _read(path: Path) -> StoredModel | None:
    try:
        plain = json.loads(path.read_bytes())
        if plain["format"] != FORMAT:
            return None
        files = tuple(_files(plain["files"]))
        model = StoredModel(
            path.parent.parent,
            str(plain["repo"]),
            str(plain["revision"]),
            str(plain["endpoint"]),
            float(plain["fetched_at"]),
            files,
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return model if files else None


def _files(plain: list[dict[str, Any]]) -> Iterator[StoredFile]:
    for one in plain:
        file = StoredFile(str(one["path"]), int(one["n_bytes"]), str(one["digest"]))
        if not is_plain_path(file.path):
            raise ValueError(file.path)
        yield file


def is_plain_path(path: str) -> bool:
    """Whether a path of a repository stays in its folder, and is not one of this store's own."""
    is_printable = path.isprintable() and "\\" not in path
    return is_printable and not any(not one or one.startswith(".") for one in path.split("/"))


def _drop_empty(folder: Path, root: Path) -> None:
    """Remove a folder and those above it, up to ``root``, as far as they are empty."""
    while folder != root and root in folder.parents:
        try:
            folder.rmdir()
        except FileNotFoundError:
            pass
        except OSError:
            return
        folder = folder.parent
