"""The launcher side: turn a configuration into a running node, and stay until it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cache.arena import create_arena
from cache.errors import CacheError
from runtime.config import RuntimeConfig, format_size
from runtime.errors import ConfigError
from runtime.tree import FileTier, build_tree
from supervision.launcher import NodeConfig, run_node

DISK_TIER: Final = "disk"
ROWS_DIR: Final = "rows"


def serve(
    config: RuntimeConfig,
    *,
    on_ready: Callable[[], None] | None = None,
    parent_fd: int | None = None,
) -> int:
    """Run a node until it is told to stop; the exit code.

    Blocks. Must be called in a process that has no threads and did not load native libraries: all
    actors are forked from it.
    """
    ram_bytes = config.ram_bytes()
    arena_fd = _open_arena(ram_bytes) if ram_bytes else None
    arena_path = None if arena_fd is None else f"/proc/{os.getpid()}/fd/{arena_fd}"
    wanted_fd = os.memfd_create("llama-actors-models", os.MFD_CLOEXEC)
    lock_fd, tiers = _open_disk(config)
    try:
        tree = build_tree(
            wanted_path=f"/proc/{os.getpid()}/fd/{wanted_fd}",
            arena_path=arena_path,
            ram_bytes=ram_bytes,
            file_tiers=tiers,
            cache_salt=config.cache_salt,
        )
        return run_node(
            NodeConfig(
                port=config.admin_port,
                runtime_dir=config.node_dir,
                tree=tree,
                log_file=config.log_file,
                log_format=config.log_format,
                parent_fd=parent_fd,
            ),
            on_ready=on_ready,
        )
    finally:
        for fd in (arena_fd, wanted_fd, lock_fd):
            if fd is not None:
                os.close(fd)


def _open_arena(ram_bytes: int) -> int:
    """Anonymous shared memory that lives as long as this launcher, whatever dies below it."""
    fd = os.memfd_create("llama-actors-arena", os.MFD_CLOEXEC)
    try:
        create_arena(fd, ram_bytes)
    except (OSError, CacheError) as error:
        os.close(fd)
        raise ConfigError(
            "cache_ram",
            f"cannot get {format_size(ram_bytes)} of shared memory: {error}; "
            "choose a smaller --cache-ram, or 0 to turn the RAM tier off",
        ) from error
    return fd


def _open_disk(config: RuntimeConfig) -> tuple[int | None, tuple[FileTier, ...]]:
    """Make the disk tier's directory and take it for this node alone.

    A directory that was asked for must do; the default one is given up with a note, because a
    second node, or a user without a home, is better served without a disk tier than not at all.
    """
    root = config.disk_root
    if root is None:
        return None, ()
    rows = root / ROWS_DIR
    try:
        rows.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock_fd = _lock(root)
    except OSError as error:
        trouble = "another node uses it" if error.errno == errno.EWOULDBLOCK else error.strerror
        if config.cache_dir is None:
            say(f"note: no disk tier, because {root} cannot be used: {trouble}")
            return None, ()
        raise ConfigError(
            "cache_dir",
            f"{root} cannot be used: {trouble}; name another --cache-dir, "
            "or turn the disk tier off with --cache-disk 0",
        ) from error
    return lock_fd, (FileTier(DISK_TIER, str(rows), config.cache_disk),)


def _lock(root: Path) -> int:
    fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def say(text: str) -> None:
    """A line for the person who started the node."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
