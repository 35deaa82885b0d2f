"""The live tree as a value, as JSON and as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, Final

from runtime.settings.sizes import format_size
from supervision import ChildKind, Entry
from supervision.frozen import frozen
from supervision.messages import Vitals

ROOT_ID: Final = "root"
BUSY_AFTER_S: Final = 0.5
"""A shorter hook is not shown."""


@frozen
class ProcessFacts:
    """What the kernel reports on one process; None where it does not."""

    uptime_s: float | None = None
    """Seconds since its start."""
    memory_bytes: int | None = None
    """Memory that it holds, by the measure below."""
    memory_measure: str | None = None
    """``pss``: shared pages in part; ``rss``: fully, so that a sum counts them repeatedly."""


@frozen
class TreeNode:
    """One process of a node, and those below it.

    >>> model = node.tree(vitals=True).find("model:demo")                   # doctest: +SKIP
    >>> model.state, model.facts.memory_bytes                               # doctest: +SKIP
    """

    id: str
    kind: str
    """``launcher | supervisor | worker``."""
    pid: int | None
    """None while it has no process."""
    state: str
    """``starting | up | restarting | stopping | down``."""
    restarts: int
    """How often it was restarted."""
    incarnation: int = 1
    """How many times it was started."""
    children: tuple[TreeNode, ...] = field(default=())
    """In their order of start."""
    last_exit: str | None = None
    """Why the incarnation before this one ended: ``killed: killed by SIGKILL``."""
    facts: ProcessFacts = ProcessFacts()
    vitals: Vitals | None = None
    """None: this process has no pulse, or its supervisor did not answer."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that ``tree --json`` prints. Unknown numbers are null."""
        vitals = self.vitals
        return {
            "id": self.id,
            "kind": self.kind,
            "pid": self.pid,
            "state": self.state,
            "restarts": self.restarts,
            "incarnation": self.incarnation,
            "uptime_s": self.facts.uptime_s,
            "memory_bytes": self.facts.memory_bytes,
            "memory_measure": self.facts.memory_measure,
            "mailbox": vitals.mailbox if vitals else None,
            "turns": vitals.turns if vitals else None,
            "silent_s": vitals.silent_s if vitals else None,
            "busy_s": vitals.busy_s if vitals else None,
            "busy_with": (vitals.busy_with or None) if vitals else None,
            "last_exit": self.last_exit,
            "children": [child.to_dict() for child in self.children],
        }

    def find(self, wanted: str) -> TreeNode | None:
        """The node with this id, here or below."""
        if self.id == wanted:
            return self
        for child in self.children:
            found = child.find(wanted)
            if found is not None:
                return found
        return None

    def render(self, width: int | None = None) -> str:
        """The tree for a terminal, one process a line, below a line of headings.

        With ``width``, no line is longer: the reasons of the last exits are cut first, then
        columns are left out, least telling first, and at last the ids are cut.
        """
        return render_tree(self, width)


def arrange(  # everything about a tree, in one value
    launcher_pid: int,
    root_pid: int,
    boots: int,
    entries: tuple[Entry, ...],
    vitals: Mapping[str, Vitals] | None = None,
    facts: Callable[[int], ProcessFacts] | None = None,
) -> TreeNode:
    """Nest the directory's entries under the launcher, which started the tree ``boots`` times."""
    pulses = vitals or {}
    by_parent: dict[str, list[Entry]] = {}
    for entry in entries:
        by_parent.setdefault(entry.parent, []).append(entry)

    def look(pid: int | None) -> ProcessFacts:
        return facts(pid) if facts and pid else ProcessFacts()

    def below(parent: str) -> tuple[TreeNode, ...]:
        return tuple(
            TreeNode(
                id=entry.id,
                kind="supervisor" if entry.kind is ChildKind.SUPERVISOR else "worker",
                pid=entry.pid,
                state=entry.state,
                restarts=entry.restarts,
                incarnation=entry.incarnation,
                children=below(entry.id),
                last_exit=str(entry.last_exit) if entry.last_exit else None,
                facts=look(entry.pid),
                vitals=pulses.get(entry.id),
            )
            for entry in by_parent.get(parent, [])
            if entry.id != parent
        )

    root = TreeNode(
        ROOT_ID, "supervisor", root_pid, "up", 0, boots, below(ROOT_ID),
        facts=look(root_pid), vitals=pulses.get(ROOT_ID),
    )  # fmt: skip
    return TreeNode(
        "launcher", "launcher", launcher_pid, "up", boots - 1, 1, (root,),
        facts=look(launcher_pid),
    )  # fmt: skip


def tree_of(plain: Mapping[str, Any]) -> TreeNode:
    """The inverse of ``TreeNode.to_dict``.

    Raises KeyError, TypeError or ValueError where it is another object.
    """
    facts = ProcessFacts(plain["uptime_s"], plain["memory_bytes"], plain["memory_measure"])
    return TreeNode(
        id=str(plain["id"]),
        kind=str(plain["kind"]),
        pid=plain["pid"],
        state=str(plain["state"]),
        restarts=plain["restarts"],
        incarnation=plain["incarnation"],
        children=tuple(map(tree_of, plain["children"])),
        last_exit=plain["last_exit"],
        facts=facts,
        vitals=_vitals_of(plain),
    )


def _vitals_of(plain: Mapping[str, Any]) -> Vitals | None:
    if plain["mailbox"] is None:
        return None
    return Vitals(
        id=str(plain["id"]),
        incarnation=plain["incarnation"],
        pid=plain["pid"] or 0,
        turns=plain["turns"],
        mailbox=plain["mailbox"],
        silent_s=plain["silent_s"],
        busy_s=plain["busy_s"],
        busy_with=plain["busy_with"] or "",
    )


# ── text ─────────────────────────────────────────────────────────────────────────────────────────

_GAP: Final = 2
_SHORTEST_EXIT: Final = 12
_SHORTEST_ID: Final = 8
_LEFT_OUT: Final = ("KIND", "INC", "LAST EXIT", "RESTARTS", "UPTIME", "MAILBOX", "MEMORY", "STATE")
"""What a narrow terminal does without, in this order."""
_NUMBERS: Final = frozenset({"PID", "INC", "UPTIME", "RESTARTS", "MEMORY", "PSS", "RSS", "MAILBOX"})


def render_tree(tree: TreeNode, width: int | None = None) -> str:
    """See ``TreeNode.render``."""
    rows = _rows(tree, "", "")
    measures = {node.facts.memory_measure or "" for _, node in rows} - {""}
    columns: dict[str, list[str]] = {"ID": [lead for lead, _ in rows]}
    for name, text in _TEXTS.items():
        values = [text(node) for _, node in rows]
        if any(values):  # a column without values is left out
            columns[name] = [value or "-" for value in values] if name in _NUMBERS else values
    if width is not None:
        _narrow(columns, width)
    headings = {"MEMORY": measures.pop().upper()} if len(measures) == 1 else {}
    return "\n".join(_lines(columns, headings))


def _lines(columns: Mapping[str, list[str]], headings: Mapping[str, str]) -> list[str]:
    cells: list[list[str]] = []
    for name, values in columns.items():
        heading = headings.get(name, name)
        size = max(map(len, [heading, *values]))
        right = name in _NUMBERS
        cells.append([one.rjust(size) if right else one.ljust(size) for one in [heading, *values]])
    return [(" " * _GAP).join(row).rstrip() for row in zip(*cells, strict=True)]


def _narrow(columns: dict[str, list[str]], width: int) -> None:
    """Cut and leave out until every line fits, or only ids and pids are left."""

    def too_wide() -> int:
        sizes = [max(map(len, [name, *values])) for name, values in columns.items()]
        return sum(sizes) + _GAP * (len(sizes) - 1) - width

    def cut(name: str, shortest: int) -> None:
        if name in columns and (over := too_wide()) > 0:
            longest = max(map(len, columns[name]))
            keep = max(shortest, longest - over)
            columns[name] = [_cut(one, keep) for one in columns[name]]

    cut("LAST EXIT", _SHORTEST_EXIT)
    for name in _LEFT_OUT:
        if too_wide() <= 0:
            return
        columns.pop(name, None)
    cut("ID", _SHORTEST_ID)


def _cut(text: str, keep: int) -> str:
    return text if len(text) <= keep else text[: keep - 1] + "…"


def _rows(node: TreeNode, lead: str, below: str) -> list[tuple[str, TreeNode]]:
    rows = [(lead + node.id, node)]
    for index, child in enumerate(node.children):
        last = index == len(node.children) - 1
        rows += _rows(
            child, below + ("└── " if last else "├── "), below + ("    " if last else "│   ")
        )
    return rows


def _uptime(node: TreeNode) -> str:
    return "" if node.facts.uptime_s is None else format_duration(node.facts.uptime_s)


def _memory(node: TreeNode) -> str:
    return "" if node.facts.memory_bytes is None else format_size(node.facts.memory_bytes)


def _mailbox(node: TreeNode) -> str:
    return "" if node.vitals is None else str(node.vitals.mailbox)


def _state(node: TreeNode) -> str:
    vitals = node.vitals
    if vitals is not None and vitals.busy_s is not None and vitals.busy_s >= BUSY_AFTER_S:
        return f"{node.state}, in {vitals.busy_with} for {format_duration(vitals.busy_s)}"
    return node.state


_TEXTS: Final[dict[str, Callable[[TreeNode], str]]] = {
    "KIND": lambda node: node.kind,
    "PID": lambda node: str(node.pid or ""),
    "INC": lambda node: str(node.incarnation),
    "UPTIME": _uptime,
    "RESTARTS": lambda node: str(node.restarts),
    "MEMORY": _memory,
    "MAILBOX": _mailbox,
    "STATE": _state,
    "LAST EXIT": lambda node: " ".join((node.last_exit or "").split()),
}


def format_duration(seconds: float) -> str:
    """``0.4s``, ``12s``, ``4m10s``, ``2h05m``, ``3d04h``: for people."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, second = divmod(int(seconds), 60)
    if not minutes:
        return f"{second}s"
    hours, minute = divmod(minutes, 60)
    if not hours:
        return f"{minute}m{second:02d}s"
    days, hour = divmod(hours, 24)
    return f"{days}d{hour:02d}h" if days else f"{hour}h{minute:02d}m"
