"""What is counted of requests: by one worker, over all, and as text; and their lines in the log."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import messages as m
from actors.messages.traceparent import checked, trace_id_of
from runtime.client.results import (
    CompletionEvent,
    PrefillEvent,
    ResumedEvent,
    TokenEvent,
)
from runtime.gateway import access_log
from runtime.gateway.accounts import KEPT_INCARNATIONS, Accounts, Incarnation, Now, Restarts
from runtime.gateway.measures import Measures
from runtime.gateway.service import Service
from runtime.gateway.trace import ReplyTrace, Trace, Traces
from runtime.gateway.wire import families as f
from runtime.gateway.wire.metrics import Counts
from runtime.gateway.wire.series import OTHER, Series, Table, add_to, packed, shown, unpacked
from runtime.gateway.wire.vllm_metrics import vllm_lines
from runtime.settings.gateway import GatewaySettings
from supervision.logs import JsonFormatter
from tests.support.completions import diverged
from tests.support.nodes import ROOT

pytestmark = pytest.mark.pure

MOST_BYTES = 56 << 10
"""Of a message's series; a message has 64 KiB."""


def trace_of(*events: object, outcome: str = "ok", status: int = 200) -> Trace:
    """A request that has ended."""
    trace = Trace("req_1", method="POST", route="/v1/chat/completions", api="openai", client="curl")
    trace.model, trace.status = "m", status
    for event in events:
        trace.note(0, event)  # type: ignore[arg-type]
    trace.end(outcome)
    return trace


WHOLE = (
    PrefillEvent(5, 12, 5),
    TokenEvent(0, (1,), "a"),
    TokenEvent(1, (2, 3), "b"),
    CompletionEvent(diverged()),
)


def lines_of(series: Table) -> dict[str, float]:
    text = [one for one in shown(f.COUNTED, series, f.PREFIX) if not one.startswith("#")]
    return {one.rpartition(" ")[0]: float(one.rpartition(" ")[2]) for one in text}


def measured(*traces: Trace, is_on: bool = True) -> Measures:
    found = Measures(Counts(), is_on=is_on)
    for one in traces:
        found.ended(one)
    return found


# ── one request ─────────────────────────────────────────────────────────────────────────────────


def test_a_reply_is_counted_at_its_end() -> None:
    found = measured(trace_of(*WHOLE))
    lines = lines_of(found.series.table)
    of = '{model_name="m"}'
    assert lines[f"llama_actors_prompt_tokens_total{of}"] == 12
    assert lines[f"llama_actors_generation_tokens_total{of}"] == 3
    assert lines[f"llama_actors_prefix_cache_hits_total{of}"] == 5
    assert lines['llama_actors_cached_tokens_total{model_name="m",cache_source="ram"}'] == 5
    assert lines['llama_actors_prefix_miss_total{reason="diverges",part="messages"}'] == 1
    assert lines['llama_actors_kv_restore_seconds_bucket{tier="ram",le="0.0025"}'] == 1
    assert lines[f"llama_actors_request_queue_time_seconds_sum{of}"] == pytest.approx(0.004)
    assert lines[f"llama_actors_time_to_first_token_seconds_count{of}"] == 1
    assert lines[f"llama_actors_inter_token_latency_seconds_count{of}"] == 2
    assert lines['llama_actors_request_success_total{model_name="m",finished_reason="stop"}'] == 1
    assert found.counts.predicted_tokens == 3


def test_a_reply_that_its_client_leaves_counts_its_tokens() -> None:
    found = measured(trace_of(*WHOLE[:-1], outcome="client_gone"))
    lines = lines_of(found.series.table)
    assert (found.counts.prompt_tokens, found.counts.cached_tokens) == (7, 5)
    assert found.counts.predicted_tokens == 3
    assert lines['llama_actors_request_success_total{model_name="m",finished_reason="abort"}'] == 1
    assert lines['llama_actors_generation_tokens_total{model_name="m"}'] == 3
    assert lines['llama_actors_prompt_tokens_total{model_name="m"}'] == 12


def test_half_a_prompt_counts_as_half() -> None:
    found = measured(trace_of(PrefillEvent(8, 12, 5), outcome="client_gone"))
    assert (found.counts.prompt_tokens, found.counts.cached_tokens) == (3, 5)
    assert lines_of(found.series.table)['llama_actors_prompt_tokens_total{model_name="m"}'] == 8


def test_what_a_predecessor_had_counts_once_and_has_no_times() -> None:
    trace = trace_of()
    trace.n_taken = 1
    for event in WHOLE[:2]:
        trace.replay(0, event)
    for event in WHOLE[2:]:
        trace.note(0, event)
    lines = lines_of(measured(trace).series.table)
    assert lines['llama_actors_generation_tokens_total{model_name="m"}'] == 3
    assert 'llama_actors_time_to_first_token_seconds_count{model_name="m"}' not in lines
    assert lines['llama_actors_stream_resumes_total{cause="worker"}'] == 1


def test_pauses_are_resumes() -> None:
    trace = trace_of(TokenEvent(0, (1,), "a"), ResumedEvent(1, 250.0))
    lines = lines_of(measured(trace).series.table)
    assert lines['llama_actors_stream_resumes_total{cause="node"}'] == 1


def test_gaps_of_tokens_that_come_together_share_their_time() -> None:
    reply = ReplyTrace()
    reply.note(TokenEvent(0, (1, 2), "a"), 1.0)
    reply.note(TokenEvent(2, (3, 4, 5), "b"), 1.2)
    reply.note(TokenEvent(5, (), "c"), 9.0)
    assert reply.gaps is not None
    assert sum(reply.gaps) == 4
    assert reply.gaps[f.GAP_S.index(0.075)] == 3
    assert reply.gaps_s == pytest.approx(0.2)


def test_a_response_in_the_background_is_no_http_request() -> None:
    trace = trace_of(*WHOLE)
    trace.is_http = False
    lines = lines_of(measured(trace).series.table)
    assert not [one for one in lines if one.startswith("llama_actors_http_requests_total")]
    assert lines['llama_actors_generation_tokens_total{model_name="m"}'] == 3


def test_off_counts_what_llama_server_counts_alone() -> None:
    found = measured(trace_of(*WHOLE), is_on=False)
    found.read("m", 3, 1)
    found.refused(503)
    assert found.counts.predicted_tokens == 3
    assert f.GENERATED.name not in found.series.table
    assert f.HTTP.name not in found.series.table


def test_the_log_and_the_counting_are_settings() -> None:
    def nothing() -> Any:
        raise AssertionError("nothing is asked")

    for metrics, access in ((True, False), (False, True)):
        settings = GatewaySettings(metrics=metrics, access_log=access)
        service = Service(settings, nothing, dict)
        assert (access_log.log_request in service.traces.on_end) is access
        service.traces.on_end[0](trace_of(*WHOLE))
        assert (f.GENERATED.name in service.measures.series.table) is metrics


# ── cardinality and size ────────────────────────────────────────────────────────────────────────


def test_what_is_too_much_for_a_family_is_counted_together() -> None:
    series = Series()
    for number in range(f.MOST_MODELS + 5):
        series.add(f.GENERATED, (f"m{number}",), 2)
    found = series.table[f.GENERATED.name]
    assert len(found) == f.MOST_MODELS + 1
    assert found[(OTHER,)] == [10]


def test_as_much_as_there_can_be_fits_into_a_message() -> None:
    series = Series()
    for family in f.COUNTED:
        for number in range(family.most + 1):
            labels = tuple(f"{number:040d}"[-n:] for n in (40, 10, 10)[: len(family.labels)])
            if family.kind == "histogram":
                series.observed(family, labels, [70_000] * (len(family.bounds) + 1), 0.5)
            else:
                series.add(family, labels, 1 << 30)
    assert len(series.packed()) < MOST_BYTES


# ── sums ────────────────────────────────────────────────────────────────────────────────────────


class Kept:
    """What a ledger has written."""

    def __init__(self) -> None:
        self.records: dict[str, bytes] = {}
        self.accounts = Accounts(self.write)

    def write(self, name: str, value: bytes | None) -> None:
        assert value is not None
        self.records[name] = value

    def restart(self) -> None:
        assert dict(self.accounts.records()) == self.records
        self.accounts = Accounts(self.write)
        self.accounts.restore(self.records)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9), st.booleans(), st.booleans())))
def test_series_never_go_back(steps: list[tuple[int, int, bool, bool]]) -> None:
    kept, started = Kept(), {number: number for number in range(3)}
    series = {number: Series() for number in range(3)}
    wanted = n_observed = 0
    next_start = 10
    for number, n, is_new, is_killed in steps:
        if is_new:
            started[number], next_start = next_start, next_start + 1
            series[number] = Series()
        series[number].add(f.GENERATED, ("m",), n)
        series[number].observe(f.REQUEST, ("m",), n)
        wanted, n_observed = wanted + n, n_observed + 1
        who = Incarnation(number, started[number])
        kept.accounts.count(who, Counts(), Now(1, 2), series[number].packed())
        kept.accounts.count(who, Counts(), Now(1, 2))  # nothing new
        if is_killed:
            kept.restart()
        total = kept.accounts.series()
        assert total[f.GENERATED.name][("m",)] == [wanted]
        assert sum(total[f.REQUEST.name][("m",)][:-1]) == n_observed
        assert total[f.REQUEST.name][("m",)][-1] == wanted


def test_a_late_report_of_a_process_that_is_gone_counts_once() -> None:
    kept, one = Kept(), Series()
    one.add(f.NO_KEY)
    for started in range(1, KEPT_INCARNATIONS + 3):
        kept.accounts.count(Incarnation(0, started), Counts(), Now(), one.packed())
    kept.accounts.count(Incarnation(0, 0), Counts(), Now(), one.packed())
    assert kept.accounts.series()[f.NO_KEY.name][()] == [KEPT_INCARNATIONS + 2]
    assert kept.accounts.connections() == 0


def test_tables_are_added_number_by_number() -> None:
    total: Table = {}
    other: Table = {"a": {("x",): [1, 2.5]}}
    add_to(total, other)
    add_to(total, other)
    assert total == {"a": {("x",): [2, 5.0]}}
    assert other == {"a": {("x",): [1, 2.5]}}
    assert unpacked(packed(total)) == total
    assert unpacked(b"") == {}


def test_restarts_are_counted_by_reason_and_never_go_back() -> None:
    kept = Kept()
    for restarts, reason in ((0, "unknown"), (1, "killed"), (3, "abnormal"), (1, "killed")):
        kept.accounts.note_restarts("http:0", restarts, reason)
        kept.restart()
    found = {(actor, why): n for actor, why, n in kept.accounts.restarts.all()}
    assert found == {("http:0", "killed"): 2, ("http:0", "abnormal"): 2}


def test_restarts_of_few_actors_are_known() -> None:
    found = Restarts()
    for number in range(1000):
        found.note(f"model:{number}", 1, "killed")
    assert len(found.all()) < f.RESTARTS.most


# ── text ────────────────────────────────────────────────────────────────────────────────────────


def test_buckets_add_up_and_labels_are_escaped() -> None:
    series = Series()
    for value in (0.001, 0.0011, 1e9):
        series.observe(f.FIRST_TOKEN, ('a"\\\n',), value)
    text = "\n".join(shown([f.FIRST_TOKEN], series.table, "x_"))
    assert text.startswith("# HELP x_time_to_first_token_seconds ")
    name = r'x_time_to_first_token_seconds_bucket{model_name="a\"\\\n",le='
    assert f'{name}"0.001"}} 1\n' in text
    assert f'{name}"0.0025"}} 2\n' in text
    assert f'{name}"2560"}} 2\n' in text
    assert f'{name}"+Inf"}} 3\n' in text
    assert 'seconds_count{model_name="a\\"\\\\\\n"} 3' in text


def test_vllms_names_have_its_labels_and_buckets() -> None:
    series = measured(trace_of(*WHOLE)).series
    text = "\n".join(vllm_lines(series.table))
    of = 'engine="0",model_name="m"'
    assert f"vllm:generation_tokens_total{{{of}}} 3\n" in text
    assert f'vllm:request_success_total{{{of},finished_reason="stop"}} 1\n' in text
    bounds = re.findall(rf'vllm:inter_token_latency_seconds_bucket{{{of},le="(.*?)"}}', text)
    assert bounds[:4] == ["0.01", "0.025", "0.05", "0.075"]
    assert bounds[-2:] == ["80", "+Inf"]
    queued = re.findall(rf'vllm:request_queue_time_seconds_bucket{{{of},le="(.*?)"}} (\d+)', text)
    assert queued[0] == ("0.3", "1")
    assert f"vllm:request_queue_time_seconds_count{{{of}}} 1\n" in text


# ── the access log ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, access_log.LOGGER)
    return caplog


def test_a_line_has_the_facts_and_no_text(logged: pytest.LogCaptureFixture) -> None:
    trace = trace_of(*WHOLE)
    trace.key, trace.answer_id = "alice", "id7"
    trace.traceparent = f"00-{'ab' * 16}-{'1' * 16}-01"
    access_log.log_request(trace)
    (record,) = logged.records
    line = record.getMessage()
    assert line.startswith("POST /v1/chat/completions 200 request_id=req_1 ")
    for part in ("key=alice", "prompt_tokens=12", "cached_tokens=5", "cache_source=ram",
                 "generated_tokens=3", "queue_ms=4.0", "finish=stop", "outcome=ok",
                 f"trace_id={'ab' * 16}"):  # fmt: skip
        assert part in line.split(), line
    found = json.loads(JsonFormatter().format(record))
    assert (found["event"], found["logger"]) == ("http_request", "supervision.http.access")
    assert (found["status"], found["generated_tokens"], found["key"]) == (200, 3, "alice")
    assert "secret" not in json.dumps(found)
    assert "client_gone" not in found


def test_probes_have_a_line_only_where_they_fail(logged: pytest.LogCaptureFixture) -> None:
    for status in (200, 503):
        trace = Trace("r", method="GET", route="/health", api="openai", client="")
        trace.status = status
        trace.end("ok")
        access_log.log_request(trace)
    assert [one.getMessage().split()[2] for one in logged.records] == ["503"]


def test_a_client_that_left_is_named(logged: pytest.LogCaptureFixture) -> None:
    access_log.log_request(trace_of(*WHOLE[:-1], outcome="client_gone", status=0))
    line = logged.records[0].getMessage()
    assert line.startswith("POST /v1/chat/completions - ")
    assert {"client_gone=True", "generated_tokens=3"} <= {*line.split()}


# ── traces of callers ───────────────────────────────────────────────────────────────────────────

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    "text",
    ["", "x", PARENT.upper(), PARENT + "-x", PARENT[:-1], "ff" + PARENT[2:], None, 5,
     PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32)],
)  # fmt: skip
def test_what_is_no_traceparent_is_left_out(text: object) -> None:
    assert checked(text) == ""
    assert trace_id_of(text) == ""


def test_a_request_is_named_with_its_trace() -> None:
    asked = m.Complete("r", "m", m.TextPrompt("p"), traceparent=PARENT)
    assert str(asked) == "Complete(r, m, trace 4bf92f3577b34da6a3ce929d0e0e4736)"
    assert str(replace(asked, traceparent="nonsense")) == "Complete(r, m)"


def test_the_trace_of_a_client_is_passed_on() -> None:
    trace = trace_of()
    trace.part_of({b"traceparent": PARENT.encode(), b"tracestate": b"a=1"})
    assert (trace.traceparent, trace.tracestate) == (PARENT, "a=1")
    other = trace_of()
    other.part_of({b"traceparent": b"bad", b"tracestate": b"a=1"})
    assert (other.traceparent, other.tracestate) == ("", "")


def test_a_record_has_no_texts() -> None:
    assert b"secret" not in msgspec.json.encode(trace_of(*WHOLE).record())


def test_traces_are_told_before_a_model_is_asked() -> None:
    traces, seen = Traces(), []
    traces.on_reply.append(lambda one: seen.append(one.id))
    traces.asks(trace_of())
    assert seen == ["req_1"]


def test_the_page_of_the_documentation_names_every_metric() -> None:
    text = (ROOT / "docs/observability.md").read_text(encoding="utf-8")
    missing = [one.name for one in (*f.COUNTED, *f.OF_NODE) if f"`{one.name}" not in text]
    assert not missing


def test_the_dashboard_and_the_rules_name_metrics_that_there_are() -> None:
    known = {one.name for one in (*f.COUNTED, *f.OF_NODE)}
    for path in ("grafana/llama-actors.json", "prometheus/rules.yml"):
        text = (ROOT / "packaging" / path).read_text(encoding="utf-8")
        named = set(re.findall(r"(?<![\w:])llama_actors_(\w+)", text))
        bare = {re.sub("_(bucket|sum|count)$", "", one) for one in named} - known
        assert not bare, path
