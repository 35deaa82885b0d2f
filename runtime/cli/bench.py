"""``bench``: how fast a loaded model reads and writes, through the node and as its callers see it.

Prompts are random tokens, so nothing of them is stored before; what other callers do at the same
time shows in the figures. Idle sequences of the context are freed in between.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from runtime import errors
from runtime.cli.node_flags import add_port, attached
from runtime.cli.progress import ProgressLine

if TYPE_CHECKING:
    from runtime.client.results import Completion
    from runtime.node import Node

_SKIP: Final = 300
"""Low token ids are control tokens in many vocabularies, or single bytes."""


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement, several times."""

    test: str
    n_tokens: int
    per_second: tuple[float, ...]
    """Tokens of the row's own kind: read, or generated; by the model's clock."""
    first_ms: tuple[float, ...]
    """Until the first token, by the caller's clock."""
    cached: int
    """Tokens of the prompt that were warm."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "test": self.test,
            "tokens": self.n_tokens,
            "tokens_per_second": [round(one, 2) for one in self.per_second],
            "mean": round(statistics.fmean(self.per_second), 2),
            "stdev": round(_spread(self.per_second), 2),
            "first_token_ms": [round(one, 3) for one in self.first_ms],
            "cached_tokens": self.cached,
        }


def add_bench(bench: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bench``."""
    add_port(bench)
    bench.add_argument("model", metavar="MODEL")
    bench.add_argument("-p", "--prompt", type=int, default=512, metavar="N", help="tokens (512)")
    bench.add_argument("-n", "--generate", type=int, default=128, metavar="N", help="tokens (128)")
    bench.add_argument("-r", "--repeat", type=int, default=3, metavar="N", help="times (3)")
    bench.add_argument("--json", action="store_true", help="print one JSON object")
    bench.set_defaults(run=bench_command)


def bench_command(arguments: argparse.Namespace) -> int:
    """Measure and print; the exit code."""
    n_prompt, n_said, repeat = arguments.prompt, arguments.generate, arguments.repeat
    if n_prompt < 2 or n_said < 2 or repeat < 1:
        raise errors.InvalidRequest("bench needs at least 2 tokens of each kind, and one round")
    with attached(arguments) as node, ProgressLine("measuring") as line:
        node.client.ready(arguments.model)
        details = node.model_info(arguments.model).details
        rows = measure(node, arguments.model, details, (n_prompt, n_said, repeat), line)
    if arguments.json:
        facts = {key: details[key] for key in ("description", "n_params", "model_bytes", "params")}
        plain = {"model": arguments.model, **facts, "rows": [row.to_dict() for row in rows]}
        sys.stdout.write(json.dumps(plain, indent=2) + "\n")
    else:
        sys.stdout.write(_table(str(details["description"]), rows))
    return 0


def measure(
    node: Node,
    model: str,
    details: dict[str, Any],
    sizes: tuple[int, int, int],
    line: ProgressLine,
) -> list[Row]:
    """Each round: a new prompt cold, again, again from storage; then a reply of so many tokens."""
    n_prompt, n_said, repeat = sizes
    n_vocab = int(details["n_vocab"])
    rounds: list[tuple[Completion, ...]] = []
    for index in range(-1, repeat):  # the first round pays what no later one does: not counted
        prompt = [random.randrange(min(_SKIP, n_vocab - 2), n_vocab - 1) for _ in range(n_prompt)]  # noqa: S311
        node.evict(model)
        cold = node.complete(model, prompt, max_tokens=1)
        live = node.complete(model, prompt, max_tokens=1)
        node.evict(model)
        stored = node.complete(model, prompt, max_tokens=1)
        said = node.complete(model, prompt[: n_prompt // 2], max_tokens=n_said, temperature=1.0)
        line.share((index + 2) / (repeat + 1))
        if index >= 0:
            rounds.append((cold, live, stored, said))
    colds, lives, stores, replies = zip(*rounds, strict=True)
    return [
        _reading(f"pp{n_prompt}", colds),
        _reading(f"pp{n_prompt} warm: in context", lives),
        _reading(f"pp{n_prompt} warm: stored", stores),
        Row(
            f"tg{n_said}",
            max(one.usage.completion_tokens for one in replies),
            tuple(one.timings.tokens_per_second for one in replies),
            tuple(one.timings.ttft_ms for one in replies),
            replies[-1].usage.cached_tokens,
        ),
    ]


def _reading(test: str, done: tuple[Completion, ...]) -> Row:
    """Tokens a second until the first token came; of a warm prompt, all of it counts as read."""
    return Row(
        test,
        done[0].usage.prompt_tokens,
        tuple(1e3 * one.usage.prompt_tokens / max(1e-3, one.timings.ttft_ms) for one in done),
        tuple(one.timings.ttft_ms for one in done),
        done[-1].usage.cached_tokens,
    )


def _spread(numbers: tuple[float, ...]) -> float:
    return statistics.stdev(numbers) if len(numbers) > 1 else 0.0


def _table(description: str, rows: list[Row]) -> str:
    width = max(len(row.test) for row in rows)
    lines = [
        f"{description}\n",
        f"| {'test':<{width}} | {'tokens/s':>22} | {'first token':>12} | {'warm tokens':>11} |\n",
        f"| {'-' * width} | {'-' * 21}: | {'-' * 11}: | {'-' * 10}: |\n",
    ]
    for row in rows:
        speed = f"{statistics.fmean(row.per_second):.2f} ± {_spread(row.per_second):.2f}"
        first = f"{statistics.median(row.first_ms):.1f} ms"
        lines.append(f"| {row.test:<{width}} | {speed:>22} | {first:>12} | {row.cached:>11} |\n")
    return "".join(lines)
