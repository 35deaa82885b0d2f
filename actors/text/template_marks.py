"""Marks where a template's loops over the messages stand while it writes its text.

Which message a stretch of a prompt is of could be found out by rendering it again with changed
messages, which takes as long as rendering it once. So a filter is put where the bodies of such
loops begin, and behind their ends: it notes how much is written, and which message comes. What
the template writes is not changed, and nothing is rendered twice. See ``actors.text.parts``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from actors.text.own_calls import ORIGIN

MAX_MARKS: Final = 1 << 17
"""No conversation of so few messages as are taken has so many turns of its loops that write."""
BEGINS: Final = "_begins"
"""The filter's name; its value is an empty text."""


class Mark(NamedTuple):
    """A template's loops over the messages have turned to another one."""

    at: int
    """Characters written before."""
    inner: int
    """The message that the innermost loop is at; -1 if none is."""
    outer: int
    """The same of the outermost loop."""


@dataclass(slots=True)
class Marks:
    """Where the loops of a template over the messages stood while it wrote its text.

    Loops inside of macros and captured blocks do not count: what they write is not text yet.
    """

    found: list[Mark] = field(default_factory=list)
    n_chars: int = 0
    """Characters written so far."""
    numbers: dict[int, int] = field(default_factory=dict)
    """Of each message, by the identity of its object."""
    _loops: list[int] = field(default_factory=list)
    """The message that each of the nested loops is at."""

    def begins(self, message: object, depth: int) -> str:
        """A loop inside of ``depth`` others turns to this message; it has ended, if it is none."""
        number = self.numbers.get(id(message), -1)
        if number < 0 and type(message) is dict:  # the caller's are of another type
            made_of = message.get(ORIGIN)
            number = made_of if isinstance(made_of, int) else -1
        del self._loops[depth:]
        if number >= 0:
            self._loops.append(number)
        loops = self._loops or (-1,)
        mark = Mark(self.n_chars, loops[-1], loops[0])
        if self.found and self.found[-1].at == mark.at:
            self.found[-1] = mark  # nothing was written in between
        elif len(self.found) < MAX_MARKS:
            self.found.append(mark)
        else:
            self.numbers.clear()  # and nothing is known
            self.found[:] = [Mark(0, -1, -1)]
        return ""


class MarkedLoops(NodeTransformer):
    """Each loop over messages calls ``Marks.begins`` where its body begins, and behind its end.

    As a filter, which Jinja calls without any detour. What a loop runs over is found out by names:
    ``messages``, and variables that are set to something with such a name in it. Where that is
    numbers, the variable that is set to the message of that number counts.
    """

    def __init__(self, tree: nodes.Template) -> None:
        self._targets: list[str] = []
        self._names = {"messages"}
        assigned = [
            one for one in tree.find_all(nodes.Assign) if isinstance(one.target, nodes.Name)
        ]
        n_names = 0
        while n_names < len(self._names):
            n_names = len(self._names)
            self._names |= {
                one.target.name
                for one in assigned
                if isinstance(one.target, nodes.Name) and self._is_of_messages(one.node)
            }

    def _is_of_messages(self, node: nodes.Node) -> bool:
        is_named = isinstance(node, nodes.Name) and node.name in self._names
        return is_named or any(one.name in self._names for one in node.find_all(nodes.Name))

    def visit_For(self, node: nodes.For) -> nodes.Node | list[nodes.Node]:  # noqa: N802 - Jinja's
        if not (isinstance(node.target, nodes.Name) and self._is_of_messages(node.iter)):
            self.generic_visit(node)
            return node
        self._targets.append(node.target.name)
        self.generic_visit(node)
        self._targets.pop()
        node.body.insert(0, self._mark(node.target.name, node.lineno))
        return [node, self._mark("messages", node.lineno)]

    def _is_captured(self, node: nodes.Node) -> nodes.Node:
        """What it writes becomes a value first, and text elsewhere, if at all."""
        return node

    visit_Macro = visit_CallBlock = visit_FilterBlock = visit_AssignBlock = _is_captured  # noqa: N815

    def visit_Assign(self, node: nodes.Assign) -> nodes.Node | list[nodes.Node]:  # noqa: N802
        item, target = node.node, node.target
        is_item = (
            isinstance(target, nodes.Name)
            and isinstance(item, nodes.Getitem)
            and isinstance(item.arg, nodes.Name)
            and item.arg.name in self._targets[-1:]
            and self._is_of_messages(item.node)
        )
        if not is_item or not isinstance(target, nodes.Name):
            return node
        return [node, self._mark(target.name, node.lineno, -1)]

    def _mark(self, name: str, line: int, inside: int = 0) -> nodes.ExprStmt:
        depth = nodes.Const(len(self._targets) + inside)
        call = nodes.Filter(nodes.Name(name, "load"), BEGINS, [depth], [], None, None)
        return nodes.ExprStmt(call, lineno=line)
