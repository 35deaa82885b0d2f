"""The identity of a model file: BLAKE3 over its content, never over its name.

Three modes, each in a domain of its own, so that digests of two modes are never equal:

safe          every byte of every split. One file gives what ``b3sum`` prints for it.
gguf_chunked  the size, the first 16 MiB (GGUF metadata and tensor table), the last 1 MiB and 64 KiB
              of every 16 MiB between. A fine-tune differs everywhere and is recognised as another
              model; an edit of a few bytes in between is not. For files too big to read twice.
fast_unsafe   no content: path, size, times, inode and device. Touching or copying a file makes it
              another model; content changed without changing these is not detected.

A digest of content is cached in one small private file, by everything that changes with the model's
file (``_Stamp``). The cache is disposable: if it is damaged, of another user, readable by others
or of another version, it is ignored and written again.

bytes of that file: b"llamaFPC", u16 version, u32 length, 32 bytes BLAKE3 of the body, then the
body: JSON, a map of path to [mode, stamp, digest in hex].
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from blake3 import blake3

from native.errors import InvalidParam, ModelNotFound

FingerprintMode = Literal["safe", "gguf_chunked", "fast_unsafe"]
FINGERPRINT_MODES: Final = ("safe", "gguf_chunked", "fast_unsafe")

_CONTEXT: Final = "llama-actors 2026-11-24 fingerprint "  # BLAKE3 key derivation: one per mode
_HEAD_BYTES: Final = 16 << 20
_TAIL_BYTES: Final = 1 << 20
_SAMPLE_EVERY: Final = 16 << 20
_SAMPLE_BYTES: Final = 64 << 10
_PIECE_BYTES: Final = 1 << 20

_MAGIC: Final = b"llamaFPC"
_VERSION: Final = 1
_FILE_HEAD: Final = struct.Struct("<8sHI32s")
_MAX_BODY: Final = 1 << 20
_MAX_ENTRIES: Final = 1024  # the oldest are dropped first
# A file that changes again within the granularity of its own times would keep its stamp. Network
# file systems count in seconds.
_UNSETTLED_NS: Final = 2_000_000_000


@dataclass(frozen=True, slots=True)
class _Stamp:
    """The facts that the kernel changes when a file is replaced or written; times in nanoseconds.

    ``ctime_ns`` cannot be set back by ``touch`` or ``cp -p``, as ``mtime_ns`` can.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, path: Path) -> _Stamp:
        try:
            facts = os.stat(path)
        except OSError as error:
            raise ModelNotFound(path, f"cannot be read: {error.strerror}") from error
        return cls(facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino, facts.st_dev)

    def plain(self) -> list[int]:
        return [self.size, self.mtime_ns, self.ctime_ns, self.inode, self.device]

    def is_settled(self, now_ns: int) -> bool:
        return max(self.mtime_ns, self.ctime_ns) + _UNSETTLED_NS < now_ns


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """How this node identifies model files; ``cache_file``, if any, keeps their digests."""

    mode: FingerprintMode = "safe"
    cache_file: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in FINGERPRINT_MODES:
            raise InvalidParam("fingerprint_mode", self.mode, " | ".join(FINGERPRINT_MODES))

    def of(self, files: Sequence[Path], *, now_ns: int | None = None) -> bytes:
        """32 bytes: the digest of the file, or of the digests of all splits in order.

        ``ModelNotFound`` if one cannot be read. ``now_ns`` is unix time, for tests.
        """
        digests = [self._one(path, now_ns) for path in files]
        return digests[0] if len(digests) == 1 else blake3(b"".join(digests)).digest()

    def _one(self, path: Path, now_ns: int | None) -> bytes:
        if self.mode == "fast_unsafe" or self.cache_file is None:
            return _digest(path, self.mode)
        place = os.path.realpath(path)
        before = _Stamp.of(path)
        known = _DigestCache(self.cache_file)
        digest = known.find(place, self.mode, before)
        if digest is not None:
            return digest
        now_ns = time.time_ns() if now_ns is None else now_ns
        digest = _digest(path, self.mode)
        if before.is_settled(now_ns):  # a later change gives another stamp
            known.add(place, self.mode, before, digest)
        return digest


def fingerprint(files: Sequence[Path]) -> bytes:
    """The ``safe`` fingerprint, without a cache. Reads everything once, on all cores."""
    return Fingerprints().of(files)


def _digest(path: Path, mode: FingerprintMode) -> bytes:
    try:
        if mode == "safe":
            return blake3(max_threads=blake3.AUTO).update_mmap(path).digest()
        hasher = blake3(derive_key_context=_CONTEXT + mode)
        if mode == "gguf_chunked":
            _add_samples(hasher, path)
        else:
            stamp = _Stamp.of(path)
            hasher.update(os.fsencode(os.path.realpath(path)) + b"\0")
            hasher.update(json.dumps(stamp.plain()).encode())
        return hasher.digest()
    except OSError as error:
        raise ModelNotFound(path, f"cannot be read: {error.strerror}") from error


def _add_samples(hasher: Any, path: Path) -> None:
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        hasher.update(size.to_bytes(8, "little"))
        if size <= _HEAD_BYTES + _TAIL_BYTES:
            spans = [(0, size)]
        else:
            middle = range(_HEAD_BYTES, size - _TAIL_BYTES, _SAMPLE_EVERY)
            spans = [(0, _HEAD_BYTES), *((at, _SAMPLE_BYTES) for at in middle)]
            spans.append((size - _TAIL_BYTES, _TAIL_BYTES))
        for start, length in spans:
            for at in range(start, start + length, _PIECE_BYTES):
                hasher.update(os.pread(file.fileno(), min(_PIECE_BYTES, start + length - at), at))


class _DigestCache:
    """The file of digests. When it fails in any way, the digest is computed."""

    def __init__(self, path: str) -> None:
        self._path = path

    def find(self, place: str, mode: str, stamp: _Stamp) -> bytes | None:
        with contextlib.suppress(OSError), _Locked(self._path, fcntl.LOCK_SH) as fd:
            entry = _read(fd).get(place)
            if isinstance(entry, list) and entry[:2] == [mode, stamp.plain()]:
                return _as_digest(entry[2:])
        return None

    def add(self, place: str, mode: str, stamp: _Stamp, digest: bytes) -> None:
        with contextlib.suppress(OSError), _Locked(self._path, fcntl.LOCK_EX) as fd:
            entries = _read(fd)
            entries.pop(place, None)  # the newest come last
            entries[place] = [mode, stamp.plain(), digest.hex()]
            while len(entries) > _MAX_ENTRIES:
                del entries[next(iter(entries))]
            body = json.dumps(entries).encode()
            if len(body) <= _MAX_BODY:
                # In place: a process killed here leaves a checksum that does not match.
                head = _FILE_HEAD.pack(_MAGIC, _VERSION, len(body), blake3(body).digest())
                os.pwrite(fd, head + body, 0)
                os.ftruncate(fd, len(head) + len(body))


class _Locked:
    """The file, open and locked; OSError if it is not a private file of this user."""

    def __init__(self, path: str, lock: int) -> None:
        self._path, self._lock = path, lock
        self._fd = -1

    def __enter__(self) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK
        if not self._path.startswith("/proc/"):  # there, the name of a memory file is a link
            flags |= os.O_NOFOLLOW
        if self._lock == fcntl.LOCK_EX:
            flags |= os.O_CREAT
        self._fd = os.open(self._path, flags, 0o600)
        try:
            fcntl.flock(self._fd, self._lock)
            facts = os.fstat(self._fd)
            is_private = facts.st_uid == os.geteuid() and not stat.S_IMODE(facts.st_mode) & 0o077
            if not stat.S_ISREG(facts.st_mode) or not is_private:
                raise PermissionError(f"{self._path} is not a private file")
        except OSError:
            os.close(self._fd)
            raise
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _read(fd: int) -> dict[str, Any]:
    """The entries of the file; none if it is damaged or of another version."""
    raw = os.pread(fd, _FILE_HEAD.size + _MAX_BODY, 0)
    if len(raw) < _FILE_HEAD.size:
        return {}
    magic, version, length, checksum = _FILE_HEAD.unpack_from(raw)
    body = raw[_FILE_HEAD.size :]
    if magic != _MAGIC or version != _VERSION or length != len(body):
        return {}
    if blake3(body).digest() != checksum:
        return {}
    try:
        entries = json.loads(body)
    except ValueError:
        return {}
    return entries if isinstance(entries, dict) else {}


def _as_digest(rest: list[Any]) -> bytes | None:
    try:
        digest = bytes.fromhex(rest[0])
    except (IndexError, TypeError, ValueError):
        return None
    return digest if len(digest) == blake3.digest_size else None
