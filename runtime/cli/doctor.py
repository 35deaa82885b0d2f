"""``doctor``: does this machine and this installation have what a node needs?

Each check reports what it found and, where something is wrong, what to do. Nothing is changed: the
speed of a disk is measured with a file that is removed again, in the directory if it exists, else
in the nearest folder above it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import resource
import shutil
import signal
import socket
import stat
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from cache.filesystem import ROWS_DIR
from native.machine import cpu_quota, physical_cores
from native.system_memory import tightest_limit
from runtime.cli.options import USER_PATH, json_option, node_command, port_option
from runtime.errors import ConfigError
from runtime.settings.config import (
    DirectoryPlan,
    RuntimeConfig,
    describe_available,
    from_file,
)
from runtime.settings.ports import node_dir, resolve_port
from runtime.settings.sizes import Share, format_size
from supervision.errors import MachineUnfit
from supervision.launched import child_environment
from supervision.machine import require_loopback, require_proc

OUR_DISTRIBUTION: Final = "llama-actors"
OUR_PACKAGES: Final = ("actors", "cache", "native", "runtime", "supervision")
OPEN_FILES_WANTED: Final = 1024  # an actor has 20 to 40 open; a node with 20 models stays below it
MEMORY_WANTED_BYTES: Final = 1 << 30
DECODE_TIMEOUT_S: Final = 60.0
FREE_WANTED_BYTES: Final = 1 << 30
SYNC_TRIES: Final = 5
SYNC_BYTES: Final = 1 << 20
SLOW_SYNC_S: Final = 0.1  # a row then takes longer to write than a block takes to compute
MEMORY_FILE_SYSTEMS: Final = ("tmpfs", "ramfs")
_DECODE: Final = """
from native import load_backend
from native.backend import Batch
from native.params import ModelParams
from runtime.embedded import path
backend = load_backend("llama", str(path()), ModelParams(n_ctx=256))
batch = Batch()
tokens = backend.tokenize("Once upon a time")
row = batch.extend_prefill(tokens, 0, 0, True)
backend.decode(batch)
import math
assert all(math.isfinite(value) for value in backend.logits(row))
from native.llama import cpu_variant
print(f"{backend.info.description}, CPU library: {cpu_variant()}")
"""
_COLOURS: Final = {"ok": "green", "warning": "yellow", "failure": "red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: ``ok``, ``warning`` or ``failure``, and for the last two what to do."""

    check: str
    verdict: str
    detail: str
    fix: str = ""


@node_command()
@port_option
@json_option("print the checks as JSON")
@click.option("--config", type=USER_PATH, metavar="FILE", help="check its directories, too")
def command(*, admin_port: int | None, as_json: bool, config: Path | None) -> int:
    settings = None if config is None else from_file(config)
    findings = list(run_checks(resolve_port(admin_port), settings))
    if as_json:
        plain = [{name: getattr(one, name) for name in one.__slots__} for one in findings]
        sys.stdout.write(json.dumps(plain, indent=2) + "\n")
    else:
        for finding in findings:
            sys.stdout.write(_verdict(finding) + f" {finding.check:<16} {finding.detail}\n")
            if finding.fix:
                sys.stdout.write(f"{'':<25} fix: {finding.fix}\n")
    return 1 if any(finding.verdict == "failure" for finding in findings) else 0


def _verdict(finding: Finding) -> str:
    word = f"{finding.verdict:<8}"
    return click.style(word, fg=_COLOURS[finding.verdict]) if sys.stdout.isatty() else word


def run_checks(port: int, config: RuntimeConfig | None = None) -> Iterator[Finding]:
    """Every check, one finding each."""
    settings = config or RuntimeConfig()
    checks: tuple[Callable[[], Finding], ...] = (
        _python,
        _names,
        _decode,
        _shared_memory,
        lambda: _port(port),
        _limits,
        lambda: _memory(settings),
        _threads,
    )
    yield _needed("/proc", require_proc)
    yield _needed("loopback", require_loopback)
    for check in checks:
        try:
            yield check()
        except OSError as error:
            yield Finding(_name_of(check), "failure", f"cannot be checked: {error}")
    try:
        yield from list(_directories(settings))
    except OSError as error:
        yield Finding("tiers", "failure", f"cannot be checked: {error}")


def _name_of(check: Callable[[], Finding]) -> str:
    return check.__name__.strip("_<>").replace("_", " ")


def _needed(name: str, require: Callable[[], None]) -> Finding:
    """What no node can do without."""
    try:
        require()
    except MachineUnfit as error:
        return Finding(name, "failure", str(error))
    return Finding(name, "ok", "usable")


def _python() -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Finding("python", "ok", f"{version} in {sys.prefix}")


def _names() -> Finding:
    """Our five import names are generic; another distribution that owns one breaks this one."""
    owners = importlib.metadata.packages_distributions()
    foreign = {
        name: sorted({d for d in owners.get(name, []) if d.lower() != OUR_DISTRIBUTION})
        for name in OUR_PACKAGES
    }
    taken = {name: dists for name, dists in foreign.items() if dists}
    if not taken:
        return Finding(
            "import names", "ok", ", ".join(OUR_PACKAGES) + " belong to no other distribution"
        )
    detail = "; ".join(
        f"{name} also belongs to {', '.join(dists)}" for name, dists in taken.items()
    )
    others = sorted({dist for dists in taken.values() for dist in dists})
    return Finding(
        "import names",
        "failure",
        detail,
        f"give {OUR_DISTRIBUTION} a virtual environment of its own, or `pip uninstall "
        f"{' '.join(others)}` and reinstall {OUR_DISTRIBUTION}",
    )


def _decode() -> Finding:
    """Load the embedded model and decode, in a process that may die of an illegal instruction."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _DECODE],
            env=child_environment(),
            capture_output=True,
            text=True,
            timeout=DECODE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding(
            "cpu build",
            "failure",
            f"decoding four tokens took over {DECODE_TIMEOUT_S:.0f} s",
            "check the load of this machine, then run doctor again",
        )
    if done.returncode == 0:
        return Finding("cpu build", "ok", f"decoded with {done.stdout.strip()}")
    rebuild = "reinstall so that llama.cpp is built on this machine: `make clean install`"
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        if name == "SIGKILL":
            return Finding(
                "cpu build",
                "failure",
                "decoding was killed by SIGKILL, perhaps for lack of memory",
                "see the line `memory` below and the kernel's log",
            )
        return Finding(
            "cpu build",
            "failure",
            f"decoding ended by {name}; the build uses instructions this CPU does not have"
            if name in ("SIGILL", "SIGSEGV")
            else f"decoding ended by {name}",
            rebuild,
        )
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return Finding("cpu build", "failure", last, rebuild)


def _shared_memory() -> Finding:
    """The arena is an anonymous memory file that other processes open through /proc."""
    fd = os.memfd_create("llama-actors-doctor", os.MFD_CLOEXEC)
    try:
        os.write(fd, b"shared")
        path = f"/proc/{os.getpid()}/fd/{fd}"
        read = subprocess.run(["/bin/cat", path], capture_output=True, check=False, timeout=10)
    finally:
        os.close(fd)
    if read.stdout == b"shared":
        return Finding("shared memory", "ok", "memfd, opened through /proc; /dev/shm is not needed")
    return Finding(
        "shared memory",
        "failure",
        f"another process cannot open {path}: {read.stderr.decode(errors='replace').strip()}",
        "mount /proc with hidepid=0 for this user, or turn the RAM tier off with --cache-ram 0",
    )


def _port(port: int) -> Finding:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            if (node_dir(port) / "node.json").exists():
                return Finding("admin port", "ok", f"a node runs on {port}")
            return Finding(
                "admin port",
                "warning",
                f"{port} is in use by another program",
                "name another one with --admin-port or LLAMA_ACTORS_PORT",
            )
    return Finding("admin port", "ok", f"{port} is free")


def _limits() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES_WANTED:
        return Finding(
            "open files",
            "warning",
            f"limit {soft} (hard limit {hard})",
            f"`ulimit -n {OPEN_FILES_WANTED}` before starting a node",
        )
    return Finding("open files", "ok", f"limit {soft}")


def _memory(config: RuntimeConfig) -> Finding:
    tightest = tightest_limit()
    if tightest is None:
        return Finding(
            "memory",
            "warning",
            "the available memory of this machine is not known",
            "mount /proc, or set cache_ram to a number of bytes",
        )
    detail = describe_available(tightest)
    if tightest.available < MEMORY_WANTED_BYTES:
        return Finding(
            "memory",
            "warning",
            detail,
            "raise that limit or end other programs, or use a small model and --cache-ram 64MiB",
        )
    try:
        ram = format_size(config.ram_bytes())
    except ConfigError as error:
        return Finding("memory", "failure", detail, str(error))
    return Finding("memory", "ok", f"{detail}; RAM tier {ram}")


def _threads() -> Finding:
    """The default number of compute threads."""
    quota = cpu_quota()
    limited = "" if quota is None else f"; control groups allow {quota:g} CPUs"
    return Finding("cpu threads", "ok", f"{physical_cores()} by default{limited}")


def _directories(config: RuntimeConfig) -> Iterator[Finding]:
    """Every file tier of the configuration, and the one that is missing without a home."""
    if config.no_disk_because:
        yield Finding(
            "tier disk",
            "warning",
            f"none: {config.no_disk_because}",
            "set HOME, or name a directory with --cache-dir or cache_dir",
        )
    for plan in config.directories():
        found = look_at(plan)
        if found.trouble:
            yield Finding(
                f"tier {plan.name}", "warning", f"{found.detail}: {found.trouble}", found.fix
            )
        else:
            yield Finding(f"tier {plan.name}", "ok", found.detail)


# ── directories ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class DirectoryFacts:
    """What was found of a directory; ``trouble`` and ``fix`` are empty when all is well."""

    detail: str
    trouble: str = ""
    fix: str = ""


def look_at(plan: DirectoryPlan) -> DirectoryFacts:
    """Check a directory as it would be used by a node of this user."""
    place = plan.root
    while not os.path.exists(place):  # Path.exists raises where it may not look
        place = place.parent
    detail = f"{plan.root}, {format_size(shutil.disk_usage(place).free)} free"
    trouble, fix = _trouble(plan, place)
    if trouble:
        return DirectoryFacts(detail, trouble, fix)
    took_s = sync_time_s(place)
    detail += f", {1e3 * took_s:.1f} ms to write and sync 1 MiB"
    if took_s > SLOW_SYNC_S:
        slow = "rows will wait in RAM; name a faster disk, or leave this one out"
        return DirectoryFacts(detail, "a slow disk", slow)
    return DirectoryFacts(detail)


def _trouble(plan: DirectoryPlan, place: Path) -> tuple[str, str]:
    elsewhere = f"name another directory with {plan.key}"
    if not place.is_dir():
        return f"{place} is no directory", elsewhere
    if not os.access(place, os.W_OK | os.X_OK):
        return f"{place} is not writable", elsewhere
    for folder in (plan.root, plan.root / ROWS_DIR):
        if os.path.exists(folder):
            facts = folder.stat()
            if facts.st_uid != os.getuid():
                return f"{folder} belongs to user {facts.st_uid}", elsewhere
            if stat.S_IMODE(facts.st_mode) & 0o077:
                return f"other users can look into {folder}", f"chmod 0700 {folder}"
    kind = file_system_of(place)
    is_memory = kind in MEMORY_FILE_SYSTEMS
    if plan.name == "ram_file" and not is_memory:
        return f"{place} is on {kind}, no memory", "name a directory on a tmpfs, like /dev/shm"
    if plan.name != "ram_file" and is_memory:
        return f"{place} is on {kind}: gone after a reboot", "use it as cache_ram_file instead"
    free = shutil.disk_usage(place).free
    wanted = FREE_WANTED_BYTES if isinstance(plan.budget, Share) else plan.budget
    if free < min(wanted, FREE_WANTED_BYTES):
        return f"{format_size(free)} free", f"{elsewhere}, or give it a smaller budget"
    return "", ""


def sync_time_s(folder: Path) -> float:
    """Seconds to write a file of a row's size and to make it durable; the median of some."""
    took: list[float] = []
    chunk = os.urandom(SYNC_BYTES)  # zeros may be stored as nothing
    for _ in range(SYNC_TRIES):
        with tempfile.TemporaryFile(dir=folder) as file:
            began = time.perf_counter()
            file.write(chunk)
            file.flush()
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - began)
    return statistics.median(took)


def file_system_of(folder: Path) -> str:
    """The type of the file system that a folder lies on, as the kernel lists it."""
    here = str(folder.resolve())
    best, kind = "", "unknown"
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        for line in mounts:
            _, point, found, *_ = line.split(" ")
            point = point.replace("\\040", " ")
            inside = here == point or here.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best):
                best, kind = point, found
    return kind
