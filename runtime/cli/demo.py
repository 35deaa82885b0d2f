"""``demo``: shows the promises of this project, on the embedded model.

``--model`` takes a GGUF file of your own instead.

One table, six rows: cold, the same prompt, a longer one, the next turn, after ``kill -9`` of the
model's process, after a restart of the whole node; and a stream over HTTP whose server process is
killed. It succeeds only if every row reused and printed what it must, the stream was whole, and
nothing is left behind afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from actors.messages.actor_ids import model_actor_id
from cache.keys import BLOCK_TOKENS
from runtime.cli.demo_http import KilledStream, killed_stream
from runtime.cli.options import USER_PATH, json_option, node_command
from runtime.cli.table import Column, write_table
from runtime.client.cache.upkeep import is_flushed
from runtime.client.results import Completion
from runtime.client.tree import TreeNode
from runtime.embedded import EMBEDDED_MODEL_ID
from runtime.embedded.prompts import long_prompt
from runtime.errors import LlamaActorsError
from runtime.node import Node
from runtime.settings.config import RuntimeConfig
from runtime.settings.gateway import GatewaySettings, Listen
from supervision.ports import free_port

PROMPT_WORDS: Final = 1500  # about 2,000 tokens: long enough that reading it cold takes a while
REPLY_TOKENS: Final = 24
SETTLE_TIMEOUT_S: Final = 30.0
# Where steps are slow, as on a busy machine, an idle sequence costs more than restoring its rows.
WARM: Final = ("live", "ram")
MODEL: Final = EMBEDDED_MODEL_ID  # the id, whatever file it is
_COLUMNS: Final = (
    Column("ROW", 28), Column("PROMPT", 7, right=True), Column("REUSED", 7, right=True),
    Column("HIT", 8), Column("TIER", 5), Column("FIRST TOKEN", right=True),
    Column("GAIN", right=True),
)  # fmt: skip

Check = Callable[[Completion], str | None]
Must = Callable[..., Check]


class DemoFailed(LlamaActorsError):
    """A row did not reuse what it must, or something was left behind."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    label: str
    completion: Completion
    speed_up: float
    trouble: str | None

    def to_dict(self) -> dict[str, Any]:
        usage, cache = self.completion.usage, self.completion.cache
        return {
            "row": self.label,
            "prompt_tokens": usage.prompt_tokens,
            "reused_tokens": usage.cached_tokens,
            "hit": cache.hit.value,
            "tier": cache.source,
            "ttft_ms": round(self.completion.timings.ttft_ms, 2),
            "speed_up": round(self.speed_up, 1),
            "trouble": self.trouble,
        }

    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        usage, cache = self.completion.usage, self.completion.cache
        return (
            self.label, str(usage.prompt_tokens), str(usage.cached_tokens),
            cache.hit.value, cache.source,
            f"{self.completion.timings.ttft_ms:.1f} ms", f"{self.speed_up:.1f}×",
        )  # fmt: skip


@node_command()
@json_option("print the rows as JSON")
@click.option("--model", type=USER_PATH, metavar="PATH", help="a GGUF file of your own")
def command(*, as_json: bool, model: Path | None) -> int:
    home = Path(tempfile.mkdtemp(prefix="llama-actors-demo-"))
    try:
        with _status_line() as show:
            rows, over_http, seen = _run(
                home, None if model is None else str(model.absolute()), show
            )
    finally:
        shutil.rmtree(home, ignore_errors=True)
    troubles = [f"{row.label}: {row.trouble}" for row in rows if row.trouble]
    if over_http.trouble:
        troubles.append(f"a stream over HTTP: {over_http.trouble}")
    troubles += _left_behind(seen, home)
    if as_json:
        plain = {
            "rows": [row.to_dict() for row in rows],
            "killed_stream": over_http.to_dict(),
            "troubles": troubles,
        }
        sys.stdout.write(json.dumps(plain, indent=2) + "\n")
        return 1 if troubles else 0
    write_table(_COLUMNS, [row.cells() for row in rows])
    for trouble in troubles:
        sys.stdout.write(f"FAILED  {trouble}\n")
    if not troubles:
        sys.stdout.write(f"{over_http}\n")
        sys.stdout.write("Every row reused what it must, and nothing was left behind.\n")
    return 1 if troubles else 0


@contextlib.contextmanager
def _status_line() -> Iterator[Callable[[str], None]]:
    """Shows the current step at a terminal; nothing in a pipe."""
    if not sys.stderr.isatty():
        yield lambda _text: None
        return
    from rich.console import Console

    with Console(file=sys.stderr).status("starting a node …") as status:
        yield status.update


@dataclass(slots=True)
class _Seen:
    """What the nodes used, to check afterwards that it is gone."""

    pids: set[int]
    ports: set[int]
    shared: set[Path]


def _run(
    home: Path, model: str | None, show: Callable[[str], None]
) -> tuple[list[Row], KilledStream, _Seen]:
    rows: list[Row] = []
    seen = _Seen(set(), set(), set())
    port = free_port()
    seen.ports.add(port)
    prompt = long_prompt(PROMPT_WORDS, seed=7)

    def row(label: str, node: Node, text: str, must: Check,
            **options: Any) -> Completion:  # fmt: skip
        show(f"{label} …")
        done = node.complete(MODEL, text, max_tokens=REPLY_TOKENS, **options)
        cold = rows[0].completion.timings.ttft_ms if rows else done.timings.ttft_ms
        rows.append(Row(label, done, cold / done.timings.ttft_ms, must(done)))
        return done

    show("starting a node …")
    with _node(home, port) as node:
        must = _load(node, model)
        _remember(node, seen)
        cold = row("cold prompt", node, prompt, must("cold", ("none",), 0))
        whole = cold.usage.prompt_tokens - 1
        row("same prompt again", node, prompt, must("exact", WARM, whole, cold.text))
        longer_text = prompt + " The next morning everyone met again."
        longer = row("a longer prompt", node, longer_text, must("partial", WARM, whole))
        held = longer.usage.prompt_tokens + longer.usage.completion_tokens - 1
        row(
            "next turn, by parent_key",
            node,
            longer_text + longer.text + " Then they went home.",
            must("partial", WARM, held),
            parent_key=longer.finish_key,
        )
        _wait_persisted(node)  # the end of a reply is stored a second later
        show("kill -9 of the model process …")
        _kill_model(node)
        row("after kill -9 of the model", node, prompt, must("exact", ("ram",), whole, cold.text))
        show("a stream over HTTP, and kill -9 of its server process …")
        over_http = killed_stream(node, MODEL, port)
        _remember(node, seen)
        show("waiting until everything is on disk …")
        _wait_persisted(node)
    show("starting the node again …")
    with _node(home, port) as node:
        _load(node, model)
        _remember(node, seen)
        _wait_scanned(node)
        row(
            "after a restart of the node",
            node,
            prompt,
            must("exact", ("disk",), whole, cold.text),
        )
    return rows, over_http, seen


def _load(node: Node, model: str | None) -> Must:
    """Load the model; returns the check that its rows must pass."""
    status = node.load(MODEL) if model is None else node.load(MODEL, model)
    kind = status.details.get("memory_kind")
    if kind == "none":
        raise DemoFailed(f"this model's prompts cannot be kept: {status.details['memory_because']}")
    return _must_be_kept if kind == "checkpoint" else _must_be


def _node(home: Path, port: int) -> Node:
    listen = (Listen("127.0.0.1", port),)
    return Node.start(
        config=RuntimeConfig(gateway=GatewaySettings(listen=listen)),
        port=free_port(),
        cache_dir=home / "cache",
        cache_ram="256MiB",
        cache_disk="1GiB",
        runtime_dir=home / "run",
    )


def _must_be(hit: str, sources: tuple[str, ...], at_least: int, text: str | None = None) -> Check:
    """What a row must show; the returned function describes what is wrong, or returns None."""

    def check(done: Completion) -> str | None:
        if done.cache.hit.value != hit or done.cache.source not in sources:
            wanted = f"{hit} from {' or '.join(sources)}"
            got = f"{done.cache.hit.value} from {done.cache.source}"
            return f"was {got}, not {wanted} ({done.cache.miss_reason})"
        if done.usage.cached_tokens < at_least:
            return f"reused {done.usage.cached_tokens} tokens of at least {at_least}"
        if text is not None and done.text != text:
            return f"answered {done.text!r}, cold it was {text!r}"
        return None

    return check


def _must_be_kept(
    hit: str, sources: tuple[str, ...], at_least: int, text: str | None = None
) -> Check:
    """The same for a model whose state is kept at some positions only: a sliding window, Mamba.

    It continues from the last of them, in any tier; the rest of the prompt is read again in other
    batches, so its text is compared only where nothing was read again.
    """

    def check(done: Completion) -> str | None:
        reused = done.usage.cached_tokens
        is_cold = done.cache.hit.value == "cold"
        if is_cold != (hit == "cold") or done.cache.source not in sources:
            found = f"{done.cache.hit.value} from {done.cache.source}"
            return f"was {found} ({done.cache.miss_reason})"
        if reused < at_least - BLOCK_TOKENS:
            return f"reused {reused} tokens of at least {at_least - BLOCK_TOKENS}"
        if text is not None and reused >= at_least and done.text != text:
            return f"answered {done.text!r}, cold it was {text!r}"
        return None

    return check


def _kill_model(node: Node) -> None:
    model = node.tree().find(model_actor_id(MODEL))
    if model is None or model.pid is None:
        raise DemoFailed("the model has no process to kill")
    os.kill(model.pid, signal.SIGKILL)


def _wait_persisted(node: Node) -> None:
    _wait(lambda: is_flushed(node.client), "the rows did not reach the disk")


def _wait_scanned(node: Node) -> None:
    def done() -> bool:
        return "disk" in (node.client.reports().get("cache_meta") or {}).get("scanned", ())

    _wait(done, "the disk tier was not scanned")


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise DemoFailed(f"{what} within {SETTLE_TIMEOUT_S:.0f} s")
        time.sleep(0.02)  # noqa: TID251  # a command line waiting for a node, not an actor


def _remember(node: Node, seen: _Seen) -> None:
    def walk(place: TreeNode) -> None:
        if place.pid is not None:
            seen.pids.add(place.pid)
            seen.shared |= _mapped_shared_memory(place.pid)
        for child in place.children:
            walk(child)

    walk(node.tree())
    seen.ports.add(node.port)


def _left_behind(seen: _Seen, home: Path) -> list[str]:
    troubles = [
        f"process {pid} is still alive" for pid in seen.pids if Path(f"/proc/{pid}").exists()
    ]
    for port in seen.ports:
        with socket.socket() as probe, contextlib.suppress(ConnectionRefusedError):
            probe.connect(("127.0.0.1", port))
            troubles.append(f"port {port} is still open")
    troubles += [f"shared memory {path} is still there" for path in seen.shared if path.exists()]
    if home.exists():
        troubles.append(f"{home} is still there")
    return troubles


def _mapped_shared_memory(pid: int) -> set[Path]:
    """Named shared memory that a process has mapped; a node needs none."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
        paths = (line.split(maxsplit=5)[-1].strip() for line in maps)
        return {Path(path) for path in paths if path.startswith("/dev/shm/")}  # noqa: S108  # read only
    return set()
