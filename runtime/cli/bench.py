"""``bench``: how fast a loaded model reads and writes, measured by a client of the node.

Prompts are random tokens, so that nothing of them is stored before. Requests of other callers at
the same time affect the figures. Idle sequences of the context are freed in between.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from runtime import errors
from runtime.cli.options import (
    attached_here,
    json_option,
    model_argument,
    node_command,
    port_option,
)
from runtime.cli.progress import ProgressLine
from runtime.cli.table import Column, write_table

if TYPE_CHECKING:
    from runtime.client.results import Completion
    from runtime.node import Node

_SKIP: Final = 300
"""Low token ids are control tokens in many vocabularies, or single bytes."""
_COLUMNS: Final = (
    Column("test"), Column("tokens/s", right=True), Column("first token", right=True),
    Column("warm tokens", right=True),
)  # fmt: skip


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

    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        speed = f"{statistics.fmean(self.per_second):.2f} ± {_spread(self.per_second):.2f}"
        return self.test, speed, f"{statistics.median(self.first_ms):.1f} ms", str(self.cached)


@node_command()
@port_option
@model_argument
@click.option("-p", "--prompt", type=int, default=512, metavar="N", help="tokens (512)")
@click.option("-n", "--generate", type=int, default=128, metavar="N", help="tokens (128)")
@click.option("-r", "--repeat", type=int, default=3, metavar="N", help="times (3)")
@json_option()
def command(
    *, model: str, prompt: int, generate: int, repeat: int, as_json: bool, **given: Any
) -> int:
    if prompt < 2 or generate < 2 or repeat < 1:
        raise errors.InvalidRequest("bench needs at least 2 tokens of each kind, and one round")
    with attached_here(given) as node, ProgressLine("measuring") as line:
        node.client.ready(model)
        details = node.model_info(model).details
        rows = measure(node, model, details, (prompt, generate, repeat), line)
    if as_json:
        facts = {key: details[key] for key in ("description", "n_params", "model_bytes", "params")}
        plain = {"model": model, **facts, "rows": [row.to_dict() for row in rows]}
        sys.stdout.write(json.dumps(plain, indent=2) + "\n")
    else:
        sys.stdout.write(f"{details['description']}\n")
        write_table(_COLUMNS, [row.cells() for row in rows], markdown=True)
    return 0


def measure(
    node: Node,
    model: str,
    details: dict[str, Any],
    sizes: tuple[int, int, int],
    line: ProgressLine,
) -> list[Row]:
    """Each round: a new prompt cold, again, again from storage; then a reply of so many tokens."""
    n_prompt, n_reply, repeat = sizes
    n_vocab = int(details["n_vocab"])
    rounds: list[tuple[Completion, ...]] = []
    for index in range(-1, repeat):  # the first round includes one-time work: not counted
        prompt = [random.randrange(min(_SKIP, n_vocab - 2), n_vocab - 1) for _ in range(n_prompt)]  # noqa: S311
        node.evict(model)
        cold = node.complete(model, prompt, max_tokens=1)
        live = node.complete(model, prompt, max_tokens=1)
        node.evict(model)
        stored = node.complete(model, prompt, max_tokens=1)
        reply = node.complete(model, prompt[: n_prompt // 2], max_tokens=n_reply, temperature=1.0)
        line.share((index + 2) / (repeat + 1))
        if index >= 0:
            rounds.append((cold, live, stored, reply))
    colds, lives, stores, replies = zip(*rounds, strict=True)
    return [
        _reading(f"pp{n_prompt}", colds),
        _reading(f"pp{n_prompt} warm: in context", lives),
        _reading(f"pp{n_prompt} warm: stored", stores),
        Row(
            f"tg{n_reply}",
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
