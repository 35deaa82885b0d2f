"""The chat template of a model: Jinja, as Hugging Face's ``apply_chat_template`` renders it.

What templates in the wild rely on: no blank lines and no indentation from tags, ``break`` and
``continue``, ``{% generation %}``, ``raise_exception``, ``strftime_now``, a ``tojson`` that keeps
non-ASCII and HTML as they are, and ``bos_token`` and ``eos_token`` beside messages and tools.

The template is untrusted: sandboxed against reaching what it should not, and limited in what it may
use (``actors.text.template_limits``). Compiled once; not safe for several threads at once.
"""

from __future__ import annotations

import contextlib
import functools
import html
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final, TypeVar

from jinja2 import Template, TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment
from jinja2.visitor import NodeTransformer

from actors.messages.errors import InvalidRequest
from actors.text.chat_form import Shape
from actors.text.template_limits import (
    MAX_OUTPUT_CHARS,
    Budget,
    OverBudget,
    limited,
    size_of_binop,
    size_of_call,
    size_of_format,
    size_of_replace,
)
from actors.text.template_marks import BEGINS, MarkedLoops, Marks

T = TypeVar("T")
MAX_TEMPLATE_CHARS: Final = 1 << 20
_UNDEFINED: Final = re.compile(r"'(\w+)' is undefined")
_CONCAT: Final = "_concatenated"
# What formats, pads or wraps text to any width; no chat template needs them.
_LEFT_OUT: Final = ("center", "filesizeformat", "pprint", "urlize", "wordwrap", "xmlattr")


class TemplateFailed(InvalidRequest):
    """The template refused this conversation, is broken, or used too much."""


class TemplateStopped(TemplateFailed):
    """The template used more than it may."""


class ChatTemplate:
    """One compiled template."""

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "") -> None:
        """Compile; TemplateFailed if it is no template."""
        if len(source) > MAX_TEMPLATE_CHARS:
            raise TemplateFailed(f"the chat template has more than {MAX_TEMPLATE_CHARS} characters")
        self._own = source
        self.source = source
        """With the beginning that it was given."""
        self._environment = _Environment()
        self._specials = {"bos_token": bos_token, "eos_token": eos_token}
        self.constants: frozenset[str] = frozenset()
        """The strings that the template's expressions compare and split with."""
        self.variables: frozenset[str] = frozenset()
        """The names that it reads and does not set itself."""
        self.shape: Shape | None = None
        """The form in which it expects conversations; ``actors.text.chat_shape`` finds it out."""
        self._template = self._guarded(lambda: self._compiled(source), calls_only=True)

    def begin_with(self, beginning: str) -> None:
        """Put Jinja before the template, which changes what it gets; TemplateFailed.

        ``constants`` stay those of the template.
        """
        source = beginning + self._own
        constants, variables = self.constants, self.variables
        try:
            self._template = self._guarded(lambda: self._compiled(source), calls_only=True)
            self.source, variables = source, self.variables
        finally:
            self.constants, self.variables = constants, variables

    def _compiled(self, source: str) -> Template:
        tree = self._environment.parse(source)
        self.constants = frozenset(
            one.value for one in tree.find_all(nodes.Const) if isinstance(one.value, str)
        )
        names = meta.find_undeclared_variables(tree) - self._environment.globals.keys()
        self.variables = frozenset(names)
        tree = _BoundConcat().visit(tree)
        tree = MarkedLoops(tree).visit(tree)
        code = self._environment.compile(tree)
        return Template.from_code(self._environment, code, self._environment.globals)

    def render(self, variables: Mapping[str, Any]) -> str:
        """The conversation as text. ``variables``: messages, add_generation_prompt, tools …"""
        return self.render_marked(variables)[0]

    def render_marked(self, variables: Mapping[str, Any]) -> tuple[str, Marks]:
        """The same, and where its loops over the messages stood."""
        try:
            frozen = {name: _frozen(value) for name, value in variables.items()}
        except RecursionError:
            raise TemplateFailed("the conversation is nested too deeply") from None

        if "datetime" in self.variables:
            frozen.setdefault("datetime", _strftime_now("%b %d %Y"))
        messages = frozen.get("messages") or ()
        marks = Marks(numbers={id(one): number for number, one in enumerate(messages)})

        def rendered() -> str:
            parts: list[str] = []
            self._environment.marks = marks
            for part in self._template.generate({**self._specials, **frozen}):
                marks.n_chars += len(part)
                if marks.n_chars > MAX_OUTPUT_CHARS:
                    raise OverBudget(f"it writes more than {MAX_OUTPUT_CHARS} characters")
                parts.append(part)
            return "".join(parts)

        return self._guarded(rendered), marks

    def _guarded(self, run: Callable[[], T], *, calls_only: bool = False) -> T:
        try:
            with limited(calls_only=calls_only) as budget:
                self._environment.budget = budget
                return run()
        except OverBudget as over:
            raise TemplateStopped(f"the chat template was stopped: {over}") from None
        except RecursionError:
            raise TemplateStopped("the chat template was stopped: it nests too deeply") from None
        except TemplateError as error:
            line = getattr(error, "lineno", None)
            where = f" (line {line})" if line else ""
            unset = _UNDEFINED.fullmatch(str(error))
            hint = " (a variable of its own: give it in template_kwargs)"
            is_own = unset is not None and unset[1] in self.variables
            raise TemplateFailed(
                f"the chat template raised: {error}{hint if is_own else where}"
            ) from error
        except Exception as error:  # a program of unknown origin may raise anything
            kind = type(error).__name__
            raise TemplateFailed(f"the chat template failed: {kind}: {error}") from error
        finally:
            self._environment.budget = self._environment.marks = None


class _FrozenList(list[Any]):
    """A list of the caller's, which no template may change."""


class _FrozenDict(dict[Any, Any]):
    """An object of the caller's, which no template may change."""


for _kind, _word in ((_FrozenList, "list"), (_FrozenDict, "dict")):
    _kind.__module__, _kind.__name__ = "builtins", _word  # as Jinja's errors name them


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return _FrozenList(map(_frozen, value))
    if isinstance(value, dict):
        return _FrozenDict((key, _frozen(item)) for key, item in value.items())
    return value


class _Generation(Extension):
    """``{% generation %} … {% endgeneration %}`` marks a model's text; it prints as it is."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's interface

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _BoundConcat(NodeTransformer):
    """``a ~ b`` is compiled to a plain join, which no environment can bound; so it is a filter."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - Jinja's naming
        self.generic_visit(node)
        joined = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(joined, _CONCAT, [], [], None, None, lineno=node.lineno)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, _Generation],
            finalize=self._printed,
        )
        self.budget: Budget | None = None
        self.marks: Marks | None = None
        for name in _LEFT_OUT:
            self.filters.pop(name, None)
        self.filters |= {"tojson": _tojson, "indent": _indent, _CONCAT: self._concatenated}
        self.filters |= {"safe": str} | dict.fromkeys(("e", "escape", "forceescape"), _escape)
        self.filters = {name: self._charged(one) for name, one in self.filters.items()}
        self.filters[BEGINS] = self._begins
        self.filters["format"] = self._sized_format
        self.filters["replace"] = self._sized_replace(self.filters["replace"])
        self.filters["join"] = self._sized_join(self.filters["join"])
        self.globals.pop("lipsum", None)
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        self.concat = self._concat  # type: ignore[method-assign]  # of macros and {% set %} blocks

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Lists and dictionaries that a template made may be changed by it, the caller's not."""
        if type(obj) in (list, dict):
            return SandboxedEnvironment.is_safe_attribute(self, obj, attr, value)
        return super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, str):
            self._printed(right)
        self._charge(size_of_binop(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values())
        if isinstance(getattr(getattr(obj, "__wrapped__", obj), "__self__", None), str):
            for value in given:
                self._printed(value)
        self._charge(size_of_call(obj, given))
        result = super().call(context, obj, *args, **kwargs)
        self._charge_value(result)
        return result

    def _begins(self, message: Any, depth: Any = 0) -> str:
        return "" if self.marks is None else self.marks.begins(message, depth)

    def _printed(self, value: Any) -> Any:
        if self.budget is not None:
            self.budget.charge_printed(value)
        return value

    def _charge(self, n_chars: int) -> None:
        if self.budget is not None:
            self.budget.charge(n_chars)

    def _charge_value(self, value: object) -> None:
        if self.budget is not None:
            self.budget.charge_value(value)

    def _charged(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)  # keeps the mark that asks for context or environment
        def charged(*args: Any, **kwargs: Any) -> Any:
            for value in (*args, *kwargs.values()):
                self._printed(value)
            result = function(*args, **kwargs)
            self._charge_value(result)
            return result

        return charged

    def _sized_format(self, pattern: Any, *args: Any) -> str:
        self._printed(args)
        self._charge(size_of_format(str(pattern), args))
        return str(pattern) % args

    def _sized_replace(self, replace: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(replace)
        def sized(eval_ctx: Any, s: Any, old: Any, new: Any, count: Any = None) -> Any:
            self._charge(size_of_replace(str(s), old, str(new)))
            return replace(eval_ctx, str(s), old, new, count)

        return sized

    def _sized_join(self, join: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(join)
        def sized(eval_ctx: Any, value: Iterable[Any], d: str = "", attribute: Any = None) -> Any:
            items = list(value)
            self._charge(len(items) * len(d) + sum(len(x) for x in items if isinstance(x, str)))
            return join(eval_ctx, items, d, attribute)

        return sized

    def _concatenated(self, values: list[Any]) -> str:
        texts = [str(self._printed(value)) for value in values]
        self._charge(sum(map(len, texts)))
        return "".join(texts)

    def _concat(self, parts: Iterable[str]) -> str:
        texts = list(parts)
        self._charge(sum(map(len, texts)))
        return "".join(texts)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if indent is not None:
        indent = min(int(indent), 16)
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=None if separators is None else tuple(separators),  # type: ignore[arg-type]
        sort_keys=sort_keys,
        default=_as_json,
    )


def _as_json(value: Any) -> Any:
    """What filters such as ``map`` give is a list to templates."""
    if isinstance(value, Iterator):
        return list(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _escape(value: Any) -> str:
    """As plain text: what Jinja marks as safe would escape all that is added to it."""
    return html.escape(str(value))


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    step = width[:256] if isinstance(width, str) else " " * min(int(width), 256)
    lines = str(text).split("\n")
    done = [
        step + line if (line or blank) and (first or number) else line
        for number, line in enumerate(lines)
    ]
    return "\n".join(done)


def _raise_exception(message: object) -> None:
    raise TemplateError(str(message))


def _strftime_now(pattern: str) -> str:
    now = datetime.now().astimezone()  # where the node runs; templates print a date for people
    with contextlib.suppress(ValueError):
        return now.strftime(str(pattern)[:256])
    return ""
