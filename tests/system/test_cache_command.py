"""``python -m runtime cache`` and ``inspect``, on a running node and without one."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from blake3 import blake3

from actors import messages as m
from actors.storage.admin_queries import (
    NAMESPACES_PER_PAGE,
    REMOVED_PER_MESSAGE,
    ROWS_PER_PAGE,
    AdminQueries,
)
from cache import keys, tokens
from cache.answers import RAM, Evicted, RowRequest
from cache.index import CacheIndex
from cache.rows import RowIdentity
from runtime import Node
from runtime.cli.main import main
from runtime.client.cache.admin import OnlineCacheAdmin, clean_directory
from runtime.client.cache.row_files import check_file, walk
from runtime.client.cache.upkeep import is_flushed
from runtime.embedded import path as embedded_model_path
from supervision.codec import ValueCodec
from supervision.messages import new_ref
from tests.support.nodes import free_port
from tests.support.runtime_nodes import LeakCheck, cli, one_thread, started, status_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

FILE_HEAD_BYTES = 46  # of native.fingerprint: magic, version, length, checksum

SHARED = "The old lighthouse keeper counted the waves and wrote each number in a book. " * 4
PROMPTS = [SHARED + f"Then he said number {n} aloud, and slept." for n in range(3)]


@dataclass
class Printed:
    """The output of a command, and its exit code."""

    out: io.StringIO
    err: io.StringIO
    returncode: int = -1

    @property
    def stdout(self) -> str:
        return self.out.getvalue()

    @property
    def stderr(self) -> str:
        return self.err.getvalue()


class Shop:
    """A node with some rows, and the command line beside it."""

    def __init__(self, node: Node, home: Path) -> None:
        self.node = node
        self.home = home
        self.rows_dir = home / "cache" / "rows"

    def run(self, *arguments: str) -> Printed:
        """The command in this process: starting one for each would be most of the test."""
        said = Printed(io.StringIO(), io.StringIO())
        environment = {
            "LLAMA_ACTORS_PORT": str(self.node.port),
            "LLAMA_ACTORS_RUNTIME_DIR": str(self.home / "run"),
        }
        with (
            mock.patch.dict(os.environ, environment),
            mock.patch("sys.stdin", io.StringIO("y\n")),
            contextlib.redirect_stdout(said.out),
            contextlib.redirect_stderr(said.err),
        ):
            said.returncode = main(arguments)
        return said

    def run_alone(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command as a process of its own."""
        return cli(*arguments, port=self.node.port, runtime_dir=self.home / "run")

    def json(self, *arguments: str) -> Any:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def rows(self, *arguments: str) -> list[Any]:
        done = self.run("cache", "ls", "--json", "--limit", "0", *arguments)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def settle(self) -> None:
        """Wait until the disk tier holds and has dropped what it should."""

        def is_settled() -> bool:
            meta = status_of(self.node, "cache_meta")
            on_disk = len(walk(self.rows_dir).rows)
            return is_flushed(self.node.client) and on_disk == meta["tiers"]["disk"]["rows"]

        eventually(is_settled, what="the disk holds what the index says")

    @property
    def files(self) -> list[str]:
        return walk(self.rows_dir).rows


@pytest.fixture
def shop(tmp_path: Path, tiny_gguf: Path) -> Iterator[Shop]:
    with (
        LeakCheck() as leaks,
        started(tmp_path, models={"tiny": one_thread(tiny_gguf)}, port=free_port()) as node,
    ):
        leaks.watch(node)
        for prompt in PROMPTS:
            node.complete("tiny", prompt, max_tokens=2)
        shop = Shop(node, tmp_path)
        shop.settle()
        yield shop


def test_looking_around(shop: Shop) -> None:
    facts = shop.json("cache", "stat")
    assert facts["tiers"]["disk"]["rows"] == facts["cache"]["rows"] == len(shop.files)
    assert facts["models"]["tiny"]["hits"]["cold"] == 1
    assert sum(facts["models"]["tiny"]["hits"].values()) == len(PROMPTS)
    assert sum(tier["tokens"] for tier in facts["restored"].values()) > 0
    saved = facts["models"]["tiny"]
    assert saved["saved_rows"] == sum(facts["cache"]["saves"].values()) == len(shop.files)
    assert saved["saved_bytes"] == facts["writer"]["bytes_written"]
    assert saved["saved_ms"] >= saved["saved_ms_slowest"] > 0
    people = shop.run_alone("cache", "stat").stdout
    assert "MiB" in people
    assert "disk" in people

    rows = shop.rows()
    assert len(rows) == len({row["key"] for row in rows}) == len(shop.files)
    assert {row["model"] for row in rows} == {"tiny"}
    assert all(set(row["tiers"]) == {"ram", "disk"} for row in rows)
    assert shop.rows("--tier", "disk", "--model", "tiny", "--newer-than", "1h") == rows
    assert shop.rows("--older-than", "1h") == shop.rows("--model", "other") == []
    assert shop.rows("--namespace", rows[0]["namespace"][:8]) == rows

    first = shop.run("cache", "ls", "--json", "--limit", "2")
    assert len(first.stdout.splitlines()) == 2
    cursor = first.stderr.rsplit("--cursor ", 1)[1].strip()
    assert shop.rows("--cursor", cursor) == rows[2:]
    table = shop.run("cache", "ls", "--limit", "0").stdout.splitlines()
    assert table[0].split() == ["KEY", "TOKENS", "SIZE", "TIERS", "REASON", "AGE", "MODEL"]
    assert len(table) == 1 + len(rows)

    key = shop.node.complete("tiny", PROMPTS[0], max_tokens=2).finish_key
    assert key is not None
    shown = shop.json("cache", "show", key[:16])
    assert shown["key"] == key
    assert shown["meta"]["model"] == "tiny"
    assert shop.run("cache", "show", "0000000000").returncode == 2
    assert "no row's key begins" in shop.run("cache", "show", "0000000000").stderr
    assert shop.run("cache", "show", "zz").returncode == 2


def test_a_damaged_file_is_found_repaired_and_saved_again(shop: Shop) -> None:
    before = shop.json("cache", "verify")
    assert before["damaged"] == []
    assert before["rows"] == 2 * len(shop.files)  # on disk and in the arena
    assert before["proved"] >= len(shop.files)

    victim = Path(shop.files[0])
    raw = bytearray(victim.read_bytes())
    raw[-1] ^= 1
    victim.write_bytes(raw)
    found = shop.run_alone("cache", "verify")
    assert found.returncode == 1
    assert f"DAMAGED disk {victim}" in found.stdout
    assert "payload" in found.stdout
    assert found.stderr == ""  # no progress in a pipe
    inspected = shop.run("inspect", str(victim))
    assert inspected.returncode == 1
    assert "DAMAGED" in inspected.stdout
    assert victim.exists()  # looking changes nothing

    assert shop.run("cache", "verify", "--repair").returncode == 1
    eventually(lambda: not victim.exists(), what="it is quarantined")
    quarantined = shop.rows_dir / "quarantine" / victim.name
    eventually(quarantined.exists, what="it is in quarantine")
    assert json.loads(shop.run("inspect", str(quarantined), "--json").stdout)["ok"] is False
    assert "disk" not in next(r for r in shop.rows() if r["key"] == victim.stem)["tiers"]
    assert shop.run("cache", "verify").returncode == 0

    kept = shop.json("cache", "gc")
    assert kept["quarantined_files"] == 0  # it is young
    assert shop.json("cache", "gc", "--quarantine-age", "0s")["quarantined_files"] == 1
    assert not quarantined.exists()


def test_superseded_tails_go_by_themselves_and_gc_takes_dead_temps_only(shop: Shop) -> None:
    one = shop.node.complete("tiny", PROMPTS[0], max_tokens=2)
    shop.settle()
    tail = shop.json("cache", "show", one.finish_key)
    assert tail["tokens"] < 64
    more = PROMPTS[0] + one.text + " and on and on it goes" * 20
    shop.node.complete("tiny", more, max_tokens=2, parent_key=one.finish_key)
    shop.settle()
    rows = shop.rows()
    assert not any(row["superseded"] or row["key"] == tail["key"] for row in rows)
    shard = Path(shop.files[0]).parent
    (shard / "aa.kvb.1.7.tmp").touch()  # pid 1 lives
    dead = shard / "aa.kvb.999999999.7.tmp"
    dead.touch()
    for path in shard.glob("*.tmp"):
        os.utime(path, (1, 1))
    removed = shop.json("cache", "gc")
    assert removed["rows"] == 0
    assert removed["temp_files"] == 1
    assert not dead.exists()
    assert {row["key"] for row in shop.rows()} == {row["key"] for row in rows}
    shop.settle()


def test_removing_a_row_takes_what_continues_it_and_asks_first(shop: Shop) -> None:
    rows = shop.rows()
    root = next(row for row in rows if row["start"] == 0 and row["tokens"] == 64)
    refused = shop.run("cache", "rm", root["key"])  # a yes in a pipe is not a user's
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    assert shop.rows() == rows
    assert shop.json("cache", "rm", root["key"][:12], "--yes")["rows"] == len(rows)
    assert shop.rows() == []
    shop.settle()
    assert shop.files == []


def test_wiping_a_model_leaves_the_others_and_a_reader_keeps_its_rows(
    shop: Shop, tiny_gguf: Path
) -> None:
    shop.node.client.load("other", one_thread(tiny_gguf, type_k="q8_0", type_v="q8_0"))
    shop.node.complete("other", SHARED, max_tokens=1)
    shop.settle()  # the end of the reply is saved some time after the rest
    others = shop.rows("--model", "other")
    assert others
    tiny = shop.rows("--model", "tiny")
    root = bytes.fromhex(tiny[0]["namespace"])
    # A reader of everything below one prompt, as a model would be.
    ask = m.LookupPrefix(new_ref(), "reader#1", root, _tokens_of(shop, tiny))
    found = shop.node.client.ask("cache_meta", ask)
    assert isinstance(found, m.PrefixResolved)
    assert found.lease
    wiped = shop.run("cache", "wipe", "--model", "tiny", "--yes", "--json")
    assert wiped.returncode == 1  # not everything went
    result = json.loads(wiped.stdout)
    assert result["left_because_read"] == len(shop.rows("--model", "tiny")) > 0
    shop.node.connection.tell("cache_meta", m.ReleaseLease(found.lease))
    assert shop.run("cache", "wipe", "--model", "tiny", "--yes").returncode == 0
    assert shop.rows("--model", "tiny") == []
    left = shop.rows()  # and the end of its reply, which is stored a second later
    assert {row["model"] for row in left} == {"other"}
    assert {row["key"] for row in others} <= {row["key"] for row in left}
    assert shop.run("cache", "wipe", "--yes").returncode == 0
    assert shop.rows() == []
    assert shop.run("cache", "wipe", "--model", "tiny", "--yes").returncode == 2


def _tokens_of(shop: Shop, rows: list[Any]) -> bytes:
    """The tokens of the first full blocks, from the rows themselves."""
    firsts = [row for row in rows if row["start"] == 0 and row["tokens"] == 64]
    path = next(path for path in shop.files if firsts[0]["key"] in path)
    return check_file(path).tokens


def test_a_directory_without_a_node(shop: Shop) -> None:
    here = ("--cache-dir", str(shop.home / "cache"))
    rows = shop.rows()
    offline = shop.rows(*here)
    assert {row["key"] for row in offline} == {row["key"] for row in rows}
    held = shop.run("cache", "wipe", "--yes", *here)
    assert held.returncode == 1
    assert "in use by a node" in held.stderr
    assert shop.run("cache", "verify", *here).returncode == 0  # reading is allowed beside a node
    shop.node.stop()

    assert [row["key"] for row in shop.rows(*here)] == [row["key"] for row in offline]
    assert len(shop.rows(*here, "--cursor", "1")) == len(rows) - 1
    shown = shop.json("cache", "show", rows[0]["key"][:16], *here)
    assert shown["proved"] is True
    victim = Path(shop.files[0])
    victim.write_bytes(victim.read_bytes()[:-1])
    damaged = shop.run("cache", "verify", "--repair", "--json", *here)
    assert damaged.returncode == 1
    assert json.loads(damaged.stdout)["damaged"][0]["repaired"] is True
    assert (shop.rows_dir / "quarantine" / victim.name).exists()
    wiped = shop.json("cache", "wipe", "--yes", *here)
    assert wiped["rows"] == len(rows) - 1
    assert [path for path in shop.rows_dir.rglob("*") if path.is_file()] == []
    assert shop.run("cache", "ls", "--cache-dir", str(shop.home / "nowhere")).returncode == 2
    assert shop.run("cache", "stat").returncode == 1  # no node any more


def test_inspect_shows_the_prompt_only_with_its_model(shop: Shop, tiny_gguf: Path) -> None:
    path = next(p for p in shop.files if check_file(p).header.id.start == 0)  # type: ignore[union-attr]
    plain = shop.run("inspect", path)
    assert plain.returncode == 0
    assert "every byte was checked" in plain.stdout
    assert "lighthouse" not in plain.stdout
    facts = shop.json("inspect", path)
    assert facts["proved"] is True
    assert "text" not in facts
    # Native code stays out of the process of the tests.
    told = shop.run_alone("inspect", path, "--text", str(tiny_gguf), "--json")
    assert "lighthouse" in json.loads(told.stdout)["text"]
    assert shop.run("inspect", str(shop.home / "none.kvb")).returncode == 1
    note = shop.home / "note.txt"
    note.write_text("not a row")
    assert "DAMAGED" in shop.run("inspect", str(note)).stdout


def test_a_row_of_the_arena_that_rots_is_found_and_dropped(shop: Shop) -> None:
    """Heads of arena rows are proved too; one that is gone meanwhile is no damage."""
    tender = OnlineCacheAdmin(shop.node.client)
    try:
        row = next(row for page, _ in tender.rows(tier=RAM) for row in page)
        offset = dict(row.tiers)[RAM]
        with open(status_of(shop.node, "ram_tier")["arena"], "r+b", buffering=0) as arena:
            os.pwrite(arena.fileno(), b"rotten", offset + 20)
        damaged = [one for one in tender.verify(lambda share: None) if one.report.damage]
        assert [(one.tier, one.key) for one in damaged] == [(RAM, row.key)]
        assert tender.reject(damaged[0])
        left = shop.node.client.ask("cache_meta", m.ShowRow(new_ref(), row.key))
        assert isinstance(left, m.RowShown)
        assert left.row is not None
        assert RAM not in dict(left.row.tiers)
        assert [one for one in tender.verify(lambda share: None) if one.report.damage] == []
    finally:
        tender.close()


# ── explanations and fingerprints, on a node ───────────────────────────────────────────────────


def test_a_result_has_what_was_reused_and_where_the_rest_diverged(shop: Shop) -> None:
    done = shop.run("complete", "tiny", SHARED + "And then?", "--max-tokens", "2", "--json")
    cache = json.loads(done.stdout)["cache"]
    assert set(cache) >= {"hit", "source", "restore_ms", "lookup_ms", "reused_tokens", "miss_at"}
    assert cache["hit"] == "partial"
    assert cache["source"] != "none"
    assert 0 < cache["reused_tokens"] <= cache["miss_at"]
    cold = shop.run("complete", "tiny", "Nothing like it.", "--max-tokens", "1", "--json")
    cache = json.loads(cold.stdout)["cache"]
    assert cache["miss_reason"].startswith("diverges:")
    assert cache["reused_tokens"] <= cache["miss_at"] <= 2  # every prompt begins alike
    key = shop.node.complete("tiny", PROMPTS[1], max_tokens=2).finish_key
    resumed = shop.run(
        *("complete", "tiny", PROMPTS[1] + " more", "--parent-key", key or ""),
        *("--max-tokens", "1", "--json"),
    )
    assert resumed.returncode == 0
    assert shop.json("cache", "stat")["cache"]["hits_resume"] == 1
    meta = status_of(shop.node, "cache_meta")
    assert meta["lookups"] > 0
    assert meta["lookup_ms_total"] > 0


def memory_of(node: Node) -> Path:
    """Without a disk tier fingerprints are remembered by a memory file of the launcher."""
    fds = Path(f"/proc/{node.launcher_pid}/fd").iterdir()
    return next(fd for fd in fds if "llama-actors-fingerprints" in os.readlink(fd))


@pytest.mark.parametrize("disk", [True, False])
def test_a_model_is_identified_from_memory_when_it_is_loaded_again(
    tmp_path: Path, disk: bool
) -> None:
    """The cached digest is replaced by another one; the second load uses it."""
    model = embedded_model_path()
    options = {} if disk else {"cache_disk": 0}
    with LeakCheck() as leaks, started(tmp_path, **options) as node:
        leaks.watch(node)
        first = node.client.load("demo", one_thread(model)).details["fingerprint"]
        memory = tmp_path / "cache" / "fingerprints" if disk else memory_of(node)
        assert memory.exists()
        assert memory.stat().st_mode & 0o777 == 0o600
        raw = memory.read_bytes()
        body = raw[FILE_HEAD_BYTES:].replace(first.encode(), b"ab" * 32)
        assert body != raw[FILE_HEAD_BYTES:]
        memory.write_bytes(raw[: FILE_HEAD_BYTES - 32] + blake3(body).digest() + body)
        node.unload("demo")
        assert node.client.load("demo", one_thread(model)).details["fingerprint"] == "ab" * 32
        memory.write_bytes(b"rotten")
        node.unload("demo")
        assert node.client.load("demo", one_thread(model)).details["fingerprint"] == first


# ── bounded answers, without a node ────────────────────────────────────────────────────────────


class Store:
    """An index with rows, and what was disposed of."""

    def __init__(self) -> None:
        self.index = CacheIndex(budgets={RAM: 1 << 30, "disk": 1 << 30})
        self.gone: list[Evicted] = []
        self.admin = AdminQueries(self.index, self.gone.extend, None)
        self.root = bytes(32)

    def save(self, parent: bytes, start: int, words: list[int]) -> bytes:
        packed = tokens.pack(words)
        key = keys.child_key(parent, packed)
        row = RowRequest(RowIdentity(key, parent, self.root, start, packed), 5000)
        answers, _ = self.index.reserve(0.0, "writer#1", [row])
        assert answers[0].key == key
        self.index.publish(0.0, "writer#1", key)
        return key

    def chain(self, blocks: int, first: int = 0) -> list[bytes]:
        parent, made = self.root, []
        for number in range(blocks):
            parent = self.save(parent, 64 * number, [first + number] * 64)
            made.append(parent)
        return made

    def all_rows(self, **filters: Any) -> list[bytes]:
        found, cursor = [], 0
        while True:
            page = self.admin.answer(0.0, m.ListRows("r", cursor, **filters))
            assert isinstance(page, m.RowsListed)
            assert len(ValueCodec(("actors", "cache")).pack(page)) < 64 * 1024
            found += [row.key for row in page.rows]
            cursor = page.cursor
            if not cursor:
                return found

    def remove(self, what: m.Removal, key: bytes | None = None) -> list[m.RowsRemoved]:
        answers: list[m.RowsRemoved] = []
        cursor = 0
        while True:
            answer = self.admin.answer(0.0, m.RemoveRows("r", what, key, cursor))
            assert isinstance(answer, m.RowsRemoved)
            assert answer.rows <= REMOVED_PER_MESSAGE
            answers.append(answer)
            cursor = answer.cursor
            if not cursor:
                self.index.check_integrity()
                return answers


def test_pages_are_small_and_complete() -> None:
    store = Store()
    made = store.chain(3 * ROWS_PER_PAGE + 7)
    assert sorted(store.all_rows()) == sorted(made)
    assert store.all_rows(prefix=made[5][:6]) == [made[5]]
    assert store.all_rows(tier="disk") == []
    assert store.all_rows(root=b"x" * 32) == []


def test_namespaces_come_in_pages_too() -> None:
    store = Store()
    roots = [bytes([number]) * 32 for number in range(2 * NAMESPACES_PER_PAGE + 5)]
    for store.root in roots:
        store.save(store.root, 0, list(range(64)))
    found, cursor = [], 0
    while True:
        page = store.admin.answer(0.0, m.ListNamespaces("r", cursor))
        assert isinstance(page, m.NamespacesListed)
        assert len(ValueCodec(("actors", "cache")).pack(page)) < 64 * 1024
        found += [(one.root, one.rows) for one in page.namespaces]
        assert all(one.sample and one.sample.root == one.root for one in page.namespaces)
        cursor = page.cursor
        if not cursor:
            break
    assert sorted(found) == [(root, 1) for root in roots]


def test_a_tree_goes_from_its_far_end_and_not_under_its_reader() -> None:
    store = Store()
    made = store.chain(2 * REMOVED_PER_MESSAGE + 10)
    other = store.save(made[4], 64 * 5, [9, 9, 9])
    path = b"".join(tokens.pack([number] * 64) for number in range(9))
    lease = store.index.lookup(0.0, "reader#1", store.root, path).lease
    answers = store.remove(m.Removal.TREE, made[3])
    assert answers[-1].leased == 6  # rows 3 to 8 are read
    assert len(answers) == 3
    assert sorted(store.all_rows()) == sorted(made[:9])
    assert other in {copy.key for copy in store.gone}
    order = [copy.key for copy in store.gone]
    assert order.index(made[20]) < order.index(made[10])  # children first
    store.index.release(lease)
    # A row that is only being copied to disk holds those before it, too.
    store.index.persist(0.0, "writer#1", "disk", 9)
    for key in made[:8]:
        store.index.publish(0.0, "writer#1", key, "disk")
    assert store.remove(m.Removal.TREE, made[3])[-1].leased == 6
    store.index.publish(0.0, "writer#1", made[8], "disk")
    assert sum(answer.rows for answer in store.remove(m.Removal.TREE, made[3])) == 6
    assert sorted(store.all_rows()) == sorted(made[:3])


def test_evicting_is_bounded_in_order_of_tiers_and_reports_when_there_is_no_more() -> None:
    store = Store()
    store.chain(50)
    first = store.admin.answer(1.0, m.EvictBytes("r", 1 << 40, ("nowhere", RAM)))
    assert isinstance(first, m.BytesEvicted)
    assert first.rows == 32
    assert first.more
    second = store.admin.answer(1.0, m.EvictBytes("r", 1 << 40, ("nowhere", RAM)))
    assert isinstance(second, m.BytesEvicted)
    assert second.rows == 18
    last = store.admin.answer(1.0, m.EvictBytes("r", 1 << 40, ("nowhere", RAM)))
    assert isinstance(last, m.BytesEvicted)
    assert (last.rows, last.more) == (0, False)
    store.index.check_integrity()


def test_files_that_a_living_process_writes_are_left(tmp_path: Path) -> None:
    shard = tmp_path / "aa"
    shard.mkdir()
    mine = shard / f"k.kvb.{os.getpid()}.1.tmp"
    mine.touch()
    os.utime(mine, (1, 1))
    assert clean_directory(str(tmp_path), 0, 0)["temp_files"] == 0
    assert mine.exists()
