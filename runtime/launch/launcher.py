"""The launcher: starts a node from a configuration, and runs until the node ends."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable
from typing import Final

from actors import messages
from cache.arena import create_arena
from cache.errors import CacheError
from native.fingerprint import Fingerprints
from native.oom_watch import OomWatch
from runtime.errors import ConfigError
from runtime.launch.listeners import open_listeners, remove_paths
from runtime.launch.residency import residency_args
from runtime.launch.signing_key import signing_key
from runtime.launch.tier_directories import open_directories
from runtime.launch.tree import build_tree
from runtime.settings.config import RuntimeConfig
from runtime.settings.sizes import format_size
from supervision import stdio
from supervision.launcher import NodeConfig, run_node
from supervision.machine import require_machine

MAX_DESCRIPTORS: Final = 65_536
DISK_TIER: Final = "disk"
FINGERPRINTS_FILE: Final = "fingerprints"
MEASURED_FILE: Final = "models-memory.json"


def serve(
    config: RuntimeConfig,
    *,
    on_ready: Callable[[], None] | None = None,
    parent_fd: int | None = None,
) -> int:
    """Run a node until it is stopped; returns the exit code.

    Blocks. Must be called in a process that has no threads and did not load native libraries: all
    actors are forked from it.
    """
    messages.preload()
    require_machine()
    ram_bytes = config.ram_bytes()
    listeners = open_listeners(config.gateway)
    if config.gateway.is_on:
        _allow_descriptors()
    arena_fd = _open_arena(ram_bytes) if ram_bytes else None
    arena_path = None if arena_fd is None else f"/proc/{os.getpid()}/fd/{arena_fd}"
    wanted_fd = os.memfd_create("llama-actors-models", os.MFD_CLOEXEC)
    residency_fd = os.memfd_create("llama-actors-residency", os.MFD_CLOEXEC)
    lock_fds, tiers, absent = open_directories(config)
    has_disk = any(tier.name == DISK_TIER for tier in tiers)
    fingerprints_fd, fingerprints_path = _open_fingerprints(config, has_disk=has_disk)
    try:
        tree = build_tree(
            wanted_path=f"/proc/{os.getpid()}/fd/{wanted_fd}",
            arena_path=arena_path,
            ram_bytes=ram_bytes,
            file_tiers=tiers,
            absent_tiers=absent,
            cache_salt=config.cache_salt,
            fingerprints=Fingerprints(config.fingerprint_mode, fingerprints_path),
            pressure=config.pressure,
            save=config.save,
            signing_key=signing_key(config.disk_root if has_disk else None),
            gateway=config.gateway,
            node_dir=str(config.node_dir),
            models=tuple(name for name, one in config.models.items() if not one.autoload),
            residency=residency_args(
                config,
                wanted_path=f"/proc/{os.getpid()}/fd/{wanted_fd}",
                table_path=f"/proc/{os.getpid()}/fd/{residency_fd}",
                measured_path=_beside_rows(config, MEASURED_FILE) if has_disk else None,
            ),
        )
        return run_node(
            NodeConfig(
                port=config.admin_port,
                runtime_dir=config.node_dir,
                tree=tree,
                log_file=config.log_file,
                log_format=config.log_format,
                parent_fd=parent_fd,
                kill_watch=OomWatch(),
                packages=("actors", "cache", "native", "runtime"),
                shelf=listeners,
            ),
            on_ready=on_ready,
        )
    finally:
        remove_paths(config.gateway)
        for fd in (arena_fd, wanted_fd, residency_fd, *lock_fds, fingerprints_fd):
            if fd is not None:
                os.close(fd)


def _allow_descriptors() -> None:
    """As many as this user may have: the shelf holds some for each connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, MAX_DESCRIPTORS), hard))


def _open_arena(ram_bytes: int) -> int:
    """Anonymous shared memory that exists as long as this launcher, whatever process below ends."""
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


def _open_fingerprints(config: RuntimeConfig, *, has_disk: bool) -> tuple[int | None, str]:
    """Where fingerprints are kept: beside the rows, else in memory of this launcher."""
    if has_disk and config.disk_root is not None:
        return None, str(config.disk_root / FINGERPRINTS_FILE)
    fd = os.memfd_create("llama-actors-fingerprints", os.MFD_CLOEXEC)
    os.fchmod(fd, 0o600)
    return fd, f"/proc/{os.getpid()}/fd/{fd}"


def _beside_rows(config: RuntimeConfig, name: str) -> str | None:
    return None if config.disk_root is None else str(config.disk_root / name)


def write_note(text: str) -> None:
    """Write a line to standard error of the launcher, if it can be written."""
    stdio.say(text)
