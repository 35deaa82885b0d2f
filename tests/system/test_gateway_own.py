"""Our own API below /llama/v1, on a real node: the cache, models, adapters, sessions, answers."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from native._stub_adapters import MAGIC
from runtime import ModelConfig
from runtime.client.cache.row_files import walk
from runtime.gateway.keys import new_key
from tests.support.gateways import Answered, Gateway, frames_of, gateway_node
from tests.support.runtime_nodes import LeakCheck, inflight_status, one_thread, pid_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

OURS = "/llama/v1"
STORY = "The old lighthouse keeper counted the waves and wrote each number in a blue book. " * 8
KEYS = {name: new_key() for name in ("alice", "bob", "boss")}
FILE = "".join(
    f'[keys.{name}]\nsha256 = "{digest}"\nadmin = {"true" if name == "boss" else "false"}\n'
    f"rules = {['stable-system'] if name == 'bob' else []}\n"
    for name, (_, digest) in KEYS.items()
)
ADMINS_ALONE = (
    ("GET", "/status", None), ("GET", "/tree", None), ("GET", "/models", None),
    ("GET", "/adapters", None), ("GET", "/sessions", None),
    ("GET", "/cache/stat", None), ("GET", "/cache/ls", None), ("GET", "/cache/show/abcd", None),
    ("POST", "/cache/verify", {}), ("POST", "/cache/gc", {}), ("POST", "/cache/flush", {}),
    ("POST", "/cache/rm", {"key": "abcd"}), ("POST", "/cache/wipe", {"all": True}),
    ("POST", "/models/load", {"model": "x", "path": "/x"}),
    ("POST", "/models/unload", {"model": "tiny"}),
    ("POST", "/adapters/load", {"path": "/x"}), ("POST", "/adapters/set", {"id": 1, "scale": 1}),
    ("POST", "/adapters/unload", {"id": 1}), ("POST", "/sessions/end", {"session": "s"}),
)  # fmt: skip


class Ours:
    """The gateway, as one key or another."""

    def __init__(self, gateway: Gateway, home: Path) -> None:
        self.gateway = gateway
        self.node = gateway.node
        self.rows_dir = home / "cache" / "rows"

    def ask(self, path: str, body: object = None, key: str = "boss", method: str = "") -> Answered:
        method = method or ("GET" if body is None else "POST")
        headers = {"authorization": f"Bearer {KEYS[key][0]}"}
        return self.gateway.call(method, f"{OURS}{path}", body, headers)

    def json(self, path: str, body: object = None, key: str = "boss") -> Any:
        answer = self.ask(path, body, key)
        assert answer.status == 200, answer.body
        return answer.json

    def complete(self, prompt: str, key: str = "boss", **more: Any) -> Answered:
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 2, "temperature": 0, **more}
        headers = {"authorization": f"Bearer {KEYS[key][0]}"}
        answer = self.gateway.call("POST", "/v1/completions", body, headers)
        assert answer.status == 200, answer.body
        return answer


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory, tiny_gguf: Path) -> Iterator[Ours]:
    folder = tmp_path_factory.mktemp("own")
    keys_file = folder / "keys.toml"
    keys_file.write_text(FILE)
    models = {
        "tiny": one_thread(tiny_gguf),
        "stub": ModelConfig("stub", backend="stub"),
        "demo": None,
    }
    with (
        LeakCheck() as leaks,
        gateway_node(
            folder, models, keys_file=str(keys_file), unknown_model="reject", keepalive_s=0.2
        ) as found,
    ):
        leaks.watch(found.node)
        yield Ours(found, folder)
        leaks.watch(found.node)


def error_of(answer: Answered) -> dict[str, Any]:
    found: dict[str, Any] = answer.json["error"]
    return found


@pytest.mark.parametrize(("method", "path", "body"), ADMINS_ALONE, ids=lambda one: str(one)[:30])
def test_other_keys_may_not_see_or_change_the_node(
    ours: Ours, method: str, path: str, body: object
) -> None:
    refused = ours.ask(path, body, "alice", method)
    assert refused.status == 403
    assert error_of(refused)["type"] == "permission_error"


def test_the_node_its_processes_and_its_models(ours: Ours) -> None:
    status = ours.json("/status")
    assert {"cache_meta", "inflight", "model:tiny", "http:0"} <= set(status["actors"])
    assert status["node"]["port"] == ours.node.port
    tree = ours.json("/tree?vitals=true")
    assert tree["id"] == "launcher"
    assert tree["children"][0]["memory_bytes"] > 0
    assert ours.json("/tree")["children"][0]["memory_bytes"] is None
    assert ours.ask("/tree?vitals=perhaps").status == 400
    models = {one["id"]: one for one in ours.json("/models")["models"]}
    assert models["tiny"]["state"] == "up"
    assert models["tiny"]["details"]["n_ctx"] > 0


def test_rows_are_listed_shown_and_removed(ours: Ours) -> None:
    for number in range(3):
        ours.complete(f"{STORY} Then he said {number}.")
    assert ours.json("/cache/flush", {}) == {"flushed": True}
    rows = ours.json("/cache/ls?limit=1000")
    assert rows["cursor"] is None
    assert {row["model"] for row in rows["rows"]} == {"tiny"}
    assert len(rows["rows"]) == len(walk(ours.rows_dir).rows)
    stat = ours.json("/cache/stat")
    assert stat["cache"]["rows"] == len(rows["rows"])
    assert stat["tiers"]["disk"]["rows"] == len(rows["rows"])

    pages, cursor = [], 0
    while cursor is not None:
        page = ours.json(f"/cache/ls?limit=2&cursor={cursor}")
        pages += page["rows"]
        cursor = page["cursor"]
    assert {one["key"] for one in pages} == {one["key"] for one in rows["rows"]}
    assert ours.json("/cache/ls?model=none")["rows"] == []
    assert ours.json("/cache/ls?older_than=86400")["rows"] == []
    assert len(ours.json("/cache/ls?newer_than=86400&tier=disk")["rows"]) == len(pages)
    assert ours.ask("/cache/ls?limit=0").status == 400
    assert ours.ask("/cache/ls?cursor=-1").status == 400
    assert ours.ask("/cache/ls?older_than=nan").status == 400

    first = next(row for row in pages if row["start"] == 0)
    shown = ours.json(f"/cache/show/{first['key'][:20]}")
    assert shown["key"] == first["key"]
    assert shown["ok"]
    assert shown["children"] >= 1
    assert ours.ask("/cache/show/ab").status == 400
    assert error_of(ours.ask("/cache/show/zzzz"))["message"].startswith("'zzzz' is not a key")
    removed = ours.json("/cache/rm", {"key": first["key"]})
    assert removed["rows"] >= shown["children"] + 1
    assert ours.ask("/cache/rm", {"key": first["key"]}).status == 400


def test_rows_are_checked_and_damage_is_found_and_quarantined(ours: Ours) -> None:
    ours.complete(f"For a check. {STORY}")
    ours.json("/cache/flush", {})
    whole = ours.json("/cache/verify", b"")
    assert whole["rows"] > 0
    assert whole["damaged"] == []
    victim = Path(walk(ours.rows_dir).rows[0])
    damaged = bytearray(victim.read_bytes())
    damaged[-1] ^= 1
    victim.write_bytes(damaged)
    answer = ours.ask("/cache/verify", {"repair": True, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    frames = frames_of(answer.body)
    assert [name for name, _ in frames[:-1]] == ["progress"] * (len(frames) - 1)
    assert all(0.0 <= data["share"] <= 1.0 for _, data in frames[:-1])
    name, found = frames[-1]
    assert name == "result"
    assert [one["repaired"] for one in found["damaged"]] == [True]
    assert found["damaged"][0]["tier"] == "disk"
    eventually(
        lambda: ours.json("/cache/verify", {})["damaged"] == [], what="it is out of the index"
    )
    cleared = ours.json("/cache/gc", {"quarantine_age_s": 0})
    assert cleared["quarantined_files"] == 1
    assert ours.ask("/cache/gc", {"quarantine_age_s": -1}).status == 400


def test_a_wipe_names_what_it_wipes(ours: Ours) -> None:
    ours.complete(f"To be wiped. {STORY}")
    ours.json("/cache/flush", {})
    assert ours.ask("/cache/wipe", {}).status == 400
    assert ours.ask("/cache/wipe", {"model": "tiny", "all": True}).status == 400
    assert ours.ask("/cache/wipe", {"model": "other"}).status == 400
    assert ours.json("/cache/wipe", {"model": "tiny"})["rows"] > 0
    assert ours.json("/cache/ls")["rows"] == []
    warm = ours.json("/cache/match", {"model": "tiny", "prompt": f"To be wiped. {STORY}"})
    assert warm["warm_tokens"] == 0
    assert ours.json("/cache/wipe", {"all": True})["rows"] == 0


def test_how_warm_a_prompt_is_for_a_key(ours: Ours) -> None:
    prompt = f"How warm? {STORY}"
    asked = {"model": "tiny", "prompt": prompt}
    cold = ours.json("/cache/match", asked, "alice")
    assert (cold["live"], cold["stored"], cold["warm_tokens"]) == (0, 0, 0)
    used = ours.complete(prompt, "alice").json["usage"]
    warm = ours.json("/cache/match", asked, "alice")
    assert warm["prompt_tokens"] == used["prompt_tokens"]
    assert warm["warm_tokens"] >= used["prompt_tokens"] - 1
    for other in ("bob", "boss"):
        assert ours.json("/cache/match", asked, other)["warm_tokens"] <= 1, "not its own"
    salted = {**asked, "cache_salt": "one"}
    assert ours.json("/cache/match", salted, "alice")["warm_tokens"] <= 1
    ours.complete(prompt, "alice", cache_salt="one")
    assert ours.json("/cache/match", salted, "alice")["warm_tokens"] > 100

    talk = {"model": "demo", "messages": [{"role": "user", "content": STORY}]}
    headers = {"authorization": f"Bearer {KEYS['bob'][0]}"}
    said = ours.gateway.call("POST", "/v1/chat/completions", {**talk, "max_tokens": 1}, headers)
    assert said.status == 200, said.body
    found = ours.json("/cache/match", talk, "bob")
    assert found["prompt_tokens"] == said.json["usage"]["prompt_tokens"]
    assert found["warm_tokens"] >= found["prompt_tokens"] - 1
    for wrong in ({}, {**asked, **talk}, {"prompt": [-1, "x"]}, {"model": "none", "prompt": "x"}):
        assert ours.ask("/cache/match", wrong, "bob").status in (400, 404)


def test_models_are_loaded_and_unloaded(ours: Ours, tiny_gguf: Path) -> None:
    body = {"model": "second", "path": str(tiny_gguf), "options": {"n_ctx": 512, "n_threads": 1}}
    loaded = ours.json("/models/load", body)
    assert loaded["details"]["n_ctx"] == 512
    again = ours.ask("/models/load", body)
    assert again.status == 409
    assert "unload it first" in error_of(again)["message"]
    assert ours.json("/models/unload", {"model": "second"})["unloaded"] is True
    assert ours.ask("/models/unload", {"model": "second"}).status == 404
    assert ours.ask("/models/unload", {"model": ""}).status == 400
    for wrong in (
        {"model": "second", "path": "/nowhere.gguf"}, {"model": "second"},
        {"model": "second", "path": __file__}, {"model": "two words", "path": "/x"},
        {**body, "options": {"n_ctx": -5}}, {**body, "options": {"no_option": 1}},
        {**body, "options": {"model": "third"}},
    ):  # fmt: skip
        refused = ours.ask("/models/load", wrong)
        assert refused.status == 400, wrong
        assert error_of(refused)["message"]
    assert {one["id"] for one in ours.json("/models")["models"]} == {"tiny", "stub", "demo"}


def test_a_load_shows_its_progress(ours: Ours, tiny_gguf: Path) -> None:
    body = {"model": "shown", "path": str(tiny_gguf), "stream": True}
    answer = ours.ask("/models/load", body)
    frames = frames_of(answer.body)
    shares = [data["share"] for name, data in frames if name == "progress"]
    assert shares == sorted(shares)
    assert frames[-1][0] == "result"
    assert frames[-1][1]["id"] == "shown"
    assert ours.ask("/models/load", body).status == 409, "before anything is sent"
    ours.json("/models/unload", {"model": "shown", "drain_s": 0})


def test_a_load_goes_on_when_its_worker_is_killed(ours: Ours) -> None:
    """On the same connection: the next worker waits for the model that the node loads."""
    body = json.dumps({"model": "slow", "path": "demo", "options": {"backend": "stub"}})
    connection = ours.gateway.connect()
    headers = {"authorization": f"Bearer {KEYS['boss'][0]}"}
    connection.request("POST", f"{OURS}/models/load", body, headers)
    os.kill(pid_of(ours.node, "http:0"), signal.SIGKILL)
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    assert json.loads(answer.read())["id"] == "slow"
    connection.close()
    ours.json("/models/unload", {"model": "slow"})


def test_adapters_come_scale_and_go(ours: Ours, tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    path.write_bytes(MAGIC + b"1")
    (one,) = ours.json("/adapters/load", {"model": "stub", "path": str(path), "scale": 0.5})[
        "adapters"
    ]
    assert (one["path"], one["scale"]) == (str(path), 0.5)
    assert ours.json("/adapters?model=stub")["adapters"] == [one]
    changed = ours.json("/adapters/set", {"model": "stub", "id": one["id"], "scale": 2})
    assert changed["adapters"][0]["scale"] == 2.0
    assert ours.json("/adapters/unload", {"model": "stub", "id": one["id"]})["adapters"] == []
    for path_of, wrong in (
        ("/adapters/unload", {"model": "stub", "id": one["id"]}),
        ("/adapters/load", {"model": "stub", "path": "/nowhere"}),
        ("/adapters/load", {"model": "stub", "path": ""}),
        ("/adapters/set", {"model": "stub", "id": -1, "scale": 1}),
    ):
        assert ours.ask(path_of, wrong).status == 400, wrong


def test_sessions_are_listed_and_ended(ours: Ours) -> None:
    ours.complete(STORY, "boss", session="mine")
    ours.complete(STORY, "alice", session="hers")
    found = {one["session"]: one for one in ours.json("/sessions?model=tiny")["sessions"]}
    assert found["mine"]["own"]
    assert not found["hers"]["own"]
    assert found["mine"]["tokens"] > 100
    assert not found["mine"]["running"]
    ended = {"model": "tiny", "session": "mine"}
    assert ours.json("/sessions/end", ended)["was_known"] is True
    assert ours.json("/sessions/end", ended)["was_known"] is False
    assert ours.json("/sessions/end", {**ended, "session": "hers"})["was_known"] is False


def test_an_answer_is_explained_to_the_key_that_has_it(ours: Ours) -> None:
    answer = ours.complete(f"Explain. {STORY}", "alice", n=2)
    request, name = answer.headers["x-request-id"], answer.json["id"]
    found = ours.json(f"/requests/{request}/explain", key="alice")
    assert found["request"] == request
    assert name == f"cmpl-{found['id']}"
    assert ours.json(f"/requests/{name}/explain", key="alice") == found
    assert [one["index"] for one in found["replies"]] == [0, 1]
    assert found["replies"][0]["cache"] == answer.json["cache"]
    assert found["replies"][0]["usage"]["prompt_tokens"] == answer.json["usage"]["prompt_tokens"]
    assert found["replies"][1]["cache"]["reused_tokens"] > 100, "the second read what is live"
    assert ours.ask(f"/requests/{request}/explain", key="bob").status == 404
    assert ours.ask("/requests/req_none/explain", key="alice").status == 404
    with ours.gateway.opened(
        "POST",
        "/v1/chat/completions",
        {"model": "demo", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2,
         "stream": True},
        {"x-api-key": KEYS["bob"][0]},
    ) as stream:  # fmt: skip
        request = stream.getheader("x-request-id")
        assert stream.read()
    assert len(ours.json(f"/requests/{request}/explain", key="bob")["replies"]) == 1


def test_a_key_has_canonical_rules_of_its_own(ours: Ours) -> None:
    talk = [{"role": "system", "content": [{"type": "text", "text": one} for one in "ab"]},
            {"role": "user", "content": "Hello"}]  # fmt: skip
    asked = {"model": "demo", "messages": talk, "max_tokens": 1}
    for name, rules in (("bob", ["stable-system"]), ("alice", [])):
        headers = {"x-api-key": KEYS[name][0]}
        answer = ours.gateway.call("POST", "/v1/chat/completions", asked, headers)
        assert answer.json["cache"]["rules"] == rules


def test_a_background_response_is_explained_by_its_id(ours: Ours) -> None:
    headers = {"x-api-key": KEYS["bob"][0]}
    asked = {"model": "demo", "input": "Hello", "max_output_tokens": 2, "background": True}
    made = ours.gateway.call("POST", "/v1/responses", asked, headers).json

    def is_explained() -> bool:
        return ours.ask(f"/requests/{made['id']}/explain", key="bob").status == 200

    eventually(is_explained, what="it has ended")


def test_who_leaves_a_check_ends_it(ours: Ours) -> None:
    ours.complete(f"To be left. {STORY}")
    for _ in range(4):
        connection = http.client.HTTPConnection("127.0.0.1", ours.gateway.port, timeout=60)
        headers = {"authorization": f"Bearer {KEYS['boss'][0]}"}
        connection.request("POST", f"{OURS}/cache/verify", b"{}", headers)
        assert connection.sock is not None
        connection.close()
    assert ours.json("/cache/verify", {})["damaged"] == []
    assert inflight_status(ours.node)["in_flight"] == 0


def test_long_work_stops_nobody_else(ours: Ours) -> None:
    """The loop goes on while threads read rows."""
    done: list[int] = []
    threads = [
        threading.Thread(target=lambda: done.append(ours.ask("/cache/verify", {}).status))
        for _ in range(6)
    ]
    for one in threads:
        one.start()
    assert ours.gateway.get("/health").status == 200
    for one in threads:
        one.join()
    assert done == [200] * 6
