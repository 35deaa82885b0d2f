"""Kill everything, again and again, while requests run: ``python -m tests.support.soak --seed 1``.

A node with two models (the embedded one twice, ``--model FILE``, or ``--model stub``), a RAM tier
and a disk tier serves requests of several threads, while one process of it after the other gets
SIGKILL: any actor, supervisors, the root, Admin, and now and then the host process of a second
node. What must hold:

* every request ends within ``DEADLINE_S`` with the reply of an idle node to it: tokens, text and
  the logarithms of 20 candidates for each token, as bytes, whatever was killed under it, ran beside
  it, was guessed or was in which tier; rarely with another end that kills may cause (``ALLOWED``).
  ``--exact`` is what requests ask for; below ``always`` a real model does not promise this;
* ``WHOLE_WITHIN_S`` after a kill every process is up again, models later by their backoff and the
  node by its launcher's; a second node is gone, with its port, as soon as its host is;
* no supervisor gives up: kills are paced below the intensities of the node;
* afterwards no request, lease or reservation is left in any table, and after the stop no process,
  port, shared memory or file but the rows, each of which is whole.

The plan is a function of the seed; what was done, and when, goes to a log of JSON lines. A failure
prints the command that does the same again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.messages.exact import EXACT_NAMES
from runtime import Node, errors
from runtime.embedded import path as embedded_model_path
from supervision.errors import SupervisionError
from supervision.node_file import NodeRecord, RuntimeDir
from tests.support.nodes import ROOT, alive, group_pids, port_is_free
from tests.support.runtime_nodes import mapped_shared_memory, started
from tests.support.soak_load import Load
from tests.support.soak_plan import HOST, MODEL_IDS, MODELS, STATIC_IDS, Kill, Pacer, plan
from tests.support.soak_replies import Known, SoakModel, make_jobs
from tests.support.waiting import eventually

WHOLE_WITHIN_S = 2.0
QUIET_WITHIN_S = 15.0
"""From the last request to empty tables; cache_meta looks every five seconds."""
KEPT_FILES = {"lock", "rows", "signing-key", "fingerprints"}
"""Of the cache directory, after a stop."""
LAUNCHER_BACKOFF_S = (0.0, 0.01, 0.04, 0.16, 0.64, 2.56)
MODEL_BACKOFF_S = (0.0, 0.05, 0.15, 0.45, 1.35, 4.05)
"""By restarts within the window, times two for the jitter."""


class SoakFailed(AssertionError):
    """A condition was violated; the text has the condition and the command that repeats the run."""


class Host:
    """A second node, with the process that started it."""

    SCRIPT = textwrap.dedent(
        """
        import json, sys
        from runtime import Node
        node = Node.start(cache_disk=0, cache_ram="32MiB", runtime_dir=sys.argv[1])
        node.load("stub", "stub", backend="stub")
        def pids(tree):
            return [tree.pid, *(pid for child in tree.children for pid in pids(child))]
        print(json.dumps([node.port, pids(node.tree())]), flush=True)
        sys.stdin.read()
        """
    )

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.SCRIPT, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        if not said:
            self.end()
            raise SoakFailed("the second node did not start; see what it wrote to standard error")
        self.port, pids = json.loads(said)
        self.pids: set[int] = {pid for pid in pids if pid}

    def is_gone(self) -> bool:
        return not any(map(alive, self.pids)) and port_is_free(self.port)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@dataclass
class Soak:
    """One run on one node."""

    node: Node
    folder: Path
    log: Path
    load: Load
    pacer: Pacer = field(default_factory=Pacer)
    host: Host | None = None
    groups: set[int] = field(default_factory=set)
    shared: set[Path] = field(default_factory=set)
    healed_s: list[float] = field(default_factory=list)
    patience: float = 1.0
    """Times a quiet machine's limits."""
    _pause: threading.Event = field(default_factory=threading.Event)

    # ── observing ───────────────────────────────────────────────────────────────────────────────

    def record(self) -> NodeRecord | None:
        record = RuntimeDir(self.folder / "run" / f"node-{self.node.port}").read()
        if record is not None:
            with contextlib.suppress(OSError):
                self.groups.add(os.getpgid(record.admin_pid))
        return record

    def pids(self) -> dict[str, int]:
        """Processes by id; those of a node that is restarting may be missing."""
        record = self.record()
        if record is None or not record.is_alive:
            return {}
        found = {"root": record.root_pid, "admin": record.admin_pid}
        with contextlib.suppress(SupervisionError):
            for entry in self.node.connection.directory(timeout_s=0.5):
                if entry.pid is not None and entry.id not in found:
                    found[entry.id] = entry.pid
        return found

    def missing(self) -> list[str]:
        """What keeps the tree from being whole."""
        record = self.record()
        if record is None or not (alive(record.admin_pid) and alive(record.root_pid)):
            return ["node"]
        try:
            entries = {e.id: e for e in self.node.connection.directory(timeout_s=0.5)}
        except SupervisionError:
            return ["directory"]
        return [
            one
            for one in (*STATIC_IDS, *MODEL_IDS)
            if one not in entries or not entries[one].is_up or not alive(entries[one].pid or 0)
        ]

    # ── killing ─────────────────────────────────────────────────────────────────────────────────

    def step(self, kill: Kill) -> None:
        self._pause.wait(self.pacer.wait_s(kill.victim, time.monotonic()))
        if kill.victim == HOST:
            self._kill_host(kill)
            return
        pid = self._kill(kill.victim)
        self.pacer.note(kill.victim, time.monotonic())
        killed = time.monotonic()
        if not kill.settle:
            self._pause.wait(kill.pause_s)
            self.write(kill, pid=pid)
            return
        limit = self._limit_s()
        try:
            eventually(lambda: not alive(pid) and not self.missing(), within_s=limit, every_s=0.01)
        except AssertionError:
            self.write(kill, pid=pid, missing=self.missing())
            raise SoakFailed(
                f"kill {kill.n} of {kill.victim}: {', '.join(self.missing())} not up after "
                f"{time.monotonic() - killed:.1f} s, {limit:.1f} s are allowed"
            ) from None
        self.healed_s.append(time.monotonic() - killed)
        self.write(kill, pid=pid, whole_s=round(self.healed_s[-1], 3))

    def _kill(self, victim: str) -> int:
        """Kill its process, waiting until it has one that an earlier kill did not end."""
        limit = self._limit_s()

        def killed() -> int:
            pid = self.pids().get(victim, 0)
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    return pid
            return 0

        try:
            return eventually(killed, within_s=limit)
        except AssertionError:
            raise SoakFailed(f"{victim} has no process within {limit:.1f} s") from None

    def _limit_s(self) -> float:
        """Within what time something must be up."""
        return WHOLE_WITHIN_S * self.patience + self._backoff()

    def _backoff(self) -> float:
        """What is allowed on top, because restarts wait: the longest of those that may run now."""
        now = time.monotonic()
        models = max(self.pacer.recent(model, now) for model in MODEL_IDS)
        return 2 * (LAUNCHER_BACKOFF_S[self.pacer.recent("root", now)] + MODEL_BACKOFF_S[models])

    def _kill_host(self, kill: Kill) -> None:
        host = self.host or Host(self.folder / f"second-{kill.n}")
        self.host = None
        self.pacer.note(kill.victim, time.monotonic())
        host.end()
        killed = time.monotonic()
        try:
            eventually(host.is_gone, within_s=WHOLE_WITHIN_S * self.patience)
        except AssertionError:
            raise SoakFailed(f"kill {kill.n}: the second node outlived its host") from None
        self.write(kill, pid=host.process.pid, gone_s=round(time.monotonic() - killed, 3))

    def write(self, kill: Kill, **facts: object) -> None:
        line = {"n": kill.n, "at": round(time.time(), 3), "victim": kill.victim, **facts}
        with self.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")

    # ── the end ─────────────────────────────────────────────────────────────────────────────────

    def tables(self) -> dict[str, Any]:
        """The tables that must be empty when no request runs."""
        actors = self.node.status()["actors"]
        meta, inflight = actors.get("cache_meta") or {}, actors.get("inflight") or {}
        left = {key: meta.get(key, "unknown") for key in ("leases", "reservations")}
        left |= {key: inflight.get(key, "unknown") for key in ("in_flight", "held")}
        for model in MODEL_IDS:
            status = actors.get(model) or {}
            left |= {f"{model} {key}": status.get(key, "unknown") for key in ("running", "waiting")}
        return {key: value for key, value in left.items() if value != 0}

    def settle(self) -> None:
        """All kills are done: requests end, tables are empty."""
        self.load.finish()
        try:
            eventually(lambda: not self.missing(), within_s=self._limit_s())
            eventually(
                lambda: not self.tables(), within_s=QUIET_WITHIN_S * self.patience, every_s=0.2
            )
        except AssertionError:
            raise SoakFailed(f"left over: {self.missing()} {self.tables()}") from None
        for pid in self.pids().values():
            self.shared |= mapped_shared_memory(pid)

    def check_nothing_left(self) -> None:
        """After the stop."""
        for group in self.groups:
            eventually(lambda g=group: not group_pids(g), within_s=30, what="no process is left")
        eventually(lambda: port_is_free(self.node.port), within_s=30, what="the port is free")
        left = [one for one in (self.folder / "run").rglob("*") if one.is_file()]
        cache = self.folder / "cache"
        left += [one for one in cache.iterdir() if one.name not in KEPT_FILES]
        left += [one for one in self.shared if one.exists()]
        if left:
            raise SoakFailed(f"left behind: {', '.join(map(str, left))}")
        verify = [sys.executable, "-m", "runtime", "cache", "verify", "--cache-dir", str(cache)]
        checked = subprocess.run(verify, cwd=ROOT, capture_output=True, text=True, check=False)
        if checked.returncode:
            raise SoakFailed(f"damaged rows: {checked.stdout[-1000:]}{checked.stderr[-1000:]}")


@contextlib.contextmanager
def soaked(
    seed: int, folder: Path, log: Path, known: Known, patience: float = 1.0
) -> Iterator[Soak]:
    """A node under load; checked for leftovers when the block ends well."""
    with started(folder) as node:
        for model in MODELS:
            known.model.load(node, model)
        soak = Soak(node, folder, log, Load(node, seed, known), patience=patience)
        soak.load.start()
        try:
            yield soak
        finally:
            soak.load.finish(within_s=5.0)  # after a failure the others are not waited for
            if soak.host is not None:
                soak.host.end()
    soak.check_nothing_left()


def run(
    seed: int,
    kills: int,
    folder: Path,
    log: Path,
    *,
    known: Known,
    seconds_limit: float | None = None,
    patience: float = 1.0,
) -> Soak:
    """Run a soak; raises SoakFailed with the command that runs it again."""
    began, done = time.monotonic(), 0
    try:
        with soaked(seed, folder, log, known, patience) as soak:
            for kill in plan(seed, kills):
                now = time.monotonic()
                wait_s = soak.pacer.wait_s(kill.victim, now)
                if seconds_limit is not None and now + wait_s - began > seconds_limit:
                    break
                soak.step(kill)
                done = kill.n
                _no_violation(soak)
            soak.settle()
            _no_violation(soak)
    except (AssertionError, errors.LlamaActorsError, SupervisionError, OSError) as error:
        command = f"python -m tests.support.soak --seed {seed} --kills {max(done + 1, 1)}"
        command += f" --exact {known.model.exact} --jobs {len(known.jobs)}"
        command += f" --model {known.model.path}"
        raise SoakFailed(
            f"seed {seed}, after {done} kills: {type(error).__name__}: {error}\n"
            f"log: {log}; node log: {folder / 'node.log'}\nagain: {command}"
        ) from error
    return soak


def _no_violation(soak: Soak) -> None:
    found = soak.load.check()
    if found:
        raise SoakFailed("\n".join(found[:5]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.support.soak")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seconds-limit", type=float, help="stop killing after so long")
    parser.add_argument("--exact", choices=EXACT_NAMES, default="always")
    parser.add_argument(
        "--model", default=str(embedded_model_path()), help="a GGUF file, or stub; default: demo"
    )
    parser.add_argument("--jobs", type=int, help="different requests; default: 48, 400 of a stub")
    parser.add_argument(
        "--patience", type=float, default=1.0, help="times the limits that are for a quiet machine"
    )
    parser.add_argument("--folder", type=Path, help="for the node's files; default: a new one")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix=f"soak-{options.seed}-"))
    log = folder / "soak.jsonl"
    model, n_jobs = SoakModel(exact=options.exact), options.jobs or 400
    if options.model != "stub":
        model = SoakModel(str(Path(options.model).resolve()), "llama", options.exact)
        n_jobs = options.jobs or 48
    known = Known.compute(model, make_jobs(options.seed, n_jobs), folder / "reference")
    began = time.monotonic()
    try:
        soak = run(
            options.seed,
            options.kills,
            folder,
            log,
            known=known,
            seconds_limit=options.seconds_limit,
            patience=options.patience,
        )
    except SoakFailed as failed:
        print(f"FAILED {failed}", file=sys.stderr)
        return 1
    healed = sorted(soak.healed_s)
    print(
        f"ok: seed {options.seed}, {len(log.read_text().splitlines())} kills in "
        f"{time.monotonic() - began:.0f} s; whole again: median {healed[len(healed) // 2]:.2f} s, "
        f"worst {healed[-1]:.2f} s; slowest request {soak.load.slowest_s:.1f} s; "
        f"streams resumed: {soak.load.resumed}; {soak.load.n_compared} tokens compared with their "
        f"logarithms, {soak.load.n_lacking} without"
    )
    for end, count in sorted(soak.load.ends.items()):
        print(f"  {count:6} {end}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
