"""Forks of a host process: what it inherited is dropped in the child and never used there.

A connection, its locks and the threads that read it belong to the process that made them. A copy of
a socket in a child would take bytes that the parent waits for. So every object that owns such
things registers here: in a child it closes its copies of the descriptors, which the parent does
not notice, and opens its own when it is used.

``os.fork`` and everything built on it calls the hook; a fork made by C code does not, and is found
by the pid at the next use (``is_here``).
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

Mark = tuple[int, int]
"""One process: its pid, and how many forks of Python lie behind it."""


class Inheritable(Protocol):
    """Owns descriptors, locks or threads of this process."""

    def drop_inherited(self) -> None:
        """In a child, right after the fork: close copies of descriptors, make new locks."""


class _State:
    forks = 0


_objects: Final[weakref.WeakSet[Inheritable]] = weakref.WeakSet()
_no_fork: Final = threading.RLock()


def here() -> Mark:
    """The present process."""
    return os.getpid(), _State.forks


def is_here(mark: Mark) -> bool:
    """Whether this is the process that took the mark."""
    return mark == here()


def register(one: Inheritable) -> None:
    """Call its ``drop_inherited`` in every child that is forked from now on."""
    _objects.add(one)


@contextmanager
def no_fork() -> Iterator[None]:
    """No other thread forks meanwhile: for descriptors that no child may keep open."""
    with _no_fork:
        yield


def _in_child() -> None:
    _State.forks += 1
    for one in list(_objects):
        one.drop_inherited()
    _no_fork.release()


os.register_at_fork(
    before=_no_fork.acquire, after_in_parent=_no_fork.release, after_in_child=_in_child
)
