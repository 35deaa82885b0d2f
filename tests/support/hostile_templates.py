"""Chat templates and tool schemas that are meant to take all time, memory or stack.

``python -m tests.support.hostile_templates NAME BYTES`` reads one, with so much memory, and prints
what became of it.
"""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from typing import Any, Final

from native.chat_format import ChatFormat, ChatFormatError

NESTED, STEPS, LONG = "nested too deeply", "too ", "too long"
USER: Final = [{"role": "user", "content": "Why?"}]
PLAIN: Final = """\
{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}\
<call>{{ c.function.name }}|{{ c.function.arguments | tojson }}</call>{% endfor %}<|end|>\
{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}\
{% if add_generation_prompt %}<|assistant|>{% endif %}"""


@dataclass(frozen=True)
class Hostile:
    """A template, the schemas of its tools, and a part of the error; None where it is read."""

    template: str
    refused: str | None = None
    schemas: tuple[Any, ...] = ()
    tool_name: str = "f"


def _doubled(step: str) -> str:
    start = "{% set n = namespace(s='a a a a', l=[1, 2]) %}"
    return f"{start}{{% for i in range(60) %}}{{% set {step} %}}{{% endfor %}}{{{{ n.s }}}}"


def _deep(n: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(n):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def _refs(n: int) -> Any:
    both = {
        f"d{at}": {
            "type": "object",
            "properties": {key: {"$ref": f"#/$defs/d{at + 1}"} for key in "xy"},
        }
        for at in range(n)
    }
    defs = {**both, f"d{n}": {"type": "string"}}
    return {"type": "object", "properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": defs}


def _of(**properties: Any) -> Any:
    return {"type": "object", "properties": properties}


_SELF: Final = "{% set l = [] %}{% set _ = l.append(l) %}"
CASES: Final[dict[str, Hostile]] = {
    "parentheses": Hostile("{{ " + "(" * 10_000 + "1" + ")" * 10_000 + " }}", NESTED),
    "negations": Hostile("{{ " + "not " * 20_000 + "1 }}", NESTED),
    "sums": Hostile("{{ " + "1 + " * 50_000 + "1 }}", NESTED),
    "concatenations": Hostile("{{ " + "'a' ~ " * 50_000 + "'a' }}", NESTED),
    "lists": Hostile("{{ " + "[" * 10_000 + "]" * 10_000 + " }}", NESTED),
    "filters": Hostile("{{ 'a'" + "|upper" * 50_000 + " }}", NESTED),
    "members": Hostile("{{ a" + ".b" * 50_000 + " }}", NESTED),
    "ternaries": Hostile("{{ " + "1 if 1 else " * 20_000 + "1 }}", NESTED),
    "blocks": Hostile("{% if 1 %}" * 10_000 + "{% endif %}" * 10_000, NESTED),
    "branches": Hostile("{% if 0 %}" + "{% elif 0 %}" * 10_000 + "{% endif %}", NESTED),
    "loops in loops": Hostile("{% for a in [1] %}" * 10_000 + "{% endfor %}" * 10_000, NESTED),
    "unclosed blocks": Hostile("{% if 1 %}" * 10_000, NESTED),
    "a huge range": Hostile("{% for i in range(1000000000) %}{{ i }}{% endfor %}", LONG),
    "loops": Hostile(
        "{% for i in range(3000) %}" * 3 + "x" + "{% endfor %}" * 3, STEPS
    ),
    "a doubled text": Hostile(_doubled("n.s = n.s + n.s"), LONG),
    "a doubled concatenation": Hostile(_doubled("n.s = n.s ~ n.s"), LONG),
    "a doubled list": Hostile(_doubled("n.l = n.l + n.l"), LONG),
    "a text many times": Hostile("{{ 'a' * 1000000000000 }}", STEPS),
    "joined with itself": Hostile(_doubled("n.s = [n.s, n.s] | join(n.s)"), LONG),
    "replaced": Hostile(_doubled("n.s = n.s.replace('a', 'aaaaaaaa')"), LONG),
    "split and joined": Hostile(_doubled("n.s = n.s.split(' ') | join(' a a ')"), "too "),
    "a wide indent": Hostile("{{ 'a\n\nb' | indent(1000000000000) }}", LONG),
    "wide JSON": Hostile("{{ [1, [2]] | tojson(indent=1000000000) }}", LONG),
    "a list in itself, printed": Hostile(_SELF + "{{ l }}", NESTED),
    "a list in itself, as JSON": Hostile(_SELF + "{{ l | tojson }}", NESTED),
    "a list that grows": Hostile(
        "{% set l = [1] %}{% for x in l %}{% set _ = l.append(x) %}{% endfor %}"
    ),
    "a macro that calls itself": Hostile(
        "{% macro f(a) %}{{ f(a) }}{% endmacro %}{{ f(1) }}", NESTED
    ),
    "a macro that calls itself twice": Hostile(
        "{% macro f(a) %}{% if a %}{{ f(a - 1) }}{{ f(a - 1) }}{% endif %}{% endmacro %}"
        "{{ f(90) }}",
        STEPS,
    ),
    "callers": Hostile(
        "{% macro f() %}{{ caller() }}{% endmacro %}"
        + "{% call f() %}" * 5_000 + "{% endcall %}" * 5_000, NESTED
    ),
    "text of 3 MiB": Hostile("x" * (3 << 20) + "{{ messages[0].content }}"),
    "text of 5 MiB": Hostile("x" * (5 << 20), LONG),
    "nothing": Hostile("", "empty"),
    "half a tag": Hostile("{{ {% }} %} {{", ""),
    "a schema nested 10,000 times": Hostile(PLAIN, "no JSON", (_deep(10_000),)),
    "a schema nested 200 times": Hostile(PLAIN, NESTED, (_deep(200),)),
    "a schema nested 60 times": Hostile(PLAIN, None, (_deep(60),)),
    "a schema that is itself": Hostile(PLAIN, "", (_of(a={"$ref": "#"}),)),
    "a definition that is itself": Hostile(
        PLAIN, None, ({**_of(a={"$ref": "#/$defs/a"}), "$defs": {"a": {"$ref": "#/$defs/a"}}},)
    ),
    "definitions of each other": Hostile(PLAIN, None, (_refs(40),)),
    "a schema from elsewhere": Hostile(PLAIN, "", ({"$ref": "https://example.org/x"},)),
    "a reference that is a number": Hostile(PLAIN, "", ({"$ref": 5},)),
    "a name of 1 MiB": Hostile(PLAIN, None, (_of(a={"type": "string"}),), "n" * (1 << 20)),
    "a key of 1 MiB": Hostile(PLAIN, None, (_of(**{"a" * (1 << 20): {"type": "string"}}),)),
    "50,000 values": Hostile(PLAIN, None, ({"enum": [f"x{at}" for at in range(50_000)]},)),
    "3,000 optional keys": Hostile(
        PLAIN, STEPS, (_of(**{f"p{at}": {"type": "string"} for at in range(3_000)}),)
    ),
    "1,000 tools": Hostile(PLAIN, None, tuple(_of(a={"type": "string"}) for _ in range(1_000))),
    "a billion items": Hostile(
        PLAIN, None, (_of(a={"type": "array", "items": {}, "minItems": 10**9}),)
    ),
    "a deep pattern": Hostile(
        PLAIN, None, (_of(a={"type": "string", "pattern": f"^{'(' * 20_000}a{')' * 20_000}$"}),)
    ),
    "properties that are a list": Hostile(PLAIN, "", ({"type": "object", "properties": [1]},)),
    "a type that is a number": Hostile(PLAIN, "", ({"type": 5},)),
}  # fmt: skip


def main(name: str, memory: int) -> str:
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    case = CASES[name]
    tools = [
        {
            "type": "function",
            "function": {
                "name": f"{case.tool_name}{at}", "description": "Does.", "parameters": schema,
            },
        }
        for at, schema in enumerate(case.schemas)
    ]  # fmt: skip
    try:
        reader = ChatFormat(case.template).reader(USER, tools)
        for reply in (b'Hi <call>f0|{"a": 1}</call>', b"x" * 1000, b"[" * 5000):
            reader.read(reply, is_partial=True)
    except ChatFormatError as error:
        return f"refused: {error}"
    return "read"


if __name__ == "__main__":
    print(main(sys.argv[1], int(sys.argv[2])))
