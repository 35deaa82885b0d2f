"""Spans and metrics of OpenTelemetry for each request, made when it has ended.

Off unless the environment names an endpoint; ``opentelemetry`` (the extra ``otel``) is imported
only then. Nothing of a prompt or of a reply is in what is sent.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from runtime.gateway.trace import ReplyTrace, Trace
from runtime.gateway.wire import telemetry_names as names

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.metrics import Histogram, MeterProvider
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
    from opentelemetry.trace import Span

CLOSE_S: Final = 2.0
"""How long a worker that ends waits until what it has made is sent."""
MAX_SPANS: Final = 16
"""Replies of one request that have spans of their own."""
_NS: Final = 1_000_000_000
_S: Final = 1e-3
_LOG: Final = logging.getLogger("supervision.http")
Stretch = tuple[str, float, float]
"""Name, and seconds by the monotonic clock."""


def wants_traces(environ: Mapping[str, str]) -> bool:
    """Whether spans are to be sent."""
    return _wants(environ, "TRACES") and bool(
        environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        or environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    )


def wants_metrics(environ: Mapping[str, str]) -> bool:
    """Whether metrics are to be sent: only where that is asked for by name."""
    asked = environ.get("OTEL_METRICS_EXPORTER", "").strip().lower()
    return _wants(environ, "METRICS") and bool(
        environ.get("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
        or (asked == "otlp" and environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"))
    )


def _wants(environ: Mapping[str, str], what: str) -> bool:
    is_disabled = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return not is_disabled and environ.get(f"OTEL_{what}_EXPORTER", "").strip().lower() != "none"


def from_environment(environ: Mapping[str, str]) -> Telemetry | None:
    """What the environment asks for; None: nothing, or the packages are not installed."""
    if not (wants_traces(environ) or wants_metrics(environ)):
        return None
    try:
        return _made(traces=wants_traces(environ), metrics=wants_metrics(environ))
    except ImportError as error:
        _LOG.warning(
            "an OTLP endpoint is set, and nothing is sent there: %s; install llama-actors[otel]",
            error,
        )
        return None


def _made(*, traces: bool, metrics: bool) -> Telemetry:
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource

    resource = Resource.create()
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: names.SERVICE}))
    tracer_provider = meter_provider = None
    if traces:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        tracer_provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        tracer_provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    if metrics:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

        reader = PeriodicExportingMetricReader(OTLPMetricExporter())
        meter_provider = MeterProvider([reader], resource, shutdown_on_exit=False)
    return Telemetry(tracer_provider, meter_provider)


class Telemetry:
    """Of one worker, on its loop."""

    def __init__(
        self, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None
    ) -> None:
        self._spans = None if tracer_provider is None else Spans(tracer_provider)
        self._meters = None if meter_provider is None else Meters(meter_provider)
        self._providers: list[Any] = [
            one for one in (tracer_provider, meter_provider) if one is not None
        ]

    def begin(self, trace: Trace) -> None:
        """A model is about to be asked: choose what its process gets to know of the trace."""
        if self._spans is not None:
            self._spans.begin(trace)

    def ended(self, trace: Trace) -> None:
        """A request has ended."""
        if trace.model is None:
            return  # it has asked no model
        if self._spans is not None:
            self._spans.ended(trace)
        if self._meters is not None:
            self._meters.ended(trace)

    def close(self) -> None:
        """Send what was made; waits ``CLOSE_S`` at most."""

        def work() -> None:
            for one in self._providers:
                one.force_flush(int(CLOSE_S * 1000))
                one.shutdown()

        closing = threading.Thread(target=work, daemon=True)
        closing.start()
        closing.join(CLOSE_S)


class Spans:
    """Spans of requests. Their ids are chosen before a model is asked, and they are made later."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._ids = _Ids(provider.id_generator)
        provider.id_generator = cast("RandomIdGenerator", self._ids)
        self._sampler = provider.sampler
        self._tracer = provider.get_tracer(names.SERVICE)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, trace: Trace) -> None:
        """Choose its ids, and whether it is recorded: by its caller, else by the sampler."""
        from opentelemetry.sdk.trace.sampling import Decision
        from opentelemetry.trace import SpanKind

        context = self._context(trace)
        trace_id = _trace_id(context) or self._ids.random.generate_trace_id()
        name = names.span_name(trace)
        sampled = self._sampler.should_sample(context, trace_id, name, SpanKind.SERVER)
        flag = int(sampled.decision is Decision.RECORD_AND_SAMPLE)
        span_id = self._ids.random.generate_span_id()
        trace.traceparent = f"00-{trace_id:032x}-{span_id:016x}-{flag:02x}"

    def _context(self, trace: Trace) -> Context:
        from opentelemetry.context import Context

        carrier = {"traceparent": trace.parent, "tracestate": trace.tracestate}
        given = {name: value for name, value in carrier.items() if value}
        return self._propagator.extract(given, context=Context())

    def ended(self, trace: Trace) -> None:
        """Make the spans of a request."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        if trace.traceparent != trace.parent:  # ``begin`` has chosen them
            self._ids.chosen = (int(trace.traceparent[3:35], 16), int(trace.traceparent[36:52], 16))
        context = self._context(trace)
        span = self._tracer.start_span(
            names.span_name(trace),
            context,
            SpanKind.SERVER,
            names.attributes_of(trace),
            start_time=_ns(trace, trace.began),
        )
        self._ids.chosen = None
        if span.is_recording():
            if trace.error is not None or trace.outcome in ("failed", "broken"):
                span.set_status(Status(StatusCode.ERROR, trace.error or trace.outcome))
            self._add_events(span, trace)
            inside = set_span_in_context(span, context)
            for reply in list(trace.replies.values())[:MAX_SPANS]:
                for name, begin, end in stretches(trace, reply):
                    child = self._tracer.start_span(
                        name, inside, start_time=_ns(trace, max(begin, trace.began))
                    )
                    child.end(_ns(trace, max(end, trace.began)))
        span.end(_ns(trace, _end(trace)))

    def _add_events(self, span: Span, trace: Trace) -> None:
        if trace.n_taken:
            lost = {"llama_actors.workers_lost": trace.n_taken}
            span.add_event("llama_actors.taken_over", lost, _ns(trace, trace.began))
        for reply in trace.replies.values():
            for at, pause_ms in reply.pauses:
                pause = {"llama_actors.pause_ms": pause_ms}
                span.add_event("llama_actors.resumed", pause, _ns(trace, at))


class _Ids:
    """Ids of spans: those that were chosen before, else random ones."""

    def __init__(self, random: Any) -> None:
        self.random = random
        self.chosen: tuple[int, int] | None = None

    def generate_trace_id(self) -> int:
        found: int = self.random.generate_trace_id() if self.chosen is None else self.chosen[0]
        return found

    def generate_span_id(self) -> int:
        found: int = self.random.generate_span_id() if self.chosen is None else self.chosen[1]
        return found

    def is_trace_id_random(self) -> bool:
        """Of the ids that it makes."""
        return bool(self.random.is_trace_id_random())


class Meters:
    """Metrics of requests."""

    def __init__(self, provider: MeterProvider) -> None:
        meter = provider.get_meter(names.SERVICE)

        def histogram(name: str, words: str, bounds: tuple[float, ...]) -> Histogram:
            return meter.create_histogram(
                name, "s", words, explicit_bucket_boundaries_advisory=bounds
            )

        self._duration = histogram(
            "gen_ai.server.request.duration", "From arrival to end.", names.DURATION_S
        )
        self._first = histogram(
            "gen_ai.server.time_to_first_token", "From arrival to first token.", names.FIRST_S
        )
        self._each = histogram(
            "gen_ai.server.time_per_output_token",
            "From a token to the next one, on average over a reply.",
            names.EACH_S,
        )

    def ended(self, trace: Trace) -> None:
        """A request has ended."""
        labels = names.labels_of(trace)
        self._duration.record(_end(trace) - trace.began, labels)
        for reply in trace.replies.values():
            if reply.first_at is None or reply.last_at is None or reply.n_before:
                continue
            self._first.record(reply.first_at - trace.began, labels)
            if reply.n_generated > 1:
                took = reply.last_at - reply.first_at
                self._each.record(took / (reply.n_generated - 1), labels)


def stretches(trace: Trace, reply: ReplyTrace) -> Iterator[Stretch]:
    """What was done for a reply that has ended, one after the other, ending at its last token.

    By the model's clock, which shows how long each took; this process saw when the first token
    came.
    """
    done = reply.done
    if done is None:
        return
    ended_at = reply.ended_at or _end(trace)
    at = ended_at if reply.first_at is None else reply.first_at
    timings, cache = done.timings, done.cache
    parts = (
        ("prefill", timings.prefill_ms),
        ("restore", cache.restore_ms),
        ("lookup", cache.lookup_ms),
        ("queue", timings.queue_ms),
    )
    if reply.n_before:
        return  # a predecessor saw them
    for name, took_ms in parts:
        if took_ms > 0.0 or name in ("queue", "prefill"):
            yield name, at - took_ms * _S, at
        at -= took_ms * _S
    if reply.first_at is not None and reply.last_at is not None:
        yield "decode", reply.first_at, reply.last_at


def _trace_id(context: Context) -> int:
    from opentelemetry.trace import get_current_span

    return get_current_span(context).get_span_context().trace_id


def _end(trace: Trace) -> float:
    return trace.began if trace.ended_at is None else trace.ended_at


def _ns(trace: Trace, at: float) -> int:
    """Unix nanoseconds of a moment of the monotonic clock."""
    return int((trace.at + at - trace.began) * _NS)
