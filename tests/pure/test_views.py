"""What people see: the tree as text and JSON, the progress line."""

from __future__ import annotations

import io
import sys

import pytest

from runtime import TreeNode
from runtime.progress import ProgressLine
from runtime.tree_view import arrange
from supervision import Address, ChildKind, Entry

pytestmark = pytest.mark.pure


def entry(actor: str, parent: str, kind: ChildKind = ChildKind.WORKER, restarts: int = 0) -> Entry:
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
    )


def test_the_directory_is_nested_under_the_launcher() -> None:
    tree = arrange(
        1,
        2,
        3,
        (
            entry("cache", "root", ChildKind.SUPERVISOR),
            entry("cache_meta", "cache", restarts=4),
            entry("registry", "root"),
        ),
    )
    assert tree.render().splitlines() == [
        "launcher  launcher  pid 1  restarts 2",
        "└── root  supervisor  pid 2",
        "    ├── cache  supervisor  pid 7",
        "    │   └── cache_meta  worker  pid 7  restarts 4",
        "    └── registry  worker  pid 7",
    ]
    found = tree.find("cache_meta")
    assert isinstance(found, TreeNode)
    assert found.restarts == 4
    assert tree.find("nobody") is None
    assert tree.to_dict()["children"][0]["children"][0]["id"] == "cache"


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

    out, clock = Terminal(), iter(range(100))
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr("runtime.progress.time.monotonic", lambda: next(clock))
    with ProgressLine("loading") as line:
        line.share(0.5)
    assert "loading" in out.getvalue()
    assert " 50 %" in out.getvalue()
    assert out.getvalue().endswith("\r\x1b[K")
