"""A memory-limited control group of a test's own, where this machine allows one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from native.control_groups import Group, groups
from tests.support.waiting import eventually


@contextlib.contextmanager
def limited_group(limit_bytes: int) -> Iterator[Group]:
    """A new group below the top of the hierarchy; its processes must have ended at the end.

    Skips the test, with the reason, where none can be made.
    """
    top = next((one for one in groups("memory")[::-1] if _has_memory(one)), None)
    if top is None:
        pytest.skip("no control group hierarchy with the memory controller is mounted")
    name = f"llama-actors-test-{os.getpid()}"
    folder = top.folder / name
    file = "memory.max" if top.version == 2 else "memory.limit_in_bytes"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made in {top.folder}: {error.strerror}")
    try:
        try:
            (folder / file).write_text(f"{limit_bytes}\n")
        except OSError as error:
            pytest.skip(f"{folder / file} cannot be written: {error.strerror}")
        with contextlib.suppress(OSError):  # or memory is swapped instead of limited
            (folder / "memory.swap.max").write_text("0\n")
        yield Group(top.version, folder, f"{top.name.rstrip('/')}/{name}")
    finally:
        eventually(lambda: _removed(folder), within_s=20, what=f"{folder} is empty")


def enter(group: Group) -> str:
    """Python source that moves the process which runs it into the group."""
    return f"open({str(group.folder / 'cgroup.procs')!r}, 'w').write('0')\n"


def _has_memory(group: Group) -> bool:
    """Whether groups with a limit can be made below it."""
    if group.version == 1:
        return (group.folder / "memory.limit_in_bytes").exists()
    try:
        return "memory" in group.read("cgroup.subtree_control").split()
    except OSError:
        return False


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True
