"""Spans and metrics of requests, made by OpenTelemetry's own packages."""

from __future__ import annotations

import itertools

import pytest

from runtime.client.results import CompletionEvent, PrefillEvent, ResumedEvent, TokenEvent
from runtime.gateway import telemetry
from runtime.gateway.telemetry import Telemetry
from runtime.gateway.trace import Trace
from runtime.gateway.wire.wanted import Wanted
from tests.support.completions import diverged

pytestmark = pytest.mark.pure
pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")

from opentelemetry.sdk.metrics import MeterProvider  # noqa: E402
from opentelemetry.sdk.metrics.export import InMemoryMetricReader  # noqa: E402
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import (  # noqa: E402
    InMemorySpanExporter,
)
from opentelemetry.trace import SpanKind, StatusCode  # noqa: E402

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
WANTED = Wanted(
    model="gpt", kind="chat", inputs=([],), options={"max_tokens": 9, "temperature": 0.5, "x": 1}
)


class Rig:
    def __init__(self) -> None:
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        spans = TracerProvider(shutdown_on_exit=False)
        spans.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.telemetry = Telemetry(spans, MeterProvider([self.reader], shutdown_on_exit=False))

    def request(self, parent: str = "", *, is_whole: bool = True) -> Trace:
        trace = Trace("req_1", method="POST", route="/v1/chat", api="openai", client="")
        trace.part_of({b"traceparent": parent.encode()})
        trace.answer_id, trace.status = "answer", 200
        trace.asks(WANTED, "m")
        self.telemetry.begin(trace)
        trace.note(0, PrefillEvent(5, 12, 5))
        trace.note(0, TokenEvent(0, (1,), "a secret"))
        trace.note(0, ResumedEvent(1, 250.0))
        trace.note(0, TokenEvent(1, (2, 3), "b"))
        if is_whole:
            trace.note(0, CompletionEvent(diverged()))
        trace.end("ok" if is_whole else "broken")
        self.telemetry.ended(trace)
        return trace

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        return {one.name: one for one in self.exporter.get_finished_spans()}


def test_a_request_is_a_span_that_continues_its_callers_trace() -> None:
    rig = Rig()
    trace = rig.request(PARENT)
    span = rig.spans["chat m"]
    assert span.kind is SpanKind.SERVER
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == "00f067aa0ba902b7"
    context = span.get_span_context()
    assert context is not None
    assert f"{context.trace_id:032x}" == PARENT[3:35]
    # What the model's process gets is this span.
    assert trace.traceparent == f"00-{PARENT[3:35]}-{context.span_id:016x}-01"
    assert dict(span.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "llama_actors",
        "gen_ai.request.model": "gpt",
        "gen_ai.response.model": "m",
        "gen_ai.response.id": "answer",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 5,
        "gen_ai.usage.cache_creation.input_tokens": 7,
        "http.request.method": "POST",
        "http.route": "/v1/chat",
        "http.response.status_code": 200,
        "llama_actors.request_id": "req_1",
    }


def test_what_was_done_are_spans_one_after_the_other() -> None:
    rig = Rig()
    rig.request()
    spans = rig.spans
    names = ["queue", "lookup", "restore", "prefill", "decode"]
    assert {*spans} == {"chat m", *names}
    whole = spans["chat m"]
    for name in names:
        one = spans[name]
        assert one.parent is not None
        assert one.parent.span_id == whole.get_span_context().span_id  # type: ignore[union-attr]
        assert (whole.start_time or 0) <= (one.start_time or 0) <= (one.end_time or 0)
    for before, after in itertools.pairwise(names):
        gap = (spans[after].start_time or 0) - (spans[before].end_time or 0)
        assert abs(gap) < 2000, (before, after)  # nanoseconds: floats of the clock
    assert [one.name for one in whole.events] == ["llama_actors.resumed"]
    assert dict(whole.events[0].attributes or {}) == {"llama_actors.pause_ms": 250.0}


def test_spans_show_no_texts() -> None:
    rig = Rig()
    rig.request()
    assert "secret" not in "".join(one.to_json() for one in rig.spans.values())


def test_what_its_caller_does_not_record_is_not_recorded() -> None:
    rig = Rig()
    trace = rig.request(PARENT[:-1] + "0")
    assert not rig.spans
    assert trace.traceparent.endswith("-00")


def test_each_request_has_ids_of_its_own() -> None:
    rig = Rig()
    first, second = rig.request(), rig.request()
    assert first.traceparent[3:35] != second.traceparent[3:35]
    ids = [one.get_span_context().span_id for one in rig.exporter.get_finished_spans()]  # type: ignore[union-attr]
    assert len({*ids}) == len(ids) == 12


def test_a_broken_stream_is_an_error() -> None:
    rig = Rig()
    rig.request(is_whole=False)
    assert rig.spans["chat m"].status.status_code is StatusCode.ERROR


def test_a_request_that_asks_no_model_has_no_span() -> None:
    rig = Rig()
    trace = Trace("r", method="GET", route="/health", api="openai", client="")
    trace.end("ok")
    rig.telemetry.ended(trace)
    assert not rig.spans


def test_metrics_of_a_request() -> None:
    rig = Rig()
    rig.request()
    data = rig.reader.get_metrics_data()
    assert data is not None
    found = {
        one.name: one.data.data_points[0]
        for one in data.resource_metrics[0].scope_metrics[0].metrics
    }
    assert {*found} == {
        "gen_ai.server.request.duration",
        "gen_ai.server.time_to_first_token",
        "gen_ai.server.time_per_output_token",
    }
    assert all(one.count == 1 for one in found.values())  # type: ignore[union-attr]
    labels = found["gen_ai.server.request.duration"].attributes
    assert labels == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "llama_actors",
        "gen_ai.request.model": "m",
        "gen_ai.response.model": "m",
    }


@pytest.mark.parametrize(
    ("environ", "traces", "metrics"),
    [
        ({}, False, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, True, False),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, True, False),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://x"}, False, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_METRICS_EXPORTER": "otlp"}, True, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"}, False, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "TRUE"}, False, False),
    ],
)
def test_it_is_on_where_the_environment_says_so(
    environ: dict[str, str], traces: bool, metrics: bool
) -> None:
    assert telemetry.wants_traces(environ) is traces
    assert telemetry.wants_metrics(environ) is metrics
    if not (traces or metrics):
        assert telemetry.from_environment(environ) is None
