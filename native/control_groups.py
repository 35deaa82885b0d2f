"""The control groups that this process is in: version 1, version 2 or both, mounted anywhere.

``/proc/self/cgroup`` names the groups, ``/proc/self/mountinfo`` where their hierarchies are
mounted and which part of them: a container often sees only its own group, as the root of the mount.
Everything reads below ``root``, so that a copy of both trees in a folder can stand for a machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path("/")
_DEFAULT_MOUNT: Final = "sys/fs/cgroup"
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")
_DELETED: Final = " (deleted)"


@dataclass(frozen=True, slots=True)
class Group:
    """One control group that this process is in, directly or through a child of it."""

    version: int
    folder: Path
    """The folder with its files."""
    name: str
    """Its path in the hierarchy, as ``/proc/self/cgroup`` gives it: ``/system.slice/x.service``."""

    def read(self, file: str) -> str:
        """The text of one of its files; OSError or ValueError if it cannot be read."""
        return (self.folder / file).read_text(encoding="utf-8").strip()

    def number(self, file: str) -> int | None:
        """The number in one of its files; None for "max", and where it cannot be read."""
        try:
            return int(self.read(file))
        except (OSError, ValueError):
            return None

    def counters(self, file: str) -> dict[str, int]:
        """A file of ``key value`` lines; empty where it cannot be read."""
        return flat_keyed(self.folder / file)


@dataclass(frozen=True, slots=True)
class _Mount:
    """One mounted hierarchy, or the part of it below the group ``top``."""

    version: int
    controllers: frozenset[str]
    top: str
    point: Path


def groups(controller: str, root: Path = ROOT) -> tuple[Group, ...]:
    """This process's groups for a controller ("memory", "cpu"), its own first, then the parents.

    Where both versions are mounted, those of version 1 that has the controller come first. A group
    of version 2 is listed whether or not the controller is enabled in it: its files are missing
    then. Parents above the mount's root are not visible, and not listed. Empty where unknown.
    """
    own = _own_paths(root)
    mounts = _mounts(root)
    found: list[Group] = []
    for version, key in ((1, controller), (2, "")):
        path = own.get(key)
        if path is None:
            continue
        fitting = [
            mount
            for mount in mounts
            if mount.version == version and (version == 2 or controller in mount.controllers)
        ]
        found += _chain(path, fitting or _unlisted(version, controller, root))
    return tuple(found)


def flat_keyed(path: Path) -> dict[str, int]:
    """A file of ``key value`` lines, as memory.stat and /proc/vmstat; empty if unreadable."""
    found: dict[str, int] = {}
    try:
        for line in path.read_text(encoding="ascii").splitlines():
            key, _, value = line.partition(" ")
            if value.strip().isdigit():
                found[key] = int(value)
    except (OSError, ValueError):
        return {}
    return found


def _own_paths(root: Path) -> dict[str, str]:
    """The path of this process's group by controller; version 2 has the controller ""."""
    try:
        text = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            number, controllers, path = parts
            path = path.removesuffix(_DELETED)
            for one in controllers.split(",") if number != "0" else [""]:
                found[one] = path
    return found


def _mounts(root: Path) -> list[_Mount]:
    try:
        text = (root / "proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return []
    return list(_parse_mounts(text, root))


def _parse_mounts(text: str, root: Path) -> Iterator[_Mount]:
    """The control group mounts of a mountinfo: ``id parent dev top point options … - type …``."""
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        fields, facts = before.split(" "), after.split(" ")
        if not separator or len(fields) < 5 or len(facts) < 3:
            continue
        top, point = (_ESCAPED.sub(lambda m: chr(int(m[1], 8)), one) for one in fields[3:5])
        place = root / point.lstrip("/")
        if facts[0] == "cgroup2":
            yield _Mount(2, frozenset(), top, place)
        elif facts[0] == "cgroup":
            yield _Mount(1, frozenset(facts[2].split(",")), top, place)


def _unlisted(version: int, controller: str, root: Path) -> list[_Mount]:
    """Where a hierarchy usually is, for a machine whose mounts cannot be read."""
    place = root / _DEFAULT_MOUNT
    if version == 1:
        place /= controller
    return [_Mount(version, frozenset({controller}), "/", place)] if place.is_dir() else []


def _chain(path: str, mounts: list[_Mount]) -> list[Group]:
    """The groups from ``path`` up to the root of the mount that shows most of them."""
    chains = [_through(path, mount) for mount in mounts]
    return max(chains, key=len, default=[])


def _through(path: str, mount: _Mount) -> list[Group]:
    """The groups that one mount shows; those without a folder are left out."""
    parts, top = _parts(path), _parts(mount.top)
    if parts[: len(top)] == top:
        parts = parts[len(top) :]
    elif mount.top != "/":
        # The path is outside of the mount, as in a container with the host's view of it: the
        # mount's root is then the closest visible group.
        parts = []
    found: list[Group] = []
    for depth in range(len(parts), -1, -1):
        folder = mount.point.joinpath(*parts[:depth])
        if folder.is_dir():
            name = "/" + "/".join([*top, *parts[:depth]])
            found.append(Group(mount.version, folder, name))
    return found


def _parts(path: str) -> list[str]:
    """The names in a group's path; those above the root of a namespace (``..``) are dropped."""
    return [part for part in path.split("/") if part and part != ".."]
