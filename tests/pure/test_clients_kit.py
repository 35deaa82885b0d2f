"""The kit that runs foreign clients: its judgement, and what it reads and sends."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.clients import install as installing
from tests.clients import load, programs, schema, sdk_tests, turns
from tests.clients.install import NPM, SDISTS, locked_lines
from tests.clients.outcomes import Known, Outcome, from_junit, judge
from tests.clients.processes import Ran, clean, run
from tests.clients.recorder import Exchange, recording
from tests.support.nodes import ROOT
from tools.install import Problem
from tools.matrix import Unavailable

pytestmark = pytest.mark.pure

GOOD, BAD = Outcome("a.good", passed=True), Outcome("a.bad", passed=False, detail="no field x")


def problems(*outcomes: Outcome, known: tuple[Known, ...] = (), floor: int = 1) -> str:
    return "\n".join(judge("suite", outcomes, known, floor).problems)


def test_a_failure_that_is_not_listed_is_a_problem() -> None:
    assert problems(GOOD, BAD) == "a.bad fails: no field x"


def test_a_listed_failure_is_none() -> None:
    verdict = judge("suite", [GOOD, BAD], [Known(r"a\.b.*", "by design")], floor=1)
    assert verdict.problems == ()
    assert (verdict.n_passed, verdict.n_known) == (1, 1)


def test_a_listed_test_that_passes_must_be_taken_off() -> None:
    text = problems(GOOD, BAD, known=(Known(r"a\..*", "by design"),))
    assert text.startswith("a.good passes, though it is listed")


def test_an_entry_without_a_test_must_be_taken_off() -> None:
    assert "matches no test" in problems(GOOD, known=(Known("a.g", "a part of a name"),))


def test_fewer_passes_than_the_floor_are_a_problem() -> None:
    assert problems(GOOD, floor=2) == "1 tests pass, fewer than the floor of 2"


def test_outcomes_are_read_from_a_junit_report() -> None:
    report = """<testsuites><testsuite>
      <testcase classname="tests.x.TestA" name="test_one[strict]"/>
      <testcase classname="tests.x.TestA" name="test_two"><failure message="E1&#10;E2"/></testcase>
      <testcase classname="tests.x.TestA" name="test_three"><error/></testcase>
      <testcase classname="tests.x.TestA" name="test_four"><skipped/></testcase>
    </testsuite></testsuites>"""
    assert from_junit(report) == [
        Outcome("tests.x.TestA.test_one[strict]", passed=True),
        Outcome("tests.x.TestA.test_two", passed=False, detail="E1"),
        Outcome("tests.x.TestA.test_three", passed=False, detail="no message"),
    ]


@pytest.mark.parametrize("name", SDISTS)
def test_the_lock_has_the_sdists_with_hashes(name: str) -> None:
    version, lines = locked_lines((ROOT / "requirements/clients.txt").read_text("utf-8"), name)
    assert lines.startswith(f"{name}=={version} \\\n    --hash=sha256:")
    assert lines.count("==") == 1


def test_a_package_that_is_not_locked_is_a_problem() -> None:
    with pytest.raises(Problem, match="make lock"):
        locked_lines("", "openai")


def test_the_lock_of_npm_has_hashes_and_no_addresses_of_packages() -> None:
    lock = json.loads((NPM / "package-lock.json").read_text("utf-8"))
    wanted = json.loads((NPM / "package.json").read_text("utf-8"))["dependencies"]
    packages = {k: v for k, v in lock["packages"].items() if v.get("version") and k}
    assert all(p["integrity"].startswith("sha512-") for p in packages.values())
    assert not any("resolved" in p for p in packages.values())
    assert {n: packages[f"node_modules/{n}"]["version"] for n in wanted} == wanted


def test_a_known_failure_has_a_reason() -> None:
    assert all(known.reason for suite in (sdk_tests.OPENAI,) for known in suite.known)


def test_a_program_gets_nothing_of_the_callers_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://198.51.100.1")
    ran = run(["env"], env=clean(tmp_path, X="1"), cwd=tmp_path, deadline_s=20)
    assert ran.code == 0
    assert "HTTP_PROXY" not in ran.output
    assert f"HOME={tmp_path}\n" in ran.output


def test_a_program_is_killed_at_its_deadline_with_its_children(tmp_path: Path) -> None:
    ran = run(
        ["sh", "-c", "sleep 600 & echo begun; wait"],
        env=clean(tmp_path),
        cwd=tmp_path,
        deadline_s=0.5,
    )
    assert ran.code is None
    assert ran.output == "begun\n"
    assert "deadline" in ran.detail


@contextmanager
def echoing() -> Iterator[str]:
    """A server that answers each request with its method and body, in two pieces."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            self.send_response(418)
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for piece in (b"POST ", body):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("chunked", [False, True])
def test_the_recorder_passes_on_and_keeps_what_was_sent(chunked: bool) -> None:
    with echoing() as url, recording(url) as recorder:
        client = http.client.HTTPConnection(urlsplit(recorder.url).netloc, timeout=10)
        body = iter([b'{"a"', b": 1}"]) if chunked else b'{"a": 1}'
        client.request("POST", "/v1/x?y=1", body, {"X-Own": "z"}, encode_chunked=chunked)
        answer = client.getresponse()
        assert (answer.status, answer.read()) == (418, b'POST {"a": 1}')
        client.close()
    (exchange,) = recorder.asked("/v1/x")
    assert exchange.json == {"a": 1}
    assert exchange.headers["X-Own"] == "z"
    assert exchange.status == 418
    assert exchange.answer == b'POST {"a": 1}'


def test_a_history_may_move_its_cache_mark_and_nothing_else() -> None:
    first = {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {}}]}
    same = {"role": "user", "content": "a"}
    other = {"role": "user", "content": "b"}
    assert turns.extends([first], [same, other])
    assert not turns.extends([first], [other, same])
    assert not turns.extends([first, other], [first])


def test_what_is_typed_is_read_and_then_there_is_no_more(tmp_path: Path) -> None:
    ran = run(["cat"], env=clean(tmp_path), cwd=tmp_path, deadline_s=20, typed="a\nb\n")
    assert (ran.code, ran.output) == (0, "a\nb\n")


def sse(*events: object) -> bytes:
    frames = [f"event: x\ndata: {json.dumps(one)}\n\n" for one in events]
    return ("".join(frames) + ": alive\n\ndata: [DONE]\n\n").encode()


CHAT_USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 3,
    "prompt_tokens_details": {"cached_tokens": 5},
}
ANTHROPIC_USAGE = {
    "input_tokens": 1,
    "cache_read_input_tokens": 5,
    "cache_creation_input_tokens": 3,
    "output_tokens": 3,
}
RESPONSES_USAGE = {
    "input_tokens": 9,
    "output_tokens": 3,
    "input_tokens_details": {"cached_tokens": 5},
}
BESIDE = {"prompt_tokens": 9, "reused_tokens": 5}


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        (turns.CHAT, json.dumps({"usage": CHAT_USAGE}).encode()),
        (turns.CHAT, sse({"choices": [1]}, {"choices": [], "usage": CHAT_USAGE})),
        (turns.CHAT, sse({"usage": None}, {"cache": BESIDE, "timings": {"predicted_n": 3}})),
        (
            turns.RESPONSES,
            sse({"response": {"usage": None}}, {"response": {"usage": RESPONSES_USAGE}}),
        ),
        (
            turns.MESSAGES,
            sse(
                {"message": {"usage": ANTHROPIC_USAGE | {"output_tokens": 0}}},
                {"usage": ANTHROPIC_USAGE},
            ),
        ),
    ],
)
def test_usage_is_read_from_the_fields_of_each_api(path: str, answer: bytes) -> None:
    exchange = Exchange("POST", f"{path}?beta=true", {}, b"{}", 200, answer)
    assert turns.usage(exchange) == turns.Usage(prompt=9, cached=5, reply=3)


def test_an_answer_without_usage_has_none() -> None:
    assert turns.usage(Exchange("POST", turns.CHAT, {}, b"{}", 200, sse({"choices": []}))) is None


AGENT = programs.Program(name="agent", tool="bash", words=())


def session(*, prints: str, n_warm: int, answered: int = 200) -> programs.Session:
    """Two turns as an agent has them: nine tokens, a call of three, its result, a text."""
    asked = [{"role": "user", "content": "Run it."}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]}
    result = {"role": "tool", "tool_call_id": "a", "content": prints}
    tools = [{"type": "function", "function": {"name": "bash"}}]
    second = CHAT_USAGE | {
        "prompt_tokens": 20,
        "prompt_tokens_details": {"cached_tokens": n_warm},
    }
    exchanges = [
        Exchange(
            "POST",
            turns.CHAT,
            {},
            json.dumps({"messages": messages, "tools": tools}).encode(),
            answered,
            sse({"choices": [], "usage": used}),
        )
        for messages, used in ((asked, CHAT_USAGE), ([*asked, call, result], second))
    ]
    return programs.Session(Ran(0, f"{AGENT.prints}\n", 1.0), exchanges)


def test_a_session_whose_last_turn_is_all_warm_is_in_order() -> None:
    assert programs.check(AGENT, session(prints="from-tool", n_warm=12)) is None


def test_what_is_wrong_with_a_session_is_named() -> None:
    check = programs.check
    cold = check(AGENT, session(prints="from-tool", n_warm=11))
    assert cold is not None
    assert cold.startswith("11 tokens of a later turn were warm, fewer than 12")
    assert check(AGENT, session(prints="", n_warm=12)) == (
        "no result of a tool in the last turn has from-tool"
    )
    refused = check(AGENT, session(prints="from-tool", n_warm=12, answered=422))
    assert refused is not None
    assert refused.startswith("POST /v1/chat/completions was answered 422")
    whole = session(prints="from-tool", n_warm=12)
    one = programs.Session(whole.ran, whole.exchanges[:1])
    assert check(AGENT, one) == "1 requests have the tool bash, expected 2"
    failed = programs.Session(Ran(3, "no key", 1.0), whole.exchanges)
    assert check(AGENT, failed) == "exit 3 after 1 s: no key"


def test_failed_operations_are_read_from_the_report_of_schemathesis() -> None:
    report = """
=== FAILURES ===
____ POST /api/copy ____
- ST101 Server error
[501] Not Implemented:
____ TRACE /health ____
1. Test Case ID: XB0BQU
- ST101 Server error
[500] Internal Server Error:
    `body`
Reproduce with:
    curl -X TRACE http://127.0.0.1:1/health
____ POST /v1/x ____
- ST101 Server error
=== SUMMARY ===
"""
    fact = "- ST101 Server error"
    assert schema.failures(report) == [
        Outcome(
            "TRACE /health",
            passed=False,
            detail=f"{fact} | [500] Internal Server Error: |     curl -X TRACE http://127.0.0.1:1/health",
        ),
        Outcome("POST /v1/x", passed=False, detail=fact),
    ]
    assert schema.failures("=== SUMMARY ===") == []


def test_a_run_is_judged_by_its_exit_code_and_its_report() -> None:
    ended = Ran(0, "done\n", 1.0)
    assert load.judged("x", ended, (0,), []) == Outcome("x", passed=True)
    assert load.judged("x", ended, (0,), ["a", "b"]) == Outcome("x", passed=False, detail="a | b")
    failed = load.judged("x", Ran(1, "cold\n", 1.0), (0,), [])
    assert failed == Outcome("x", passed=False, detail="exit 1 after 1 s: cold")
    assert load.judged("x", Ran(1, "no needle\n", 1.0), (0, 1), []).passed
    late = load.judged("x", Ran(None, "", 150.0), (0, 1), ["no report"])
    assert late.detail == "ran past its deadline after 150 s:  | no report"


def agents(*, reuse: float = 1.01, error: str | None = None, n_sessions: int = 4) -> load.Report:
    """A report of agent-sim, in which one turn differs."""
    turns = [("main", 0, 0.0), *(("main", step, 1.01) for step in range(1, 5)), ("sub", 0, 0.0)]
    records = [
        {"session": session, "phase": phase, "step": step, "reuse": warm, "error": None}
        for session in range(n_sessions)
        for phase, step, warm in (*turns, ("finalize", 0, 1.01))
    ]
    return {"records": [*records[:-1], records[-1] | {"reuse": reuse, "error": error}]}


def test_sessions_whose_turns_are_all_warm_are_in_order() -> None:
    assert load.wrong_agents(agents()) == []
    (cold,) = load.wrong_agents(agents(reuse=0.99))
    assert cold.startswith("a turn of which too little was warm: {'session': 3")
    (failed,) = load.wrong_agents(agents(error="503 Server Error"))
    assert failed.startswith("503 Server Error at {")
    assert load.wrong_agents(agents(n_sessions=3)) == ["15 later turns, expected 20"]


def test_an_answer_that_was_not_cut_off_is_named() -> None:
    cut = {"aborted": True, "error": None}
    assert load.wrong_aborts({"records": [cut, cut]}) == []
    assert load.wrong_aborts({"records": []}) == ["no runs"]
    (kept,) = load.wrong_aborts({"records": [cut, cut | {"aborted": False}]})
    assert kept.startswith("an answer was not cut off")


def test_contexts_that_are_lost_are_counted() -> None:
    report = {"hydrate": [{"error": None}], "verify": [], "cold_ttft": 0.4, "retained": 11}
    assert load.wrong_retention(report) == []
    assert load.wrong_retention(report | {"retained": 9}) == ["9 of 11 contexts were warm"]
    assert len(load.wrong_retention(report | {"cold_ttft": None})) == 1
    assert len(load.wrong_retention(report | {"verify": [{"error": "timed out"}]})) == 1


def test_a_prompt_that_was_not_read_is_named() -> None:
    sizes = [
        {"target": n, "prompt_tokens": n + 9, "completion_tokens": 3, "error": None}
        for n in (500, 1000, 1500)
    ]
    assert load.wrong_needles({"results": sizes}) == []
    short = [*sizes[:2], sizes[2] | {"prompt_tokens": 40}]
    assert load.wrong_needles({"results": short}) == ["a prompt of 40 tokens for 1500"]
    assert load.wrong_needles({"results": sizes[:2]}) == ["2 prompts were sent"]


def test_a_step_that_computes_its_prompt_again_is_named() -> None:
    steps = [
        {"run": run, "step": step, "prompt": 400 * (step + 1), "cached": cached, "error": None}
        for run, step, cached in ((0, 0, 0), (0, 1, 400), (1, 0, 399), (1, 1, 410))
    ]
    assert load.wrong_growth({"records": steps}) == []
    again = [*steps[:3], steps[3] | {"cached": 12}]
    assert load.wrong_growth({"records": again}) == [
        "12 tokens were warm, fewer than the 400 of the step before"
    ]
    first = [*steps[:2], steps[2] | {"cached": 0}, steps[3]]
    assert load.wrong_growth({"records": first}) == ["the first prompt of the second run was cold"]
    assert load.wrong_growth({"records": steps[:2]}) == [
        "the first prompt of the second run was cold"
    ]


STREAMS = {
    "error_summary": [],
    "request_count": {"avg": 100.0},
    "time_to_first_token": {"avg": 245.2},
    "inter_token_latency": {"avg": 30.85},
    "request_throughput": {"avg": 9.86},
    "total_usage_prompt_cache_read_tokens": {"avg": 8048.0},
}
CUT = {"error_details": {"code": 499, "type": "RequestCancellationError"}, "count": 22}
REFUSED = {"error_details": {"code": 503, "type": "Unavailable"}, "count": 1}


def test_the_figures_of_aiperf_are_read() -> None:
    assert load.figures(STREAMS) == (
        "first token 245 ms, between tokens 30.9 ms, 9.9 requests/s (means)"
    )
    assert load.wrong_streams(STREAMS, n_requests=100) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"error_summary": [REFUSED]}, "failed requests: "),
        ({"request_count": {"avg": 99.0}}, "99 requests were answered, expected 100"),
        ({"request_count": None}, "0 requests were answered, expected 100"),
        ({"inter_token_latency": None}, "no inter_token_latency"),
        ({"total_usage_prompt_cache_read_tokens": {"avg": 0.0}}, "nothing was warm"),
    ],
)
def test_what_is_wrong_with_streams_is_named(changed: dict[str, object], words: str) -> None:
    (wrong,) = load.wrong_streams(STREAMS | changed, n_requests=100)
    assert wrong.startswith(words)


def test_requests_that_aiperf_cut_off_are_no_failures() -> None:
    cut = STREAMS | {"request_count": {"avg": 38.0}, "error_summary": [CUT]}
    assert load.wrong_cuts(cut, n_requests=60) == []
    assert load.wrong_cuts(cut, n_requests=61) == ["38 answered and 22 cut off, expected 61"]
    (failed,) = load.wrong_cuts(cut | {"error_summary": [CUT, REFUSED]}, n_requests=60)
    assert failed.startswith("failed requests: ")
    assert load.wrong_cuts(STREAMS, n_requests=100) == ["no request was cut off"]


def test_requests_that_were_all_to_be_cut_off_are_counted() -> None:
    cut = {"metadata": {}, "error": {"code": 499}}
    assert load.wrong_drops([cut, cut], n_requests=2) == []
    wrong = ["1 of 2 were cut off: [499, None]"]
    assert load.wrong_drops([cut, {"metadata": {}}], n_requests=2) == wrong
    assert load.wrong_drops([cut], n_requests=2) == ["1 of 2 were cut off: [499]"]


def test_what_runs_and_waits_is_read_from_the_metrics() -> None:
    text = (
        "# TYPE llamacpp:requests_processing gauge\n"
        "llamacpp:requests_processing 2\nllamacpp:requests_deferred 0\nllamacpp:n_decode_total 9\n"
    )
    assert load.busy(text) == {
        "llamacpp:requests_processing": 2.0,
        "llamacpp:requests_deferred": 0.0,
    }


def test_without_a_newer_python_the_load_suite_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none(version: str) -> Path:
        raise Unavailable(f"no Python {version} on this machine")

    monkeypatch.setattr(installing, "interpreter", none)
    with pytest.raises(Problem, match="and the load suite needs one"):
        installing.newer_python()
