"""The live tree as a value, as JSON and as text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from supervision import ChildKind, Entry

ROOT_ID = "root"


@dataclass(frozen=True, slots=True)
class TreeNode:
    """One process of a node. ``kind`` is ``launcher | supervisor | worker``."""

    id: str
    kind: str
    pid: int | None
    state: str
    restarts: int
    incarnation: int = 1
    children: tuple[TreeNode, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that ``tree --json`` prints."""
        return {
            "id": self.id,
            "kind": self.kind,
            "pid": self.pid,
            "state": self.state,
            "restarts": self.restarts,
            "incarnation": self.incarnation,
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

    def render(self) -> str:
        """The tree for a terminal, one process a line."""
        return "\n".join(_lines(self, "", ""))


def arrange(launcher_pid: int, root_pid: int, boots: int, entries: tuple[Entry, ...]) -> TreeNode:
    """Nest the directory's entries under the launcher, which started the tree ``boots`` times."""
    by_parent: dict[str, list[Entry]] = {}
    for entry in entries:
        by_parent.setdefault(entry.parent, []).append(entry)

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
            )
            for entry in by_parent.get(parent, [])
            if entry.id != parent
        )

    root = TreeNode(ROOT_ID, "supervisor", root_pid, "up", 0, 1, below(ROOT_ID))
    return TreeNode("launcher", "launcher", launcher_pid, "up", boots - 1, boots, (root,))


def _lines(node: TreeNode, lead: str, below: str) -> list[str]:
    restarts = f"  restarts {node.restarts}" if node.restarts else ""
    state = "" if node.state == "up" else f"  {node.state}"
    lines = [f"{lead}{node.id}  {node.kind}  pid {node.pid}{state}{restarts}"]
    for index, child in enumerate(node.children):
        last = index == len(node.children) - 1
        lines += _lines(
            child, below + ("└── " if last else "├── "), below + ("    " if last else "│   ")
        )
    return lines
