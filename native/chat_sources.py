"""Copy the part of llama.cpp that reads chat templates: ``chat_sources.py COMMON TARGET``.

Into the copy go the bounds of ``bounds.h``: how deep a call may call itself, and how many steps it
may take. Where a place for them is not found, llama.cpp has changed, and this fails. Files that are
the same already are left alone, so a second build compiles nothing. Prints the sources to compile,
one a line.

CMake runs this file as a script, so it imports nothing of this project.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple


class Bound(NamedTuple):
    """What is replaced in a file, as a regular expression, and by what."""

    file: str
    place: str
    text: str


_INCLUDE = '#include "bounds.h"\n'
BOUNDS = (
    Bound("peg-parser.h", r"#pragma once\n", "#pragma once\n" + _INCLUDE),
    Bound("peg-parser.h", r"\bint parse_depth;", "la_bounds::depth parse_depth;"),
    Bound("jinja/parser.cpp", r"\A", _INCLUDE),
    Bound(
        "jinja/parser.cpp",
        r"(\n    statement_ptr parse_\w+\([^)\n]*\) \{)",
        r"\1 const la_bounds::call one;",
    ),
    Bound("jinja/runtime.cpp", r"\A", _INCLUDE),
    Bound(
        "jinja/runtime.cpp",
        r"\n        return execute_impl\(ctx\);",
        "\n        const la_bounds::call one; return la_bounds::measured(execute_impl(ctx));",
    ),
    Bound(
        "jinja/runtime.cpp",
        r"(res->val_str\.append\(str\);)",
        r"la_bounds::spend(1 + static_cast<int64_t>(str.length()) / 64); \1",
    ),
    # Text before a call that follows an empty thought would come nowhere.
    Bound(
        "parsers/gemma4.cpp",
        r"""(p\.rule\("scan-to-toolcall", )(p\.until\("<\|tool_call>"\))(\))""",
        r"\1p.content(\2)\3",
    ),
    Bound("jinja/value.cpp", r"\A", _INCLUDE),
    Bound(
        "jinja/value.cpp",
        r"(out->push_back\(mk_val<value_int>\(i\)\);)",
        r"la_bounds::grow(512); \1",
    ),
    Bound(
        "jinja/value.cpp",
        r"(new_res\.reserve\((str\.length\(\) \+ new_str\.length\(\) \* "
        r"\(str\.length\(\) \+ 1\))\);)",
        r"la_bounds::grow(\2); \1",
    ),
    Bound(
        "jinja/value.cpp",
        r"indent\.assign\(val_width->as_int\(\), ' '\);",
        "indent.assign(la_bounds::fits(static_cast<size_t>(val_width->as_int())), ' ');",
    ),
    Bound(
        "jinja/value.cpp",
        r"(while \(std::getline\(iss, line\)\) \{)",
        r"\1 la_bounds::grow(indent.size()); la_bounds::fits(indented.size());",
    ),
    Bound(
        "jinja/value.cpp",
        r"(            std::string result;\n"
        r"            for \(size_t i = 0; i < arr\.size\(\); \+\+i\) \{)",
        r"\1 la_bounds::grow(delim.size()); la_bounds::fits(result.size());",
    ),
    Bound(
        "jinja/value.cpp",
        r"(static void value_to_json_internal\([^)]*\) \{)",
        r"\1 const la_bounds::call one;"
        r" la_bounds::grow("
        r"la_bounds::fits(indent > 0 ? size_t(indent) * size_t(curr_lvl + 1) : 1));",
    ),
    Bound(
        "jinja/value.cpp",
        r"(str\.replace\(pos, old_str\.length\(\), new_str\);)",
        r"la_bounds::grow(new_str.size() + la_bounds::fits(str.size()) / 64); \1",
    ),
    *(
        Bound(file, r"\b((?:result|out)->push_back\()", r"la_bounds::grow(64), \1")
        for file in ("jinja/runtime.cpp", "jinja/value.cpp")
    ),
    Bound(
        "jinja/value.cpp",
        r"(void value_t::stats_t::mark_used\([^)]*\) \{)",
        r"\1 const la_bounds::call one;",
    ),
    Bound(
        "jinja/runtime.h",
        r"(static void gather_string_parts_recursive\([^)]*\) \{)",
        r"\1 const la_bounds::call one;",
    ),
    Bound("jinja/value.h", r"#pragma once\n", "#pragma once\n" + _INCLUDE),
    Bound(
        "jinja/value.h",
        r"(virtual string as_string\(\) const override \{\n)",
        r"\1        const la_bounds::call one;\n",
    ),
    Bound("json-schema-to-grammar.cpp", r"\A", _INCLUDE),
    Bound(
        "json-schema-to-grammar.cpp",
        r"(std::string _add_rule\([^)]*\) \{)",
        r"\1 la_bounds::grow(rule.size());",
    ),
    Bound(
        "json-schema-to-grammar.cpp",
        r"(std::string visit\([^)]*\) \{)",
        r"\1 const la_bounds::call one;",
    ),
    Bound(
        "json-schema-to-grammar.cpp",
        r"(get_recursive_refs = \[&\]\([^)]*\) \{)",
        r"\1 la_bounds::spend(1 + static_cast<int64_t>(ks.size()));",
    ),
    Bound("jinja/string.cpp", r"\A", _INCLUDE),
    Bound(
        "jinja/string.cpp",
        r"(string & string::append\(const string & other\) \{)",
        r"\1 la_bounds::grow(length() + other.length()"
        r" + 48 * (parts.size() + other.parts.size()));",
    ),
)
SOURCES = ("chat*.cpp", "json*.cpp", "peg-parser.cpp", "trie.cpp", "unicode.cpp", "jinja/*.cpp",
           "parsers/*.cpp")  # fmt: skip
HEADERS = ("*.h", "jinja/*.h", "parsers/*.h")


def prepare(common: Path, target: Path) -> list[Path]:
    """Copy ``common`` to ``target`` with the bounds in it; the sources to compile."""
    sources = [one for pattern in SOURCES for one in sorted(common.glob(pattern))]
    headers = [one for pattern in HEADERS for one in sorted(common.glob(pattern))]
    if not sources:
        raise SystemExit(f"{common} has no chat*.cpp: the source of llama.cpp is not complete")
    for one in sources + headers:
        name = one.relative_to(common).as_posix()
        _write(target / name, _bounded(name, one.read_text(encoding="utf-8")))
    return [target / one.relative_to(common) for one in sources]


def _bounded(name: str, text: str) -> str:
    for bound in BOUNDS:
        if bound.file == name:
            text, count = re.subn(bound.place, bound.text, text)
            if not count:
                raise SystemExit(
                    f"common/{name} of llama.cpp has no {bound.place!r} any more: adapt "
                    "native/chat_sources.py, so that what it does stays bounded"
                )
    return text


def _write(path: Path, text: str) -> None:
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.stdout.write("\n".join(map(str, prepare(Path(sys.argv[1]), Path(sys.argv[2])))))
