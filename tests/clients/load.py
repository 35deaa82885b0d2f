"""Two published load tools against the gateway, judged by their own reports.

``cache-pressure``: sessions with agents beside them, answers whose reader is gone, more contexts
than a device holds, growing conversations. ``aiperf``: many streams at once, each of several turns,
some cut off by their client. Their sizes fit the embedded model, of 4096 tokens, and two cores; a
count of theirs is about half of what this model makes of it.
"""

from __future__ import annotations

import itertools
import json
import shutil
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.clients.outcomes import Outcome
from tests.clients.processes import Ran, clean, run
from tests.clients.suite import Place, Suite
from tests.support.waiting import eventually

_DEADLINE_S = 150.0
_IDLE_S = 10.0
_N_LATER: Final = 4 * 5  # of four sessions: four turns after the first, and the last
_N_CONTEXTS: Final = 11
_LENGTHS: Final = (500, 1000, 1500)
_N_SESSIONS: Final = 50
_N_TURNS: Final = 2
_N_CUT: Final = 60
_CANCELLED: Final = 499
"""The code that aiperf gives a request that it cut off itself."""

Report = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tool:
    """One run of a tool of cache-pressure, and what its report must show beside its exit code.

    ``wrong`` returns one text for each thing that is not as it should be.
    """

    name: str
    program: str
    words: Sequence[str]
    wrong: Callable[[Report], list[str]]
    codes: Sequence[int] = (0,)


def failed_records(records: Sequence[Report]) -> list[str]:
    return [f"{one['error']} at {one}"[:300] for one in records if one["error"]]


def wrong_agents(report: Report) -> list[str]:
    """Each later turn of a session, and its last, must find all of the turn before warm."""
    records = report["records"]
    later = [r for r in records if r["phase"] != "sub" and (r["phase"] != "main" or r["step"])]
    cold = [f"a turn of which too little was warm: {r}" for r in later if r["reuse"] < 1]
    few = [] if len(later) == _N_LATER else [f"{len(later)} later turns, expected {_N_LATER}"]
    return [*failed_records(records), *cold, *few]


def wrong_aborts(report: Report) -> list[str]:
    records = report["records"]
    kept = [f"an answer was not cut off: {r}" for r in records if not r["aborted"]]
    return failed_records(records) + kept + ([] if records else ["no runs"])


def wrong_retention(report: Report) -> list[str]:
    """Every context is still there, though they are twice the size that was stated."""
    failed = failed_records([*report["hydrate"], *report["verify"]])
    if report["cold_ttft"] is None:
        failed.append("a repeated context was not faster than a new one")
    if (kept := report["retained"]) != _N_CONTEXTS:
        failed.append(f"{kept} of {_N_CONTEXTS} contexts were warm")
    return failed


def wrong_needles(report: Report) -> list[str]:
    """The embedded model knows small stories and finds no needle; it must read and answer."""
    results = report["results"]
    short = [
        f"a prompt of {r['prompt_tokens']} tokens for {r['target']}"
        for r in results
        if not r["error"] and (r["prompt_tokens"] < r["target"] or not r["completion_tokens"])
    ]
    few = [] if len(results) == len(_LENGTHS) else [f"{len(results)} prompts were sent"]
    return failed_records(results) + short + few


def wrong_growth(report: Report) -> list[str]:
    """Each step finds all of the prompt before it warm; a second run finds its first one warm."""
    records = report["records"]
    cold = [
        f"{now['cached']} tokens were warm, fewer than the {before['prompt']} of the step before"
        for before, now in itertools.pairwise(records)
        if now["run"] == before["run"] and not now["error"] and now["cached"] < before["prompt"]
    ]
    first = [r for r in records if r["run"] == 1 and r["step"] == 0]
    if not first or not first[0]["cached"]:
        cold.append("the first prompt of the second run was cold")
    return failed_records(records) + cold


TOOLS: Final = (
    Tool(
        name="agent-sim",
        program="agent-sim",
        words=(
            *("--sessions", "4", "--main-tokens", "1000", "--step-tokens", "200"),
            *("--sub-tokens", "400", "--finalize-tokens", "50", "--max-tokens", "24", "--no-viz"),
            # Of four sessions on two cores one waits for another for longer than it computes.
            *("--miss-threshold", "1", "--ttft-ratio", "20"),
        ),
        wrong=wrong_agents,
    ),
    Tool(
        name="abort-sim",
        program="abort-sim",
        # What it asks after the cut is 122 tokens, less than a twentieth of these contexts alone.
        words=(
            *("--context-tokens", "1600", "--thinking-tokens", "6"),
            *("--max-tokens", "256", "--runs", "3"),
        ),
        wrong=wrong_aborts,
    ),
    Tool(
        name="retention",
        program="cache-pressure",
        words=(
            *("--kv-size", "8000", "--context-tokens", "1500"),
            *("--num-contexts", str(_N_CONTEXTS)),
        ),
        wrong=wrong_retention,
    ),
    Tool(
        name="needle-test",
        program="needle-test",
        words=("--lengths", ",".join(map(str, _LENGTHS)), "--max-tokens", "16"),
        wrong=wrong_needles,
        codes=(0, 1),
    ),
    Tool(
        name="perf-sim",
        program="perf-sim",
        words=(
            *("--max-context", "1700", "--step-tokens", "200"),
            *("--output-tokens", "32", "--runs", "2"),
        ),
        wrong=wrong_growth,
    ),
)
_SALTED: Final = ("agent-sim", "abort-sim", "needle-test", "perf-sim")


def judged(name: str, ran: Ran, codes: Sequence[int], wrong: Sequence[str]) -> Outcome:
    """One outcome of a run: its exit code and what its report shows."""
    if ran.code not in codes:
        return Outcome(name, passed=False, detail=" | ".join([ran.detail, *wrong[:3]]))
    return Outcome(name, passed=not wrong, detail=" | ".join(wrong)[:900])


def _report(file: Path) -> Report | None:
    try:
        found: Report = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _cache_pressure(place: Place, tool: Tool) -> Outcome:
    file = place.folder / f"{tool.name}.json"
    file.unlink(missing_ok=True)  # of a run before, when the folder is kept
    ran = run(
        [
            *(place.installed.bin_load / tool.program, "--base-url", f"{place.server.url}/v1"),
            *("--model", place.server.model, "--output", file),
            *(("--salt", "1") if tool.program in _SALTED else ()),
            *tool.words,
        ],
        env=clean(place.folder),
        cwd=place.folder,
        deadline_s=_DEADLINE_S,
    )
    (place.folder / f"{tool.name}.txt").write_text(ran.output, encoding="utf-8")
    report = _report(file)
    return judged(
        tool.name, ran, tool.codes, ["no report"] if report is None else tool.wrong(report)
    )


def wrong_streams(report: Report, *, n_requests: int) -> list[str]:
    """What is wrong with an export of aiperf in which no request may fail."""
    wrong = [f"failed requests: {one}"[:300] for one in report["error_summary"]]
    n_done = _figure(report, "request_count")
    if n_done != n_requests:
        wrong.append(f"{n_done:g} requests were answered, expected {n_requests}")
    for name in ("time_to_first_token", "inter_token_latency", "request_throughput"):
        if not _figure(report, name) > 0:
            wrong.append(f"no {name}")
    if not _figure(report, "total_usage_prompt_cache_read_tokens") > 0:
        wrong.append("nothing was warm, though conversations went on")
    return wrong


def wrong_cuts(report: Report, *, n_requests: int) -> list[str]:
    """What is wrong with an export of aiperf that cut off some of its own requests, and no more."""
    errors = report["error_summary"]
    n_cut = sum(e["count"] for e in errors if e["error_details"]["code"] == _CANCELLED)
    wrong = [
        f"failed requests: {one}"[:300]
        for one in errors
        if one["error_details"]["code"] != _CANCELLED
    ]
    n_done = _figure(report, "request_count")
    if not n_cut:
        wrong.append("no request was cut off")
    if n_done + n_cut != n_requests:
        wrong.append(f"{n_done:g} answered and {n_cut} cut off, expected {n_requests}")
    return wrong


def wrong_drops(records: Sequence[Report], *, n_requests: int) -> list[str]:
    """What is wrong with the records of requests of which aiperf cut off each one."""
    codes = [(one.get("error") or {}).get("code") for one in records]
    if codes == [_CANCELLED] * n_requests:
        return []
    return [f"{codes.count(_CANCELLED)} of {n_requests} were cut off: {codes}"]


def _figure(report: Report, name: str) -> float:
    """The mean, or the total, of one figure; 0.0 where the export has none."""
    return float((report.get(name) or {}).get("avg") or 0.0)


def _aiperf(place: Place, name: str, words: Sequence[str]) -> tuple[Ran, Path]:
    """Run aiperf; its exports are in the folder that is returned."""
    folder = place.folder / name
    shutil.rmtree(folder, ignore_errors=True)  # of a run before, when the folder is kept
    ran = run(
        [
            *(place.installed.bin_load / "aiperf", "profile", "--model", place.server.model),
            *("--url", place.server.url, "--endpoint-type", "chat", "--streaming"),
            *("--tokenizer", "builtin", "--use-server-token-count", "--random-seed", "1"),
            *("--concurrency", "8", "--isl", "80", "--isl-stddev", "16"),
            *("--workers-max", "2", "--record-processors", "1", "--ui", "none"),
            *("--no-gpu-telemetry", "--no-server-metrics", "--output-artifact-dir", folder),
            *words,
        ],
        # Its tokenizer is a file that it would fetch; a package beside it carries the same file.
        env=clean(place.folder, TIKTOKEN_CACHE_DIR=str(place.installed.encodings)),
        cwd=place.folder,
        deadline_s=_DEADLINE_S,
    )
    (place.folder / f"{name}.txt").write_text(ran.output, encoding="utf-8")
    return ran, folder


def _streams(
    place: Place, name: str, words: Sequence[str], wrong: Callable[[Report], list[str]]
) -> Outcome:
    ran, folder = _aiperf(place, name, ("--osl", "16", *words))
    report = _report(folder / "profile_export_aiperf.json")
    if report is None:
        return judged(name, ran, (0,), ["no export"])
    print(f"    {name}: {figures(report)}")
    return judged(name, ran, (0,), wrong(report))


def _dropped(place: Place) -> Outcome:
    """Answers of thousands of tokens, each of which its reader leaves: ``_idle`` comes after.

    aiperf exits with 1, because it has no answers, and writes its records alone.
    """
    n_requests = 40
    ran, folder = _aiperf(
        place,
        "dropped-streams",
        (
            *("--request-count", str(n_requests), "--osl", "3000"),
            *("--extra-inputs", "ignore_eos:true"),
            *("--request-cancellation-rate", "100", "--request-cancellation-delay", "0.5"),
        ),
    )
    try:
        lines = (folder / "profile_export.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    wrong = wrong_drops([json.loads(line) for line in lines], n_requests=n_requests)
    return judged("dropped-streams", ran, (1,), wrong)


def figures(report: Report) -> str:
    """The figures of an export in one line."""
    return (
        f"first token {_figure(report, 'time_to_first_token'):.0f} ms, "
        f"between tokens {_figure(report, 'inter_token_latency'):.1f} ms, "
        f"{_figure(report, 'request_throughput'):.1f} requests/s (means)"
    )


def _idle(place: Place) -> Outcome:
    """Nothing runs and nothing waits once the tools have ended, though many were cut off."""
    last: dict[str, float] = {}

    def is_idle() -> bool:
        with urllib.request.urlopen(f"{place.server.url}/metrics", timeout=5) as answer:
            last.update(busy(answer.read().decode()))
        return len(last) == 2 and not any(last.values())

    try:
        eventually(is_idle, within_s=_IDLE_S, every_s=0.2, what="the gateway is idle")
    except (AssertionError, OSError) as error:
        return Outcome("idle", passed=False, detail=f"{error}: {last}")
    return Outcome("idle", passed=True)


def busy(metrics: str) -> dict[str, float]:
    """Requests that run and that wait, by the name of the metric."""
    wanted = ("llamacpp:requests_processing", "llamacpp:requests_deferred")
    pairs = (line.rpartition(" ") for line in metrics.splitlines())
    return {name: float(value) for name, _, value in pairs if name.startswith(wanted)}


def _outcomes(place: Place) -> list[Outcome]:
    n_turns = _N_SESSIONS * _N_TURNS
    turns = ("--conversation-num", str(_N_SESSIONS), "--conversation-turn-mean", str(_N_TURNS))
    cuts = ("--request-cancellation-rate", "30", "--request-cancellation-delay", "0.1")
    return [
        *(_cache_pressure(place, tool) for tool in TOOLS),
        _streams(place, "streams", turns, lambda r: wrong_streams(r, n_requests=n_turns)),
        _streams(
            place,
            "cut-streams",
            ("--request-count", str(_N_CUT), *cuts),
            lambda r: wrong_cuts(r, n_requests=_N_CUT),
        ),
        _dropped(place),
        _idle(place),
    ]


LOAD = Suite(
    name="load",
    about="cache-pressure and aiperf: sessions, cut-off answers, contexts, streams; Python 3.12",
    floor=9,
    known=(),
    outcomes=_outcomes,
    needs_load=True,
)
