"""``GET /llama/v1/events`` and what the page does, on a real node with two workers and keys."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.gateway.keys import new_key
from tests.support.events import reading
from tests.support.gateways import Answered, Gateway, gateway_node
from tests.support.runtime_nodes import LeakCheck, pid_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

KEYS = {name: new_key() for name in ("alice", "boss")}
FILE = "".join(
    f'[keys.{name}]\nsha256 = "{digest}"\nadmin = {"true" if name == "boss" else "false"}\n'
    for name, (_, digest) in KEYS.items()
)


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[name][0]}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("events")


@pytest.fixture(scope="module")
def gateway(folder: Path) -> Iterator[Gateway]:
    keys_file = folder / "keys.toml"
    keys_file.write_text(FILE)
    with (
        LeakCheck() as leaks,
        gateway_node(folder, workers=2, keys_file=str(keys_file), prompts=True) as found,
    ):
        leaks.watch(found.node)
        yield found
        leaks.watch(found.node)


def chat(gateway: Gateway, text: str, key: str = "alice", **more: Any) -> Answered:
    messages = [{"role": "system", "content": "Be brief. " * 20}, {"role": "user", "content": text}]
    body = {"messages": messages, "max_tokens": 8, "temperature": 0, **more}
    answer = gateway.post("/v1/chat/completions", body, **bearer(key))
    assert answer.status == 200, answer.body
    return answer


def kill(gateway: Gateway, key: str = "boss", **body: Any) -> Answered:
    return gateway.post("/llama/v1/tree/kill", body, **bearer(key))


def ended(reader: Any, name: str) -> Any:
    found = reader.requests.get(name)
    return found if found is not None and found["outcome"] is not None else None


def test_an_administrator_reads_the_node_and_all_requests(gateway: Gateway) -> None:
    with reading(gateway, **bearer("boss")) as reader:
        assert reader.answer.getheader("content-type") == "text/event-stream; charset=utf-8"
        eventually(lambda: reader.snapshot, what="a snapshot")
        assert reader.named("hello")[0] == {
            "key": "boss", "admin": True, "prompts": True, "workers": 2,
            "worker": reader.named("hello")[0]["worker"],
        }  # fmt: skip
        model = reader.process("model:demo")
        assert model["state"] == "up"
        assert model["memory_bytes"] > 0
        assert model["mailbox"] is not None
        snapshot = reader.snapshot
        assert snapshot["cache"]["tiers"]["ram"]["budget_bytes"] == 64 << 20
        assert [one["id"] for one in snapshot["models"]] == ["demo"]
        assert "chat_template" not in snapshot["models"][0]
        answers = [chat(gateway, f"Hello {at}") for at in range(6)]  # at either worker
        names = [one.headers["x-request-id"] for one in answers]
        for name in names:
            record = eventually(lambda n=name: ended(reader, n), what="its request is shown")
            assert (record["key"], record["outcome"]) == ("alice", "ok")
            assert record["replies"][0]["generated_tokens"] > 0
        assert reader.requests[names[-1]]["replies"][0]["cached_tokens"] > 0


def test_another_key_reads_of_its_own_requests_alone(gateway: Gateway) -> None:
    theirs = chat(gateway, "Mine", key="boss").headers["x-request-id"]
    with reading(gateway, **bearer("alice")) as reader:
        ours = chat(gateway, "Ours").headers["x-request-id"]
        eventually(lambda: ended(reader, ours), what="its own request")
        assert theirs not in reader.requests
        assert {one["key"] for one in reader.requests.values()} == {"alice"}
        assert reader.snapshot is None
        assert not reader.named("hello")[0]["admin"]


def test_a_request_is_shown_while_it_runs(gateway: Gateway) -> None:
    with reading(gateway, **bearer("boss")) as reader:
        eventually(lambda: reader.named("requests"), what="the list")
        body = {"prompt": "Once upon a time", "max_tokens": 500, "stream": True, "ignore_eos": True}
        with gateway.opened("POST", "/v1/completions", body, bearer("alice")) as answer:
            name = str(answer.getheader("x-request-id"))

            def phase() -> str:
                found = reader.requests.get(name)
                replies = found["replies"] if found else []
                return replies[0]["phase"] if replies else ""

            eventually(lambda: phase() == "decode", what="it is shown in decode")
        record = eventually(lambda: ended(reader, name), what="its end is shown")
        assert record["outcome"] == "client_gone"


def test_a_stream_goes_on_after_the_event_that_was_read_last(gateway: Gateway) -> None:
    with reading(gateway, **bearer("boss")) as reader:
        first = chat(gateway, "First").headers["x-request-id"]
        eventually(lambda: ended(reader, first), what="the first request")
        last = reader.last_id
    second = chat(gateway, "Second").headers["x-request-id"]
    with reading(gateway, last_event_id=last, **bearer("boss")) as reader:
        eventually(lambda: ended(reader, second), what="the second request")
        assert first not in reader.requests
        assert not any(one["all"] for one in reader.named("requests"))


def test_streams_go_on_when_the_ledger_is_killed(gateway: Gateway) -> None:
    with reading(gateway, **bearer("boss")) as reader:
        before = chat(gateway, "Before").headers["x-request-id"]
        eventually(lambda: ended(reader, before), what="the request before")
        assert kill(gateway, id="gateway_ledger").status == 200
        after = chat(gateway, "After").headers["x-request-id"]
        eventually(lambda: ended(reader, after), what="the request after")
        eventually(lambda: ended(reader, before), what="the one before is still shown")
        healed = eventually(
            lambda: (reader.process("gateway_ledger") or {}).get("incarnation", 1) > 1,
            what="the ledger's next process is shown",
        )
        assert healed
        assert not reader.is_over


def test_a_killed_model_is_seen_to_heal(gateway: Gateway) -> None:
    with reading(gateway, **bearer("boss")) as reader:
        eventually(lambda: reader.process("model:demo"), what="the model")
        before = reader.process("model:demo")
        answer = kill(gateway, id="model:demo", incarnation=before["incarnation"])
        assert answer.json["pid"] == before["pid"]

        def healed() -> Any:
            now = reader.process("model:demo")
            return (
                now if now["incarnation"] > before["incarnation"] and now["state"] == "up" else None
            )

        now = eventually(healed, what="the model is up again")
        assert now["last_exit"].startswith("killed")
        stale = kill(gateway, id="model:demo", incarnation=before["incarnation"])
        assert stale.status == 409, "the process that was meant is gone"
        assert pid_of(gateway.node, "model:demo") == now["pid"]


def test_what_may_not_be_killed_and_by_whom(gateway: Gateway) -> None:
    assert kill(gateway, "alice", id="model:demo").status == 403
    assert kill(gateway, id="launcher").status == 400
    assert kill(gateway, id="nothing").status == 404
    assert gateway.post("/llama/v1/tree/kill", {}, **bearer("boss")).status == 400
    assert gateway.get("/llama/v1/events").status == 401


def test_a_worker_kills_itself_once_and_answers(gateway: Gateway, folder: Path) -> None:
    for worker in ("http:0", "http:1"):
        before = gateway.node.tree().find(worker)
        assert before is not None
        assert kill(gateway, id=worker).status == 200

        def healed(name: str = worker, at: int = before.incarnation) -> bool:
            now = gateway.node.tree().find(name)
            return now is not None and now.state == "up" and now.incarnation > at

        eventually(healed, what=f"{worker} is up again")
        now = gateway.node.tree().find(worker)
        assert now is not None
        assert now.incarnation == before.incarnation + 1, "its successor does not kill again"
    log = (folder / "node.log").read_text()
    assert log.count("is killed: the key 'boss' asked for it") >= 2


def test_a_broken_stream_is_opened_again_and_has_what_was_missed(gateway: Gateway) -> None:
    with reading(gateway, **bearer("boss")) as reader:
        shown = chat(gateway, "Shown").headers["x-request-id"]
        eventually(lambda: ended(reader, shown), what="the request")
        worker = f"http:{reader.named('hello')[0]['worker']}"
        os.kill(pid_of(gateway.node, worker), signal.SIGKILL)
        eventually(lambda: reader.is_over, what="the stream broke")
        last = reader.last_id
    missed = chat(gateway, "Missed").headers["x-request-id"]
    with reading(gateway, last_event_id=last, **bearer("boss")) as reader:
        eventually(lambda: ended(reader, missed), what="what was missed")
        assert not any(one["all"] for one in reader.named("requests"))


def test_one_that_reads_nothing_holds_up_nobody(gateway: Gateway) -> None:
    """A reader that is slow gets the latest state, and others do not wait for it."""
    with gateway.raw() as silent:
        token = KEYS["boss"][0]
        lines = (
            "GET /llama/v1/events HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {token}",
        )  # fmt: skip
        silent.sendall("\r\n".join([*lines, "", ""]).encode())
        with reading(gateway, **bearer("boss")) as reader:
            names = [chat(gateway, f"Slow {at}").headers["x-request-id"] for at in range(5)]
            eventually(lambda: all(ended(reader, one) for one in names), what="the others go on")
        assert b"event: hello" in silent.recv(4096)


def test_why_shows_parts_texts_and_the_place_to_administrators_alone(gateway: Gateway) -> None:
    chat(gateway, "Tell me about the sea")
    answer = chat(gateway, "Tell me about a hill")
    name = answer.headers["x-request-id"]
    path = f"/llama/v1/requests/{name}/why"
    asked = [gateway.at(one, "GET", path, **bearer("boss")) for one in ("http:0", "http:1")]
    assert asked[0].body == asked[1].body, "a worker asks the one that has it"
    found = asked[0].json
    names = [one["name"] for one in found["parts"]]
    assert names[:2] == ["messages[0]", "messages[1]"]
    assert found["parts"][0]["role"] == "system"
    assert found["parts"][-1]["end_token"] == found["n_tokens"]
    assert found["n_tokens"] == answer.json["usage"]["prompt_tokens"]
    around = found["around"]
    assert around["before"].endswith("Tell me about")
    assert around["after"].startswith(" a hill")
    assert max(map(len, around.values())) <= 40
    assert found["replies"][0]["cache"]["diverged"]["part"] == "messages[1].content"
    assert gateway.get(path, **bearer("alice")).status == 403
    assert gateway.get("/llama/v1/requests/req_0/why", **bearer("boss")).status == 404


def test_a_long_prompt_is_read_at_another_worker_too(gateway: Gateway) -> None:
    messages = [{"role": "user", "content": f"{at} waves " * 12} for at in range(40)]
    body = {"messages": messages, "max_tokens": 1}
    name = gateway.post("/v1/chat/completions", body, **bearer("boss")).headers["x-request-id"]
    path = f"/llama/v1/requests/{name}/why"
    for worker in ("http:0", "http:1"):
        found = gateway.at(worker, "GET", path, **bearer("boss")).json
        assert len(found["parts"]) >= 40


def test_no_text_of_a_prompt_or_reply_is_in_the_events(gateway: Gateway) -> None:
    word = "marzipan"
    with reading(gateway, **bearer("boss")) as reader:
        answer = chat(gateway, f"What is {word}?")
        eventually(lambda: ended(reader, answer.headers["x-request-id"]), what="the request")
        seen = json.dumps(reader.events)
    assert word not in seen
    assert answer.json["choices"][0]["message"]["content"] not in seen


def test_the_root_is_the_page_for_browsers_and_ollama_for_others(gateway: Gateway) -> None:
    answer = gateway.get("/", accept="text/html,*/*;q=0.8")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert answer.headers["vary"] == "Accept"
    assert gateway.get("/").body == b"Ollama is running"
    head = gateway.call("HEAD", "/", headers={"accept": "text/html"})
    assert (head.status, head.body) == (200, b"")
    script = gateway.get("/llama/ui/main.js")
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    assert script.headers["x-content-type-options"] == "nosniff"
    assert gateway.get("/llama/ui/..%2Fapp.py").status == 404
    assert gateway.get("/llama/ui/app.py").status == 404


def test_readers_do_not_hold_up_the_end_of_the_node(tmp_path: Path) -> None:
    with gateway_node(tmp_path, drain_s=60.0) as found, reading(found) as reader:
        eventually(lambda: reader.snapshot, what="a snapshot")
        stopped = threading.Event()

        def stop() -> None:
            found.node.stop()
            stopped.set()

        thread = threading.Thread(target=stop)
        thread.start()
        assert stopped.wait(30.0), "an open page is no request to wait for"
        thread.join()
