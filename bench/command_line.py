"""The command line's own time to a first token: above the same request over the host API.

A command is timed from the start of its process to the first byte on its standard output, which is
the first token's text. Beside it, in turn, the same prompt is streamed by this process, which is
connected and has imported everything. The prompt is warm for both. ``own_time_ms`` is the
difference within a pair: the interpreter, imports, reading the arguments, and connecting.
``cpu_ms`` is what the whole command computes, its end included: the steadier figure where a
machine is busy.

Modules come from bytecode, as after an installation: it is written once into a folder of the
benchmark's, whatever the environment has about it.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.machine import ROOT
from bench.report import Figure, figure
from bench.stats import paired_differences, summarise
from bench.subjects import MODEL_ID, load, node_for_measuring, subjects
from runtime import CompletionStream, Node, TokenEvent
from runtime.cli.progress import ProgressLine

NAME = "command_line"
PAIRS, QUICK_PAIRS = 25, 2
_PROMPT = "Once upon a time"
_TOKENS = 4
_TIMEOUT_S = 120.0


@dataclass(slots=True)
class _Way:
    """One command, and the same request over the host API; milliseconds, by pair."""

    name: str
    words: tuple[str, ...]
    given: str | None
    """Standard input; None: it is empty."""
    stream: Callable[[Node], CompletionStream]
    command_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    api_ms: list[float] = field(default_factory=list)


def main(quick: bool, model: Path | None = None) -> list[Figure]:
    """Measure the first subject: the time is the same for every model."""
    subject = subjects(quick=quick, model=model)[0]
    pairs = QUICK_PAIRS if quick else PAIRS
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, ProgressLine(NAME) as progress:
        where = Path(folder)
        with node_for_measuring(where) as node:
            load(node, subject)
            variables = _variables(node, where)
            ways = _ways(has_template=_has_template(node))
            bare: list[float] = []
            for number in range(pairs + 1):
                progress.share(number / (pairs + 1))
                bare.append(_interpreter_ms(variables))
                for way in ways:
                    before = _cpu_of_children_ms()
                    way.command_ms.append(_command_ms(way, variables))
                    way.cpu_ms.append(_cpu_of_children_ms() - before)
                    way.api_ms.append(_api_ms(way.stream(node)))
    found = [
        figure(NAME, subject.name, "interpreter_ms", "ms", summarise(bare[1:]), "python -c ''")
    ]
    for way in ways:
        found += _figures(f"{subject.name}, {way.name}", way)
    return found


def _ways(*, has_template: bool) -> list[_Way]:
    """A model without a chat template is not chatted with, and ``run`` gives it plain text."""
    few = ("--max-tokens", str(_TOKENS))

    def plain(node: Node) -> CompletionStream:
        return node.stream(MODEL_ID, _PROMPT, max_tokens=_TOKENS)

    def turn(node: Node) -> CompletionStream:
        messages = [{"role": "user", "content": _PROMPT}]
        return node.stream_chat(MODEL_ID, messages, max_tokens=_TOKENS)

    asked = turn if has_template else plain
    found = [
        _Way("complete", ("complete", MODEL_ID, _PROMPT, *few), None, plain),
        _Way("run", ("run", MODEL_ID, _PROMPT, *few), None, asked),
    ]
    if has_template:
        found.append(_Way("chat", ("chat", MODEL_ID, *few), _PROMPT + "\n", turn))
    return found


def _has_template(node: Node) -> bool:
    return bool(node.model_info(MODEL_ID).details.get("chat_template"))


def _variables(node: Node, where: Path) -> dict[str, str]:
    """The environment of a user whose node this is."""
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return inherited | {
        "PYTHONPYCACHEPREFIX": str(where / "bytecode"),
        "LLAMA_ACTORS_RUNTIME_DIR": str(where / "run"),
        "LLAMA_ACTORS_PORT": str(node.port),
    }


def _command_ms(way: _Way, variables: Mapping[str, str]) -> float:
    """From the start of the process to the first byte on its standard output."""
    began = time.perf_counter()
    with _started(("-m", "runtime", *way.words), variables) as process:
        if process.stdin is not None:
            process.stdin.write((way.given or "").encode())
            process.stdin.close()
        if process.stdout is None or not process.stdout.read(1):
            raise RuntimeError(f"{way.name} printed nothing; its exit code: {process.wait()}")
        took = 1e3 * (time.perf_counter() - began)
        process.stdout.read()
        if process.wait(_TIMEOUT_S) != 0:
            raise RuntimeError(f"{way.name} ended with {process.returncode}")
    return took


def _interpreter_ms(variables: Mapping[str, str]) -> float:
    """Python that starts and ends: no command takes less."""
    began = time.perf_counter()
    with _started(("-c", ""), variables) as process:
        process.communicate(timeout=_TIMEOUT_S)
    return 1e3 * (time.perf_counter() - began)


def _cpu_of_children_ms() -> float:
    """Of children that have ended, so not of the node."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1e3 * (used.ru_utime + used.ru_stime)


def _started(words: Sequence[str], variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        env=dict(variables),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    )


def _api_ms(stream: CompletionStream) -> float:
    """From the call to the first token, of a process that is connected; read to its end."""
    began = time.perf_counter()
    took = None
    with stream as events:
        for event in events:
            if took is None and isinstance(event, TokenEvent):
                took = 1e3 * (time.perf_counter() - began)
    if took is None:
        raise RuntimeError("the reply has no token")
    return took


def _figures(variant: str, way: _Way) -> list[Figure]:
    """Without the first pair, in which bytecode is written and the prompt is cold."""
    commands, calls = way.command_ms[1:], way.api_ms[1:]
    own = summarise(paired_differences(commands, calls))
    return [
        figure(NAME, variant, "first_token_ms", "ms", summarise(commands)),
        figure(NAME, variant, "host_api_ms", "ms", summarise(calls)),
        figure(NAME, variant, "own_time_ms", "ms", own, "goal 150"),
        figure(NAME, variant, "cpu_ms", "ms", summarise(way.cpu_ms[1:])),
    ]
