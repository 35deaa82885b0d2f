"""``doctor``: does this machine and this installation have what a node needs?

Each check says what it found and, where something is wrong, what to do. Nothing is changed.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from native.machine import cpu_quota, physical_cores
from native.system_memory import tightest_limit
from runtime.cli.doctor_disks import look_at
from runtime.errors import ConfigError
from runtime.settings.config import RuntimeConfig, describe_available
from runtime.settings.ports import node_dir
from runtime.settings.sizes import format_size
from supervision.errors import MachineUnfit
from supervision.launched import child_environment
from supervision.machine import require_loopback, require_proc

OUR_DISTRIBUTION: Final = "llama-actors"
OUR_PACKAGES: Final = ("actors", "cache", "native", "runtime", "supervision")
OPEN_FILES_WANTED: Final = 1024  # an actor has 20 to 40 open; a node with 20 models stays below it
MEMORY_WANTED_BYTES: Final = 1 << 30
DECODE_TIMEOUT_S: Final = 60.0
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


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: ``ok``, ``warning`` or ``failure``, and for the last two what to do."""

    check: str
    verdict: str
    detail: str
    fix: str = ""


def doctor_command(port: int, *, as_json: bool = False, config: RuntimeConfig | None = None) -> int:
    """Run all checks and print them; 1 when one failed."""
    findings = list(run_checks(port, config))
    if as_json:
        print(json.dumps([{f: getattr(x, f) for f in x.__slots__} for x in findings], indent=2))
    else:
        for finding in findings:
            print(f"{finding.verdict:<8} {finding.check:<16} {finding.detail}")
            if finding.fix:
                print(f"{'':<25} fix: {finding.fix}")
    return 1 if any(finding.verdict == "failure" for finding in findings) else 0


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
            yield Finding(_name_of(check), "failure", f"cannot be looked at: {error}")
    try:
        yield from list(_directories(settings))
    except OSError as error:
        yield Finding("tiers", "failure", f"cannot be looked at: {error}")


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
    """Five generic import names are a known price of this project; another owner breaks it."""
    owners = importlib.metadata.packages_distributions()
    foreign = {
        name: sorted({d for d in owners.get(name, []) if d.lower() != OUR_DISTRIBUTION})
        for name in OUR_PACKAGES
    }
    taken = {name: dists for name, dists in foreign.items() if dists}
    if not taken:
        return Finding("import names", "ok", ", ".join(OUR_PACKAGES) + " are ours alone")
    said = "; ".join(f"{name} also belongs to {', '.join(dists)}" for name, dists in taken.items())
    others = sorted({dist for dists in taken.values() for dist in dists})
    return Finding(
        "import names",
        "failure",
        said,
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
            "look at the load of this machine, then run doctor again",
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
                "look at the line `memory` below and at the kernel's log",
            )
        return Finding(
            "cpu build",
            "failure",
            f"decoding died of {name}; the build uses instructions this CPU does not have"
            if name in ("SIGILL", "SIGSEGV")
            else f"decoding died of {name}",
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
            "this machine does not tell how much is available",
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
