"""HTTP: the first token and many requests at once, beside llama-server; what the gateway adds.

Both servers are asked in the same words (``POST /completion`` with token ids, streamed), by the
same client, and their runs alternate. What the gateway adds is the difference to the same request
over the host API, on the same node. CPU is that of the HTTP worker's process alone; llama-server
speaks HTTP in the process that computes, so there is nothing to compare it with.

Tenants: one key's prompts are timed by another key, beside prompts that no key has sent. The area
under the curve is how often the first kind is faster: 0.5 tells nothing, 1 tells all.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from bench import peers
from bench.bare import BareModel, Facts
from bench.llama_server import CONFIGURATION, LlamaServer
from bench.report import Figure, figure
from bench.stats import paired_differences, paired_ratios, summarise
from bench.subjects import (
    MODEL_ID,
    Subject,
    load,
    node_for_measuring,
    random_prompt,
    subjects,
    wait_until_persisted,
)
from runtime import Node, RuntimeConfig
from runtime.cli.progress import ProgressLine
from runtime.gateway.keys import new_key
from runtime.settings.gateway import GatewaySettings, Listen
from tests.support.nodes import free_port
from tests.support.runtime_nodes import pid_of

NAME = "gateway"
AGENTS, EACH = 8, 8
"""Agents, and requests of each at the same time; llama-server has a slot for each agent."""
_REST_S = 0.2
"""Before each request: threads of the server that answered last spin for some milliseconds more."""
_STREAMS = 4
_WORKER = "http:0"


@dataclass(frozen=True, slots=True)
class _Plan:
    """How much is measured."""

    n_repeat: int = 1024
    repeats: int = 12
    n_shared: int = 128
    n_own: int = 8
    n_reply: int = 8
    at_once: int = 1
    n_streamed: int = 1000
    added: int = 60
    pairs: int = 1000
    n_private: int = 128

    @property
    def n_ctx(self) -> int:
        return self.n_repeat + AGENTS * self.n_shared + AGENTS * EACH * 64


_QUICK = _Plan(64, 2, 32, 4, 2, 1, 20, 3, 4, 32)


@dataclass(frozen=True, slots=True)
class Place:
    """A server that streams completions."""

    port: int
    key: str = ""

    def first_ms(self, tokens: Sequence[int], n_predict: int = 1) -> tuple[float, float]:
        """Milliseconds until the first token, and until the end."""
        body = {
            "prompt": list(tokens), "n_predict": n_predict, "temperature": 0.0,
            "cache_prompt": True, "ignore_eos": True, "stream": True,
        }  # fmt: skip
        headers = {"content-type": "application/json"}
        headers |= {"authorization": f"Bearer {self.key}"} if self.key else {}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        with contextlib.closing(connection):
            connection.connect()
            began = time.perf_counter()
            connection.request("POST", "/completion", json.dumps(body), headers)
            answer = connection.getresponse()
            first = 0.0
            data = b""
            while part := answer.read1(65536):
                data += part
                if not first and b"data: {" in data:
                    first = time.perf_counter() - began
            took = time.perf_counter() - began
        if answer.status != http.HTTPStatus.OK or data.count(b'"stop":true') != 1:
            raise RuntimeError(f"no whole answer: {answer.status} {data[-300:]!r}")
        return 1e3 * first, 1e3 * took

    def read(self, path: str) -> bytes:
        """A whole answer."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port)) as connection:
            connection.request("GET", path)
            return connection.getresponse().read()


def main(quick: bool, model: Path | None = None) -> list[Figure]:
    """Every figure; those beside llama-server only where it is built."""
    plan = _QUICK if quick else _Plan()
    found = subjects(quick=quick, model=model)
    small, big = found[0], found[-1]
    figures = _added(small, plan) + _tenants(small, plan)
    lacking = peers.missing(peers.SERVER)
    if lacking:
        print(f"{NAME} beside llama-server is skipped: {lacking}")
        return figures
    return figures + _beside(big, plan)


@contextlib.contextmanager
def _gateway(where: Path, keys_file: Path | None = None) -> Iterator[tuple[Node, Place]]:
    port = free_port()
    settings = GatewaySettings(
        (Listen("127.0.0.1", port),), keys_file=None if keys_file is None else str(keys_file)
    )
    config = RuntimeConfig(
        gateway=settings,
        cache_dir=where / "cache",
        runtime_dir=where / "run",
        log_file=where / "node.log",
    )
    with node_for_measuring(where, config=config) as node:
        yield node, Place(port)


def _facts(subject: Subject) -> Facts:
    with BareModel(subject.path, subject.params) as bare:
        return bare.facts


# --- what it adds -------------------------------------------------------------------------------


def _added(subject: Subject, plan: _Plan) -> list[Figure]:
    """The first token over HTTP and over the host API; CPU of the worker for each event."""
    facts = _facts(subject)
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        ProgressLine(f"{NAME} {subject.name}") as progress,
        _gateway(Path(folder)) as (node, place),
    ):
        load(node, subject)
        prompt = random_prompt(facts, 64, seed=7)
        place.first_ms(prompt)
        over_http: list[float] = []
        by_host: list[float] = []
        for number in range(plan.added):
            progress.share(0.5 * number / plan.added)
            over_http.append(place.first_ms(prompt)[0])
            by_host.append(_host_first_ms(node, prompt))
        added = summarise(paired_differences(over_http, by_host))
        pid = pid_of(node, _WORKER)
        per_event: list[float] = []
        for number in range(3):
            progress.share(0.5 + number / 6)
            before = cpu_s(pid)
            prompts = [random_prompt(facts, 16, seed=100 * number + n) for n in range(_STREAMS)]
            with ThreadPoolExecutor(_STREAMS) as pool:
                list(pool.map(lambda one: place.first_ms(one, plan.n_streamed), prompts))
            spent = cpu_s(pid) - before
            per_event.append(1e6 * spent / (_STREAMS * plan.n_streamed))
    return [
        figure(NAME, subject.name, "added_first_token_ms", "ms", added, "goal 1"),
        figure(
            NAME, f"{subject.name}, {_STREAMS} streams", "worker_cpu_per_token_us", "us",
            summarise(per_event), "goal 60; the whole process, parsing and logging included",
        ),
    ]  # fmt: skip


def _host_first_ms(node: Node, prompt: Sequence[int]) -> float:
    began = time.perf_counter()
    with node.stream(MODEL_ID, list(prompt), max_tokens=1, temperature=0.0) as events:
        for _ in events:
            break
        first = time.perf_counter() - began
        for _ in events:
            pass
    return 1e3 * first


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- tenants ------------------------------------------------------------------------------------


def _tenants(subject: Subject, plan: _Plan) -> list[Figure]:
    facts = _facts(subject)
    made = {name: new_key() for name in ("alice", "bob")}
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        ProgressLine(f"{NAME} tenants") as progress,
    ):
        keys = Path(folder) / "keys.toml"
        keys.write_text(
            "".join(f'[keys.{name}]\nsha256 = "{digest}"\n' for name, (_, digest) in made.items()),
            encoding="utf-8",
        )
        with _gateway(Path(folder), keys) as (node, place):
            load(node, subject)
            alice, bob = (replace(place, key=made[name][0]) for name in ("alice", "bob"))
            bob.first_ms(random_prompt(facts, plan.n_private, seed=1))
            seen: list[float] = []
            unseen: list[float] = []
            own: list[float] = []
            for number in range(plan.pairs):
                progress.share(number / plan.pairs)
                secret = random_prompt(facts, plan.n_private, seed=10_000 + 2 * number)
                other = random_prompt(facts, plan.n_private, seed=10_001 + 2 * number)
                alice.first_ms(secret)
                order = ((secret, seen), (other, unseen))
                for prompt, times in order if number % 2 else order[::-1]:
                    times.append(bob.first_ms(prompt)[0])
                own.append(alice.first_ms(secret)[0])
    variant = f"{subject.name}, {plan.n_private} tokens"
    said = f"goal 0.55; {plan.pairs} prompts of another key, and as many that no key has sent"
    return [
        Figure(NAME, variant, "tenant_auc", _auc(seen, unseen), "", plan.pairs, said),
        Figure(
            NAME, variant, "own_prompt_auc", _auc(own, unseen), "", plan.pairs,
            "the key's own prompts again: what can be seen without namespaces",
        ),
        Figure(NAME, variant, "unseen_first_token_ms", median(unseen), "ms", plan.pairs),
    ]  # fmt: skip


def _auc(fast: Sequence[float], slow: Sequence[float]) -> float:
    """How often one of ``fast`` is below one of ``slow``; equal ones count as a half."""
    won = sum((a < b) + (a == b) / 2 for a in fast for b in slow)
    return won / (len(fast) * len(slow))


# --- beside llama-server ------------------------------------------------------------------------


def _beside(subject: Subject, plan: _Plan) -> list[Figure]:
    params = replace(subject.params, n_ctx=plan.n_ctx, n_seq_max=AGENTS)
    subject = Subject(subject.name, subject.path, params)
    facts = _facts(subject)
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        ProgressLine(f"{NAME} {subject.name}") as progress,
    ):
        where = Path(folder)
        with (
            LlamaServer(subject.path, params, where / "slots") as server,
            _gateway(where / "node") as (node, ours),
        ):
            load(node, subject)
            theirs = Place(server.port)
            for place in (theirs, ours):
                place.first_ms(random_prompt(facts, 32, seed=77), 2)
            figures = _many(node, ours, theirs, facts, subject, plan, progress)
            return figures + _repeat(node, ours, theirs, facts, subject, plan)


def _repeat(
    node: Node, ours: Place, theirs: Place, facts: Facts, subject: Subject, plan: _Plan
) -> list[Figure]:
    prompt = random_prompt(facts, plan.n_repeat, seed=500)
    for place in (theirs, ours):
        place.first_ms(prompt)
    wait_until_persisted(node)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(plan.repeats):
        for found, place in zip(times, (ours, theirs), strict=True):
            time.sleep(_REST_S)  # noqa: TID251 - nothing is waited for: the other's threads rest
            found.append(place.first_ms(prompt)[0])
    variant = f"{subject.name}, {plan.n_repeat} tokens again"
    return _pairs(variant, "first_token", "ms", *times, "goal 0.1")


def _many(
    node: Node,
    ours: Place,
    theirs: Place,
    facts: Facts,
    subject: Subject,
    plan: _Plan,
    progress: ProgressLine,
) -> list[Figure]:
    """64 requests at once, eight to each of eight prompts."""
    totals: tuple[list[float], list[float]] = ([], [])
    firsts: tuple[list[float], list[float]] = ([], [])
    for number in range(plan.at_once):
        for side, place in enumerate((ours, theirs)):
            progress.share((2 * number + side) / (2 * plan.at_once))
            prompts = [
                one
                for agent in range(AGENTS)
                for one in _family(facts, plan, 10_000 * (2 * number + side + 1) + 100 * agent)
            ]
            began = time.perf_counter()
            with ThreadPoolExecutor(len(prompts)) as pool:
                taken = list(
                    pool.map(lambda one, to=place: to.first_ms(one, plan.n_reply)[0], prompts)
                )
            totals[side].append(time.perf_counter() - began)
            firsts[side].append(sorted(taken)[int(0.99 * (len(taken) - 1))])
        wait_until_persisted(node)
    variant = f"{subject.name}, {AGENTS * EACH} at once, {plan.n_shared} + {plan.n_own} tokens"
    return _pairs(variant, "total", "s", *totals, "goal 0.5") + _pairs(
        variant, "p99_first_token", "ms", *firsts, "goal 0.5"
    )


def _family(facts: Facts, plan: _Plan, seed: int) -> list[list[int]]:
    shared = random_prompt(facts, plan.n_shared, seed)
    return [shared + random_prompt(facts, plan.n_own, seed + 1 + n) for n in range(EACH)]


def _pairs(
    variant: str, what: str, unit: str, ours: Sequence[float], theirs: Sequence[float], goal: str
) -> list[Figure]:
    ratio = summarise(paired_ratios(ours, theirs))
    return [
        figure(NAME, variant, f"{what}_ours_{unit}", unit, summarise(ours)),
        figure(NAME, variant, f"{what}_server_{unit}", unit, summarise(theirs), CONFIGURATION),
        figure(NAME, variant, f"{what}_ours_over_server", "x", ratio, goal),
    ]
