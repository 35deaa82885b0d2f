"""Who may call the gateway, how often, and which model a name means."""

from __future__ import annotations

import datetime
import hashlib
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import ConfigError
from runtime.gateway import guard
from runtime.gateway.facts import ModelFacts
from runtime.gateway.keys import (
    ANYONE,
    BadKeys,
    Key,
    Keys,
    given_key,
    keys_from,
    new_key,
    salt_of,
)
from runtime.gateway.limits import Bucket, Limits
from runtime.gateway.names import other_names, resolve
from runtime.gateway.wire.failure import Fault, Refused
from runtime.gateway.wire.openai_models import openai_list
from runtime.launch import listeners
from runtime.settings.gateway import GatewaySettings, check

pytestmark = pytest.mark.pure

TODAY = datetime.date(2026, 12, 1)


def fault_of(caught: pytest.ExceptionInfo[Refused]) -> Fault:
    return caught.value.failure.fault


# ── hosts and origins ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:8080", "192.168.1.5:80", "[::1]:8080", "[::1]", "LOCALHOST:1",
     "a.localhost", "my.box:80"],
)  # fmt: skip
def test_hosts_that_nobody_else_can_point_here(host: str) -> None:
    assert guard.check_host([host.encode()], ["My.Box"]) == host.lower()


@pytest.mark.parametrize(
    "hosts",
    [[], [b""], [b"a", b"a"], [b"evil.example"], [b"127.0.0.1.evil.example"], [b"localhost.evil"],
     [b"xlocalhost"], [b"box.local"], [b"1.2.3"], [b"[evil]:80"]],
)  # fmt: skip
def test_other_hosts_are_refused(hosts: list[bytes]) -> None:
    with pytest.raises(Refused):
        guard.check_host(hosts, [])


def test_a_unix_socket_needs_no_host() -> None:
    assert guard.check_host([b"anything"], [], is_unix=True) == "anything"


def test_all_bodies_together_have_room_for_one() -> None:
    check(GatewaySettings(max_body=1 << 20, max_bodies=1 << 20))
    with pytest.raises(ConfigError, match="max_bodies"):
        check(GatewaySettings(max_body=(1 << 20) + 1, max_bodies=1 << 20))


def test_a_key_has_rules_of_its_own() -> None:
    digest = new_key()[1]
    text = f'[keys.a]\nsha256 = "{digest}"\nrules = ["strip-ids"]'
    (key,) = keys_from(text).by_hash.values()
    assert key.rules == ("strip-ids",)
    with pytest.raises(BadKeys, match="rules"):
        keys_from(text.replace("strip-ids", "no-rule"))


@pytest.mark.parametrize(
    ("site", "mode", "more", "is_right"),
    [
        (b"cross-site", b"no-cors", {}, False),
        (b"same-site", b"no-cors", {}, False),
        (b"cross-site", b"navigate", {}, True),
        (b"same-origin", b"no-cors", {}, True),
        (b"none", b"navigate", {}, True),
        (b"cross-site", b"cors", {b"origin": b"https://known.example"}, True),  # is looked at
    ],
)
def test_what_pages_elsewhere_load(
    site: bytes, mode: bytes, more: dict[bytes, bytes], is_right: bool
) -> None:
    headers = {b"sec-fetch-site": site, b"sec-fetch-mode": mode, **more}
    guard.check_site({}, ())
    guard.check_site(headers, ("*",))
    if is_right:
        guard.check_site(headers, ())
    else:
        with pytest.raises(Refused):
            guard.check_site(headers, ())


@pytest.mark.parametrize(
    ("origin", "is_right"),
    [
        (None, True),
        (b"http://127.0.0.1:8080", True),
        (b"https://127.0.0.1:8080", True),
        (b"https://chat.example", True),
        (b"null", False),
        (b"http://127.0.0.1:8081", False),
        (b"http://127.0.0.1:8080.evil.example", False),
        (b"file://127.0.0.1:8080", False),
        (b"http://[127.0.0.1:8080", False),
        (b"https://chat.example.evil", False),
    ],
)
def test_origins(origin: bytes | None, is_right: bool) -> None:
    known = ["https://chat.example/"]
    if is_right:
        guard.check_origin(origin, "127.0.0.1:8080", known)
    else:
        with pytest.raises(Refused):
            guard.check_origin(origin, "127.0.0.1:8080", known)


# ── keys ────────────────────────────────────────────────────────────────────────────────────────


def file_of(*names: str, more: str = "") -> tuple[Keys, dict[str, str]]:
    made = {name: new_key() for name in names}
    text = "".join(f'[keys.{name}]\nsha256 = "{made[name][1]}"\n{more}\n' for name in names)
    return keys_from(text), {name: key for name, (key, _) in made.items()}


def test_a_key_is_found_by_its_hash_alone() -> None:
    keys, made = file_of("alice", "bob")
    found = keys.find(made["alice"])
    assert found is not None
    assert found.name == "alice"
    assert keys.find(hashlib.sha256(made["alice"].encode()).hexdigest()) is None
    assert keys.find("") is None


@pytest.mark.parametrize(
    ("headers", "given"),
    [
        ({b"authorization": b"Bearer abc"}, "abc"),
        ({b"authorization": b"bearer  abc "}, "abc"),
        ({b"x-api-key": b"abc"}, "abc"),
        ({b"api-key": b"abc"}, "abc"),
        ({b"authorization": b"Bearer "}, None),
        ({b"authorization": b"Basic abc"}, None),
        ({b"authorization": b"Bearer", b"x-api-key": b"abc"}, "abc"),
        ({}, None),
    ],
)
def test_where_a_key_is(headers: dict[bytes, bytes], given: str | None) -> None:
    assert given_key(headers) == given


def test_without_a_file_anyone_may_do_anything() -> None:
    assert guard.check_key({}, None, "/v1/models", TODAY) is ANYONE
    assert ANYONE.is_admin


def test_with_a_file_a_key_is_needed_and_must_be_valid() -> None:
    keys, made = file_of("alice", more="expires = 2026-12-01")
    carried = {b"x-api-key": made["alice"].encode()}
    assert guard.check_key(carried, keys, "/v1/models", TODAY).name == "alice"
    late = TODAY + datetime.timedelta(days=1)
    for headers, day in ((carried, late), ({}, TODAY), ({b"x-api-key": b"la-other"}, TODAY)):
        with pytest.raises(Refused) as caught:
            guard.check_key(headers, keys, "/v1/models", day)
        assert fault_of(caught) is Fault.NO_KEY
    assert not guard.check_key({}, keys, "/health", TODAY).is_admin


def test_a_key_may_use_its_models() -> None:
    key = Key("alice", models=("mine*", "demo"))
    guard.check_model(key, "mine-7b")
    with pytest.raises(Refused) as caught:
        guard.check_model(key, "other")
    assert fault_of(caught) is Fault.FORBIDDEN


@pytest.mark.parametrize(
    "text",
    ["", "[keys.a]\n", '[keys.a]\nsha256 = "zz"\n', '[keys.a]\nsha256 = "00"\n', "x = 1\n",
     '[keys.a]\nsha256 = "' + "0" * 64 + '"\nmodles = []\n', "[keys.a\n",
     '[keys.a]\nsha256 = "' + "0" * 64 + '"\nrunning = 0\n'],
)  # fmt: skip
def test_a_wrong_file_is_named_so(text: str) -> None:
    with pytest.raises(BadKeys):
        keys_from(text)


def test_from_the_second_key_on_each_has_rows_of_its_own() -> None:
    one, _ = file_of("alice")
    two, _ = file_of("alice", "bob")
    secret = b"s" * 32
    (alone,) = one.by_hash.values()
    assert salt_of(alone, secret) == b""
    salts = {salt_of(key, secret) for key in two.by_hash.values()}
    assert len(salts) == 2
    assert b"" not in salts
    team = [salt_of(Key(name, namespace="team"), secret) for name in "ab"]
    assert team[0] == team[1] != salt_of(Key("team", namespace="private"), secret)


@given(st.text(), st.text(), st.text())
def test_what_a_caller_adds_stays_inside_its_own_rows(name: str, other: str, own: str) -> None:
    mine, theirs = Key(name, namespace="private"), Key(other, namespace="private")
    if name != other:
        assert salt_of(mine, b"s", own) != salt_of(theirs, b"s", own)
    assert salt_of(mine, b"s", own) != salt_of(mine, b"t", own)


# ── limits ──────────────────────────────────────────────────────────────────────────────────────


def test_a_bucket_refills_evenly() -> None:
    bucket = Bucket(60)
    for _ in range(60):
        assert bucket.wait_s(0.0) == 0.0
        bucket.use(0.0, 1)
    assert bucket.wait_s(0.0) == pytest.approx(1.0)
    assert bucket.wait_s(0.5) == pytest.approx(0.5)
    assert bucket.wait_s(1.0) == pytest.approx(0.0)


@given(st.lists(st.floats(0, 30), max_size=40), st.integers(1, 30))
def test_no_minute_holds_more_than_twice_the_limit(pauses: list[float], per_minute: int) -> None:
    bucket, now, used = Bucket(per_minute), 0.0, []
    for pause in pauses:
        now += pause
        if bucket.wait_s(now) == 0.0:
            bucket.use(now, 1)
            used.append(now)
    for start in used:
        assert sum(start <= at < start + 60 for at in used) <= 2 * per_minute


def test_requests_tokens_and_running_are_limited_each() -> None:
    key = Key("a", requests_per_min=2, tokens_per_min=100, running=1)
    limits = Limits()
    limits.begin(key, 0.0)
    with pytest.raises(Refused, match="run already"):
        limits.begin(key, 0.0)
    limits.end(key, 0.0, 150)
    with pytest.raises(Refused, match="tokens") as caught:
        limits.begin(key, 0.0)
    assert fault_of(caught) is Fault.RATE
    wait_s = caught.value.failure.retry_after_s
    assert wait_s is not None
    limits.begin(key, wait_s + 0.01)
    limits.end(key, wait_s + 0.01)
    limits.begin(Key("b"), 0.0)


def test_new_limits_of_a_key_count_from_its_next_request_on() -> None:
    limits = Limits()
    limits.begin(Key("a", requests_per_min=1, running=2), 0.0)
    with pytest.raises(Refused, match="requests"):
        limits.begin(Key("a", requests_per_min=1, running=2), 0.0)
    limits.begin(Key("a", requests_per_min=5, running=2), 0.0)
    with pytest.raises(Refused, match="run already"):
        limits.begin(Key("a", requests_per_min=5, running=2), 0.0)


@pytest.mark.parametrize(("host", "is_local"), [("127.0.0.1", True), ("0.0.0.0", False)])
def test_what_systemd_opens_for_all_needs_keys(host: str, is_local: bool) -> None:
    with socket.socket() as sock:
        sock.bind((host, 0))  # nothing listens
        if is_local:
            listeners.require_local(sock.fileno())
        else:
            with pytest.raises(ConfigError, match="keys_file"):
                listeners.require_local(sock.fileno())


# ── names ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("asked", "loaded", "found"),
    [
        ("a", ["a", "b"], "a"),
        ("claude-x", ["a", "b"], "b"),
        ("gpt-5", ["a"], "a"),
        ("", ["a"], "a"),
        ("demo", [], "demo"),
        ("demo", ["a"], "demo"),
        ("a:latest", ["a", "b"], "a"),
    ],
)
def test_names(asked: str, loaded: list[str], found: str) -> None:
    assert resolve(asked, loaded, [("claude-*", "b")]) == found


@pytest.mark.parametrize(
    ("asked", "loaded", "unknown"),
    [("x", ["a", "b"], "only"), ("x", ["a"], "reject"), ("", [], "only"), ("", ["a", "b"], "only")],
)
def test_other_names_are_refused_with_those_that_there_are(
    asked: str, loaded: list[str], unknown: str
) -> None:
    with pytest.raises(Refused) as caught:
        resolve(asked, loaded, [], unknown)  # type: ignore[arg-type]
    assert fault_of(caught) is Fault.NO_MODEL
    assert all(one in str(caught.value) for one in loaded)


def test_aliases_that_are_names_are_listed_with_what_they_mean() -> None:
    aliases = [("claude-*", "a"), ("org/a:Q8", "a"), ("b2", "b"), ("g?t", "a"), ("[x]", "a")]
    assert other_names("a", aliases) == ["org/a:Q8"]
    facts = ModelFacts("a", 7, {}, is_up=False)
    first, second = openai_list([(facts, None), (facts, "org/a:Q8")])["data"]
    assert (first["id"], second["id"], second["root"]) == ("a", "org/a:Q8", "a")
    assert first["status"] == second["status"] == {"value": "loading", "state": "loading"}
