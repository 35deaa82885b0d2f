"""The launcher side: turn a configuration into a running node, and stay until it ends."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable
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
    """Make the disk tier's directory and take it for this node alone."""
    root = config.disk_root
    if root is None:
        return None, ()
    rows = root / ROWS_DIR
    try:
        rows.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock_fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            "cache_dir",
            f"cannot use {root}: {error.strerror}; name another --cache-dir, "
            "or turn the disk tier off with --cache-disk 0",
        ) from error
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock_fd)
        raise ConfigError(
            "cache_dir",
            f"another node uses {root}; name another --cache-dir, "
            "or turn the disk tier off with --cache-disk 0",
        ) from error
    return lock_fd, (FileTier(DISK_TIER, str(rows), config.cache_disk),)


def say(text: str) -> None:
    """A line for the person who started the node."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
