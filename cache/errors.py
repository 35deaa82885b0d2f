"""Errors of the cache: cause, and what the caller does about it.

* CacheError
  x CorruptRow           the bytes are wrong         -> drop or quarantine, treat as a miss
    - BadMagic             not a row at all
    - UnsupportedVersion   another format version wrote it
    - Truncated            shorter than the sizes in its header
    - BadField             a field holds a value no writer produces
    - ChecksumMismatch     bytes changed after they were written
    - KeyMismatch          the key is not the hash of parent key and tokens
  x MissingRow           the file is gone            -> drop the location, treat as a miss
  x BadArena             the arena file is not ours  -> recreate it, or fix the path
  x NoArenaSpace         the machine has no memory   -> skip the save, the request continues
  x TierUnavailable      the disk refused            -> retry elsewhere, raise an alarm
  x InvalidPolicy        the configuration is wrong  -> fix it; the boot stops
  x InvariantBroken      a bug in this package       -> crash the actor, file an issue
"""

from __future__ import annotations


class CacheError(Exception):
    """Any failure of the cache; without the cache requests are slower, but they are served."""


class CorruptRow(CacheError):
    """The bytes are not a valid row; treat the row as a miss and drop it."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class BadMagic(CorruptRow):
    """These bytes are not a row."""


class UnsupportedVersion(CorruptRow):
    """Another format version wrote this row; the cache is disposable, delete it."""


class Truncated(CorruptRow):
    """The row is shorter than the sizes in its header."""


class BadField(CorruptRow):
    """A header field holds a value that no writer produces."""


class ChecksumMismatch(CorruptRow):
    """The bytes changed after they were written."""


class KeyMismatch(CorruptRow):
    """The key is not the hash of the parent key and the tokens."""


class MissingRow(CacheError):
    """The file of a row is gone; drop the location and treat it as a miss."""


class BadArena(CacheError):
    """The file is not an arena of this version, or an offset does not belong to one."""


class NoArenaSpace(CacheError):
    """The kernel refused memory for a slab; skip the save; the request is not affected."""

    def __init__(self, offset: int, nbytes: int, detail: str) -> None:
        super().__init__(f"no memory for {nbytes} bytes at arena offset {offset}: {detail}")
        self.offset = offset
        self.nbytes = nbytes


class TierUnavailable(CacheError):
    """A file tier refused an operation; ``path`` names the directory, ``errno`` the cause."""

    def __init__(self, path: str, step: str, cause: OSError) -> None:
        super().__init__(
            f"{step} failed in {path}: {cause.strerror or cause}; free space or check it"
        )
        self.path = path
        self.step = step
        self.errno = cause.errno


class InvalidPolicy(CacheError):
    """A configuration value is out of range; fix it before starting."""


class InvariantBroken(CacheError):
    """The state of the cache contradicts itself: a bug in this package, not in its caller."""
