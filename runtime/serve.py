"""The launcher side: turn a configuration into a running node, and stay until it ends."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from actors.model import ModelArgs
from cache.arena import create_arena
from cache.errors import CacheError
from runtime.config import RuntimeConfig, format_size
from runtime.errors import ConfigError
from runtime.tree import FileTier, build_tree
from supervision.launcher import NodeConfig, run_node

DEFAULTS_FILE: Final = "models.json"
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
    lock_fd, tiers = _open_disk(config)
    try:
        tree = build_tree(arena_path=arena_path, ram_bytes=ram_bytes, file_tiers=tiers)
        return run_node(
            NodeConfig(
                port=config.admin_port,
                runtime_dir=config.node_dir,
                tree=tree,
                log_file=config.log_file,
                parent_fd=parent_fd,
                extra=model_defaults_to_mapping(arena_path, tiers, config.cache_salt),
            ),
            on_ready=on_ready,
        )
    finally:
        for fd in (arena_fd, lock_fd):
            if fd is not None:
                os.close(fd)


def model_defaults_to_mapping(
    arena_path: str | None, tiers: tuple[FileTier, ...], salt: str
) -> dict[str, object]:
    """What a client must know to load a model into this node; published beside its addresses."""
    return {
        "arena_path": arena_path,
        "tier_dirs": [[tier.name, tier.root_dir] for tier in tiers],
        "cache_salt": salt,
    }


def model_defaults_from_mapping(plain: dict[str, object]) -> ModelArgs:
    """The inverse: a template with neither id nor path."""
    arena_path, pairs = plain.get("arena_path"), plain.get("tier_dirs")
    return ModelArgs(
        model="",
        path="",
        arena_path=arena_path if isinstance(arena_path, str) else None,
        tier_dirs=tuple((str(name), str(path)) for name, path in pairs or ()),  # type: ignore[attr-defined]  # JSON written above
        cache_salt=str(plain.get("cache_salt") or ""),
    )


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


def rows_root(cache_dir: Path) -> Path:
    """Where the disk tier of ``cache_dir`` keeps its rows."""
    return cache_dir / ROWS_DIR
