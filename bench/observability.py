"""What metrics, the access log and spans cost: streams over HTTP with all of them, and with none.

Two nodes, one with ``metrics``, both aliases, ``access_log`` and OpenTelemetry (spans and metrics
sent to a receiver in this process), one with none of these. Runs alternate; the ratio is taken
within a pair. Beside it, what is done for one request and for one token, alone.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from actors import messages as m
from bench.bare import BareModel, Facts
from bench.gateway import Place, cpu_s
from bench.report import Figure, figure
from bench.stats import paired_ratios, summarise
from bench.subjects import Subject, load, node_for_measuring, random_prompt, subjects
from cache.answers import Miss, MissReason
from runtime import Node, RuntimeConfig
from runtime.cli.progress import ProgressLine
from runtime.client.results import Completion, CompletionEvent, PrefillEvent, TokenEvent
from runtime.gateway import access_log
from runtime.gateway.measures import Measures
from runtime.gateway.trace import ReplyTrace, Trace
from runtime.gateway.wire.metrics import Counts
from runtime.gateway.wire.wanted import Wanted
from runtime.settings.gateway import GatewaySettings, Listen
from tests.support.nodes import free_port
from tests.support.runtime_nodes import pid_of

NAME = "observability"
STREAMS = 4
TOKENS, QUICK_TOKENS = 400, 60
PAIRS, QUICK_PAIRS = 15, 2
CALLS, QUICK_CALLS = 20_000, 500
_WORKER = "http:0"
_SCRAPES = 20


def main(quick: bool, model: Path | None = None) -> list[Figure]:
    """Both sides of the smallest subject, and each part alone."""
    subject = subjects(quick=quick, model=model)[0]
    return _paired(subject, quick) + _alone(QUICK_CALLS if quick else CALLS)


# ── all of it, and nothing of it ────────────────────────────────────────────────────────────────


class _Side:
    """A node, and what its streams have taken."""

    def __init__(self, node: Node, place: Place, facts: Facts, n_tokens: int) -> None:
        self.node, self.place = node, place
        self._facts, self._n_tokens = facts, n_tokens
        self.rates: list[float] = []
        self.cpu_us: list[float] = []

    def run(self, number: int) -> None:
        """Streams at the same time: tokens a second, and microseconds of the worker's CPU."""
        prompts = [random_prompt(self._facts, 16, 100 * number + one) for one in range(STREAMS)]
        pid = pid_of(self.node, _WORKER)
        before, began = cpu_s(pid), time.perf_counter()
        with ThreadPoolExecutor(STREAMS) as pool:
            for _ in pool.map(lambda one: self.place.first_ms(one, self._n_tokens), prompts):
                pass
        took = time.perf_counter() - began
        n_tokens = STREAMS * self._n_tokens
        self.rates.append(n_tokens / took)
        self.cpu_us.append(1e6 * (cpu_s(pid) - before) / n_tokens)


def _paired(subject: Subject, quick: bool) -> list[Figure]:
    n_tokens = QUICK_TOKENS if quick else TOKENS
    with BareModel(subject.path, subject.params) as bare:
        facts = bare.facts
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        _receiver() as url,
        _side(Path(folder) / "on", subject, facts, n_tokens, url) as on,
        _side(Path(folder) / "off", subject, facts, n_tokens, None) as off,
        ProgressLine(f"{NAME} {subject.name}") as progress,
    ):
        for one in (on, off):  # warm-up: not measured
            one.run(0)
            one.rates.clear()
            one.cpu_us.clear()
        n_pairs = QUICK_PAIRS if quick else PAIRS
        for number in range(n_pairs):
            progress.share(number / n_pairs)
            for one in (on, off) if number % 2 else (off, on):
                one.run(number + 1)
        scrapes = [_scrape_ms(on.place) for _ in range(_SCRAPES)]
    variant = f"{subject.name}, {STREAMS} streams of {n_tokens} tokens"
    ratios = summarise(paired_ratios(on.rates, off.rates))
    spans = "with" if find_spec("opentelemetry.sdk") else "without"
    note = f"all of it over nothing of it; {spans} spans"
    return [
        figure(NAME, variant, "tokens_per_second_on_over_off", "x", ratios, note),
        figure(NAME, variant, "tokens_per_second_off", "1/s", summarise(off.rates)),
        figure(NAME, variant, "worker_cpu_per_token_on_us", "us", summarise(on.cpu_us)),
        figure(NAME, variant, "worker_cpu_per_token_off_us", "us", summarise(off.cpu_us)),
        figure(NAME, variant, "scrape_ms", "ms", summarise(scrapes), "all names"),
    ]


@contextlib.contextmanager
def _side(
    where: Path, subject: Subject, facts: Facts, n_tokens: int, collector: str | None
) -> Iterator[_Side]:
    port, is_on = free_port(), collector is not None
    settings = GatewaySettings(
        (Listen("127.0.0.1", port),),
        metrics=is_on,
        metrics_alias=("llamacpp", "vllm"),
        access_log=is_on,
    )
    where.mkdir()
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector or "",
        "OTEL_METRICS_EXPORTER": "otlp" if is_on else "none",
    }
    with (
        _environment(variables),
        node_for_measuring(where, config=RuntimeConfig(gateway=settings), port=free_port()) as node,
    ):
        load(node, subject)
        yield _Side(node, Place(port), facts, n_tokens)


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _receiver() -> Iterator[str]:
    """Takes what is posted."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _scrape_ms(place: Place) -> float:
    began = time.perf_counter()
    place.read("/metrics")
    return 1e3 * (time.perf_counter() - began)


# ── each part alone ─────────────────────────────────────────────────────────────────────────────


def _alone(calls: int) -> list[Figure]:
    parts: dict[str, Callable[[], object]] = {
        "count_of_a_request_us": _counting(),
        "line_of_a_request_us": _logging(),
    }
    if find_spec("opentelemetry.sdk"):
        parts["spans_of_a_request_us"] = _spans()
    found = [
        figure(NAME, "alone", name, "us", summarise(_each_us(work, calls)))
        for name, work in parts.items()
    ]
    return [*found, figure(NAME, "alone", "trace_of_a_token_us", "us", summarise(_token_us(calls)))]


def _each_us(work: Callable[[], object], calls: int, runs: int = 5) -> list[float]:
    times = []
    for _ in range(runs):
        began = time.thread_time()
        for _ in range(calls):
            work()
        times.append(1e6 * (time.thread_time() - began) / calls)
    return [median(times)]


def _ended() -> Trace:
    trace = Trace("req_1", method="POST", route="/v1/chat/completions", api="openai", client="x")
    trace.answer_id, trace.status, trace.key = "answer", 200, "alice"
    trace.asks(Wanted(model="m", kind="chat", inputs=([],)), "m")
    done = Completion(
        "", (1, 2), "stop", None, None, m.Usage(12, 5, 2),
        m.CacheReport(m.HitKind.PARTIAL, "ram", 2.0, Miss(MissReason.DIVERGES, at=5)),
        m.Timings(1.0, 2.0, 3.0, 4.0, 5.0),
    )  # fmt: skip
    for event in (PrefillEvent(5, 12, 5), TokenEvent(0, (1,), "a"), TokenEvent(1, (2,), "b")):
        trace.note(0, event)
    trace.note(0, CompletionEvent(done))
    trace.end("ok")
    return trace


def _counting() -> Callable[[], object]:
    trace, measures = _ended(), Measures(Counts(), is_on=True)
    return lambda: measures.ended(trace)


def _logging() -> Callable[[], object]:
    """Formatted and written, to memory."""
    trace, logger = _ended(), logging.getLogger(access_log.LOGGER)
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.handlers[:], logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    return lambda: access_log.log_request(trace)


def _spans() -> Callable[[], object]:
    """Made, and given to a processor that drops them."""
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

    from runtime.gateway.telemetry import Telemetry

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SpanProcessor())
    telemetry, trace = Telemetry(provider, None), _ended()

    def work() -> None:
        telemetry.begin(trace)
        telemetry.ended(trace)

    return work


def _token_us(calls: int) -> list[float]:
    events = [TokenEvent(number, (number,), "a") for number in range(calls)]
    times = []
    for _ in range(5):
        reply = ReplyTrace()
        began = time.thread_time()
        for number, event in enumerate(events):
            reply.note(event, number * 0.01)
        times.append(1e6 * (time.thread_time() - began) / calls)
    return [median(times)]
