"""The overhead of supervision: restarts, detection, messages, memory and many children.

Restarts are timed from SIGKILL to the first answer of the next incarnation, by a host that sends
requests without a pause. The transport is compared with Thespian's own, which neither
authenticates nor refuses anything, in alternating rounds on the same machine.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.machine import ROOT
from bench.report import Figure, figure
from bench.stats import paired_ratios, summarise
from runtime.cli.progress import ProgressLine
from supervision import ChildKind, ChildSpec, Restart, Strategy, SupervisorSpec
from supervision.errors import SupervisionError
from supervision.messages import (
    ChildStarted,
    ReportStatus,
    StartChild,
    StatusReported,
    TerminateChild,
    new_ref,
)
from tests.support.children import Do, Echo, Echoed
from tests.support.nodes import RunningNode, running_node
from tests.support.waiting import eventually

NAME = "supervision"
_ACTOR = "tests.support.children.GoodChild"
_PACE_S = 0.1
"""Between two kills: longer than a restart, so that each one is a restart and not a second one."""


def main(quick: bool, model: Path | None = None) -> list[Figure]:
    """Every figure; no model is loaded, so ``model`` does not matter."""
    del model
    parts: tuple[Callable[[bool], list[Figure]], ...] = (
        _restarts, _node_restarts, _transport, _many_children,
    )  # fmt: skip
    figures: list[Figure] = []
    with ProgressLine(NAME) as progress:
        for number, part in enumerate(parts):
            progress.share(number / len(parts))
            figures += part(quick)
    return figures


# ── restarts ─────────────────────────────────────────────────────────────────


def _restarts(quick: bool) -> list[Figure]:
    rounds = 3 if quick else 60
    with _node(_tree(intensity=10_000)) as node:
        worker = [_kill_to_answer(node, _pid(node, "a"), "a") for _ in range(rounds)]
        subtree = [_kill_to_answer(node, _pid(node, "sub"), "d") for _ in range(rounds)]
        detection = [_kill_to_down(node, "a") for _ in range(rounds)]
    return [
        *_percentiles("restart", "worker_ms", worker, "goal p50 15"),
        *_percentiles("restart", "supervisor_with_4_children_ms", subtree, "goal p50 50"),
        *_percentiles("restart", "detection_at_a_monitoring_host_ms", detection),
    ]


def _node_restarts(quick: bool) -> list[Figure]:
    """One kill per node: the launcher waits longer before each next restart within a minute."""
    taken: list[float] = []
    for _ in range(1 if quick else 15):
        with _node(_tree(intensity=1)) as node:
            taken.append(_kill_to_answer(node, node.record.admin_pid, "a"))
            node.note_group()
    return _percentiles("restart", "node_after_admin_death_ms", taken, "goal p50 150; 7 actors")


def _kill_to_answer(node: RunningNode, pid: int, ask: str) -> float:
    """Milliseconds from SIGKILL to an answer from another process."""
    connection = node.connect()
    before = _echo(node, ask).pid
    began = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    while True:
        try:
            answer = connection.ask(ask, Echo(new_ref()), timeout_s=10)
        except SupervisionError:
            continue  # sent before it was dead, or while the node was down
        if isinstance(answer, Echoed) and answer.pid != before:
            break
    taken_ms = 1e3 * (time.perf_counter() - began)
    time.sleep(_PACE_S)  # noqa: TID251 - lets the tree settle before the next kill
    return taken_ms


def _kill_to_down(node: RunningNode, child_id: str) -> float:
    connection = node.connect()
    entry = node.up(child_id)
    ref = connection.monitor(child_id)
    began = time.perf_counter()
    os.kill(entry.pid or 0, signal.SIGKILL)
    if connection.wait_down(ref, 10) is None:
        raise RuntimeError("no Down came")
    taken_ms = 1e3 * (time.perf_counter() - began)
    node.up(child_id, after_incarnation=entry.incarnation)
    return taken_ms


# ── messages ─────────────────────────────────────────────────────────────────


def _transport(quick: bool) -> list[Figure]:
    rounds, asks, messages = (1, 50, 200) if quick else (5, 2_000, 5_000)
    ours: list[tuple[float, float, float]] = []
    plain: list[tuple[float, float, float]] = []
    with _node(_tree(intensity=1)) as node:
        for _ in range(rounds):
            ours.append(_message_figures(*_our_messages(node, asks, messages), messages))
            plain.append(_message_figures(*_plain_messages(asks, messages), messages))
    figures = []
    for index, metric, unit, goal in (
        (0, "round_trip_p50_us", "us", "goal 1.5 at most"),
        (1, "round_trip_p99_us", "us", "goal 1.5 at most"),
        (2, "messages_per_s", "1/s", ""),
    ):
        mine, theirs = [one[index] for one in ours], [one[index] for one in plain]
        ratios = summarise(paired_ratios(mine, theirs))
        figures += [
            figure(NAME, "messages, ours", metric, unit, summarise(mine)),
            figure(NAME, "messages, plain Thespian", metric, unit, summarise(theirs)),
            figure(NAME, "messages, ours over plain", metric, "", ratios, goal),
        ]
    return sorted(figures, key=lambda one: one.variant)


def _message_figures(
    trips: Sequence[float], burst_s: float, messages: int
) -> tuple[float, float, float]:
    p50, p99 = _p50_p99([1e6 * one for one in trips])
    return p50, p99, messages / burst_s


def _our_messages(node: RunningNode, asks: int, messages: int) -> tuple[list[float], float]:
    connection = node.connect()
    trips = []
    for number in range(asks + asks // 10):
        began = time.perf_counter()
        connection.ask("a", Echo(new_ref()), timeout_s=5)
        if number >= asks // 10:
            trips.append(time.perf_counter() - began)
    before = _handled(node)
    began = time.perf_counter()
    for _ in range(messages):
        connection.tell("a", Do("nothing"))
    after = _handled(node)
    burst_s = time.perf_counter() - began
    if after - before != messages:
        raise RuntimeError(f"{messages} messages were sent and {after - before} arrived")
    return trips, burst_s


def _plain_messages(asks: int, messages: int) -> tuple[list[float], float]:
    command = [sys.executable, "-m", "bench.stock_thespian", str(asks), str(messages)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    measured = json.loads(done.stdout)
    return measured["trips"], measured["burst_s"]


def _handled(node: RunningNode) -> int:
    report = node.connect().ask("a", ReportStatus(new_ref()), timeout_s=60)
    if not isinstance(report, StatusReported):
        raise TypeError(f"expected a status, received a {type(report).__name__}")
    return int(str(report.status["handled"]))


# ── many children ────────────────────────────────────────────────────────────


def _many_children(quick: bool) -> list[Figure]:
    count, rounds = (5, 1) if quick else (200, 3)
    started: list[float] = []
    stopped: list[float] = []
    pss_mib: list[float] = []
    template = ChildSpec("template", _ACTOR, restart=Restart.TRANSIENT)
    many = SupervisorSpec(Strategy.SIMPLE_ONE_FOR_ONE, template=template)
    tree = SupervisorSpec(Strategy.ONE_FOR_ONE, (_supervisor("many", many),))
    with _node(tree) as node:
        connection = node.connect()
        for _ in range(rounds):
            names = [f"child{number}" for number in range(count)]
            began = time.perf_counter()
            refs = [new_ref() for _ in names]
            streams = [
                connection.stream("many", StartChild(ref, name), idle_timeout_s=120)
                for ref, name in zip(refs, names, strict=True)
            ]
            for stream in streams:
                if not isinstance(next(iter(stream)), ChildStarted):
                    raise RuntimeError("a child did not start")
                stream.close()  # type: ignore[attr-defined]
            started.append(time.perf_counter() - began)
            pids = [one.pid for one in connection.directory() if one.id in set(names)]
            pss_mib.append(statistics.median(_pss_mib(pid) for pid in pids if pid is not None))
            began = time.perf_counter()
            streams = [
                connection.stream("many", TerminateChild(new_ref(), name), idle_timeout_s=120)
                for name in names
            ]
            for stream in streams:
                next(iter(stream))
                stream.close()  # type: ignore[attr-defined]
            stopped.append(time.perf_counter() - began)
            eventually(lambda: len(connection.directory()) == 2, what="no child is left")
    note = f"{count} children"
    return [
        figure(NAME, "many children", "start_s", "s", summarise(started), note),
        figure(NAME, "many children", "stop_s", "s", summarise(stopped), note),
        figure(NAME, "many children", "pss_per_child_mib", "MiB", summarise(pss_mib), note),
    ]


def _pss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"no Pss of pid {pid}")


# ── small helpers ────────────────────────────────────────────────────────────


def _tree(*, intensity: int) -> SupervisorSpec:
    """Seven actors: a worker, and a supervisor with four; and the root."""
    below = SupervisorSpec(
        Strategy.ONE_FOR_ALL,
        tuple(ChildSpec(name, _ACTOR) for name in ("b", "c", "e", "d")),
        intensity=intensity,
    )
    return SupervisorSpec(
        Strategy.ONE_FOR_ONE,
        (ChildSpec("a", _ACTOR), _supervisor("sub", below)),
        intensity=intensity,
    )


def _supervisor(name: str, spec: SupervisorSpec) -> ChildSpec:
    actor = "supervision.supervisor.Supervisor"
    return ChildSpec(name, actor, kind=ChildKind.SUPERVISOR, args=spec)


@contextmanager
def _node(tree: SupervisorSpec) -> Iterator[RunningNode]:
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        running_node(tree, Path(folder)) as node,
    ):
        yield node


def _pid(node: RunningNode, child_id: str) -> int:
    return node.up(child_id).pid or 0


def _echo(node: RunningNode, child_id: str) -> Echoed:
    answer = node.connect().ask(child_id, Echo(new_ref()), timeout_s=10)
    if not isinstance(answer, Echoed):
        raise TypeError(f"expected an echo, received a {type(answer).__name__}")
    return answer


def _p50_p99(values: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]


def _percentiles(
    variant: str, metric: str, values: Sequence[float], note: str = ""
) -> list[Figure]:
    p50, p99 = _p50_p99(values)
    spread = f"{min(values):.4g} to {max(values):.4g}"
    said = "; ".join(part for part in (spread, note) if part)
    return [
        Figure(NAME, variant, f"{metric} p50", p50, "ms", len(values), said),
        Figure(NAME, variant, f"{metric} p99", p99, "ms", len(values), ""),
    ]
