"""What people see: the tree as text and JSON, the progress line."""

from __future__ import annotations

import io
import sys

import pytest

from runtime import TreeNode
from runtime.cli.progress import ProgressLine
from runtime.client.tree import ProcessFacts, arrange, format_duration
from supervision import Address, ChildKind, Entry, ExitKind, ExitReason
from supervision.messages import Vitals

pytestmark = pytest.mark.pure

KILLED = ExitReason(ExitKind.KILLED, "killed by SIGKILL")


def entry(
    actor: str,
    parent: str,
    kind: ChildKind = ChildKind.WORKER,
    restarts: int = 0,
    last_exit: ExitReason | None = None,
) -> Entry:
    return Entry(
        id=actor,
        kind=kind,
        parent=parent,
        actor="a.b.C",
        address=Address("127.0.0.1", 1),
        pid=7,
        incarnation=restarts + 1,
        state="up",
        restarts=restarts,
        started_at=0.0,
        last_exit=last_exit,
    )


ENTRIES = (
    entry("cache", "root", ChildKind.SUPERVISOR),
    entry("cache_meta", "cache", restarts=4, last_exit=KILLED),
    entry("registry", "root"),
)
VITALS = {
    "cache": Vitals("cache", 1, 7, 9, 0, 0.1, None),
    "cache_meta": Vitals("cache_meta", 5, 7, 80, 12, 3.25, 3.25, "Lookup"),
    "registry": Vitals("registry", 1, 7, 9, 0, 0.1, 0.1, "Ask"),
}


def whole_tree() -> TreeNode:
    facts = ProcessFacts(125.0, 3 << 20, "pss")
    return arrange(1, 2, 3, ENTRIES, VITALS, lambda _pid: facts)


def test_the_directory_is_nested_under_the_launcher() -> None:
    tree = arrange(1, 2, 3, ENTRIES)
    assert tree.render().splitlines() == [
        "ID                      KIND        PID  INC  RESTARTS  STATE  LAST EXIT",
        "launcher                launcher      1    1         2  up",
        "└── root                supervisor    2    3         0  up",
        "    ├── cache           supervisor    7    1         0  up",
        "    │   └── cache_meta  worker        7    5         4  up     killed: killed by SIGKILL",
        "    └── registry        worker        7    1         0  up",
    ]
    found = tree.find("cache_meta")
    assert isinstance(found, TreeNode)
    assert found.restarts == 4
    assert tree.find("nobody") is None
    assert tree.to_dict()["children"][0]["children"][0]["id"] == "cache"


def test_vitals_become_columns_and_a_long_hook_is_shown() -> None:
    lines = whole_tree().render().splitlines()
    assert lines[0].split() == [
        "ID", "KIND", "PID", "INC", "UPTIME", "RESTARTS", "PSS", "MAILBOX", "STATE", "LAST", "EXIT",
    ]  # fmt: skip
    meta = next(line for line in lines if "cache_meta" in line)
    assert "2m05s" in meta
    assert "3.0 MiB" in meta
    assert "  12  up, in Lookup for 3.2s  killed: killed by SIGKILL" in meta
    assert "Ask" not in next(line for line in lines if "registry" in line)


def test_json_has_every_number_and_null_for_unknown_ones() -> None:
    found = whole_tree().to_dict()
    meta = found["children"][0]["children"][0]["children"][0]
    children = meta.pop("children")
    assert children == []
    assert meta == {
        "id": "cache_meta", "kind": "worker", "pid": 7, "state": "up", "restarts": 4,
        "incarnation": 5, "uptime_s": 125.0, "memory_bytes": 3 << 20, "memory_measure": "pss",
        "mailbox": 12, "turns": 80, "silent_s": 3.25, "busy_s": 3.25, "busy_with": "Lookup",
        "last_exit": "killed: killed by SIGKILL",
    }  # fmt: skip
    bare = arrange(1, 2, 3, ENTRIES).to_dict()
    assert {key for key, value in bare.items() if value is None} == {
        "uptime_s", "memory_bytes", "memory_measure", "mailbox", "turns", "silent_s", "busy_s",
        "busy_with", "last_exit",
    }  # fmt: skip


@pytest.mark.parametrize("width", [200, 100, 80, 60, 40, 30])
def test_no_line_is_longer_than_the_terminal(width: int) -> None:
    tree = whole_tree()
    lines = tree.render(width).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) == 6
    assert "PID" in lines[0]
    assert "└── root" in lines[2]


def test_reasons_are_cut_before_columns_are_left_out() -> None:
    tree = whole_tree()
    full = max(map(len, tree.render().splitlines()))
    cut = tree.render(full - 5)
    assert "killed: killed by S…" in cut
    assert cut.splitlines()[0].split() == tree.render().splitlines()[0].split()
    assert "MAILBOX" in tree.render(80)
    assert "KIND" not in tree.render(80)


def test_a_reason_of_several_lines_stays_on_one() -> None:
    broken = entry("a", "root", last_exit=ExitReason(ExitKind.ABNORMAL, "first\n  second"))
    assert len(arrange(1, 2, 1, (broken,)).render().splitlines()) == 4


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4s"), (12, "12s"), (250, "4m10s"), (7500, "2h05m"), (274000, "3d04h")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_progress_is_silent_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    with ProgressLine("loading") as line:
        for share in range(11):
            line.share(share / 10)
    assert out.getvalue() == ""


def test_progress_on_a_terminal_clears_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr("runtime.cli.progress.SHOW_AFTER_S", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    with ProgressLine("loading") as line:
        line.share(0.5)
    assert "loading" in out.getvalue()
    assert "50%" in out.getvalue()
    assert out.getvalue().endswith("\x1b[2K")  # the line is erased
