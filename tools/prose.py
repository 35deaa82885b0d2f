"""Words kept out of prose: ``python tools/prose.py [--list | --further]``, part of ``make lint``.

A program receives, returns, raises, logs and notifies; it is no person. Counted are docstrings,
comments and texts that users may see (string literals of several words) in the code, comments and
texts of the shim, docstrings and comments of tests, and the documents. Code in backticks and blocks
of code is not prose.

Each part of the repository has a ceiling, which may only fall, and so have citations of documents
that are not in the repository. ``--list`` prints every place. ``--further`` prints the places of
words that are often, but not always, another such figure of speech; they have no ceiling.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

CEILINGS = {
    "actors": 0,
    "bench": 0,
    "cache": 0,
    "documents": 0,
    "examples": 0,
    "native": 0,
    "runtime": 0,
    "supervision": 0,
    "tests": 0,
    "tools": 0,
}
"""How many of the words each part may still contain. Lower a number when its count has fallen."""

CITATIONS = 0
"""How many citations of documents outside the repository there may still be."""

WORDS = re.compile(
    r"\b(nobody|somebody|whoever|anybody|everybody|hears?|told|says?|said|aloud|for ever"
    r"|in earnest|anew)\b",
    re.I,
)
FURTHER = re.compile(
    r"\b(knows?|knew|wants?|wanted|goes on|going on|went on|gives? up|gave up|trusts?|trusted|pays?"
    r"|paid|at home|last words|desks?|tends?|tending|believes?|complains?)\b",
    re.I,
)
OUTSIDE = re.compile(r"\bT-\d\d[A-Z]?\b|\barchitecture(?:\.md)? §|(?<![\w./-])§ ?\d")
"""Citations of documents outside the repository."""
DOCUMENT = re.compile(r"(?<![\w/*<.-])([\w./-]*\w\.md)\b")
QUOTED = {
    "examples/07_chat.py": "what a person writes in a chat",
    "examples/09_many_at_once.py": "prompts",
    "examples/12_embeddings.py": "sentences that are embedded",
    "examples/train_demo_model/*.py": "stories that the model is trained on",
    "runtime/embedded/prompts.py": "stories in the style of the embedded model",
    "tools/matrix.py": "the name of a user",
    "tools/prose.py": "the words themselves",
}
"""Files whose string literals quote people; their docstrings and comments count."""
NOT_OURS = ("CHANGELOG.md",)
"""What was written about earlier versions stays as it was."""


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of prose and where it begins."""

    path: str
    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Found:
    """One word, or one citation, that should not be there."""

    path: str
    line: int
    word: str
    text: str


def part_of(path: str) -> str | None:
    """The part of the repository that a file belongs to; ``None`` where nothing is counted."""
    if path in NOT_OURS:
        return None
    if path.endswith(".md"):
        return "documents"
    if path.endswith((".py", ".cpp", ".h")):
        first = path.partition("/")[0]
        return "documents" if first == "docs" else first if first in CEILINGS else None
    return None


def texts(path: Path, name: str) -> list[Text]:
    """The prose of one file."""
    source = path.read_text(encoding="utf-8")
    if name.endswith(".md"):
        found = _markdown(source)
    elif name.endswith(".py"):
        quotes = any(Path(name).match(pattern) for pattern in QUOTED)
        found = _python(source, with_strings=not quotes and not name.startswith("tests/"))
    else:
        found = _cpp(source)
    return [Text(name, line, _without_code(text)) for line, text in found]


def _without_code(text: str) -> str:
    return re.sub(r"``[^`]+``|`[^`\n]+`", lambda match: "\n" * match[0].count("\n"), text)


def _markdown(source: str) -> Iterator[tuple[int, str]]:
    blank = re.sub(
        r"^ *```.*?^ *```$|<!--.*?-->",
        lambda match: "\n" * match[0].count("\n"),
        source,
        flags=re.M | re.S,
    )
    yield from enumerate(blank.splitlines(), 1)


def _python(source: str, *, with_strings: bool) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    tree = ast.parse(source)
    documentation = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        is_documentation = id(node) in documentation
        if is_documentation or (with_strings and re.search(r"\w \w", node.value)):
            yield node.lineno, node.value


def _cpp(source: str) -> Iterator[tuple[int, str]]:
    pattern = r'//[^\n]*|/\*.*?\*/|"(?:[^"\\\n]|\\.)*"'
    for match in re.finditer(pattern, source, re.S):
        text = match[0]
        if text[0] == "/" or re.search(r"\w \w", text):
            yield source.count("\n", 0, match.start()) + 1, text


def words_in(text: Text) -> Iterator[Found]:
    """The words of a piece of prose that are to be kept out."""
    yield from _matches(WORDS, text)


def further_in(text: Text) -> Iterator[Found]:
    """Its words that deserve a second look."""
    yield from _matches(FURTHER, text)


def outside_in(text: Text) -> Iterator[Found]:
    """Its citations of documents that are not in the repository."""
    yield from _matches(OUTSIDE, text)
    for match in DOCUMENT.finditer(text.text):
        name = match[1]
        at = (ROOT, (ROOT / text.path).parent, ROOT / "docs")
        if not any((one / name).exists() for one in at):
            yield _found(text, match, name)


def _matches(pattern: re.Pattern[str], text: Text) -> Iterator[Found]:
    for match in pattern.finditer(text.text):
        yield _found(text, match, match[0])


def _found(text: Text, match: re.Match[str], word: str) -> Found:
    before = text.text[: match.start()]
    line = text.text[before.rfind("\n") + 1 :].partition("\n")[0].strip()
    return Found(text.path, text.line + before.count("\n"), word, line)


def files() -> Iterator[tuple[Path, str]]:
    """Every file that is looked at, with its name from the root."""
    found = list(ROOT.glob("*.md"))
    for folder in (*CEILINGS, "docs"):
        found += (ROOT / folder).rglob("*")
    for path in sorted(found):
        name = path.relative_to(ROOT)
        if path.is_file() and not any(one == "__pycache__" for one in name.parts):
            yield path, str(name)


def main(arguments: list[str]) -> int:
    """Print the table; 1 where a ceiling is exceeded."""
    n_words = dict.fromkeys(CEILINGS, 0)
    found: dict[str, list[Found]] = {part: [] for part in CEILINGS}
    further: dict[str, list[Found]] = {part: [] for part in CEILINGS}
    outside: list[Found] = []
    for path, name in files():
        part = part_of(name)
        if part is None:
            continue
        for text in texts(path, name):
            n_words[part] += len(re.findall(r"[^\W\d_]+", text.text))
            found[part] += words_in(text)
            further[part] += further_in(text)
            outside += outside_in(text)
    listed = found if "--list" in arguments else further if "--further" in arguments else {}
    for one in [one for part in listed.values() for one in part]:
        sys.stdout.write(f"{one.path}:{one.line}: {one.word}: {one.text}\n")
    head = f"{'found':>6} {'ceiling':>8} {'per 1,000':>10} {'further':>8}"
    sys.stdout.write(f"{'part':<12} {'words':>8} {head}\n")
    for part, ceiling in CEILINGS.items():
        count, total = len(found[part]), n_words[part]
        note = "  too many" if count > ceiling else "  lower the ceiling" * (count < ceiling)
        share = 1000 * count / total if total else 0.0
        figures = f"{count:>6} {ceiling:>8} {share:>10.2f} {len(further[part]):>8}"
        sys.stdout.write(f"{part:<12} {total:>8} {figures}{note}\n")
    sys.stdout.write(f"citations of documents elsewhere: {len(outside)}, ceiling {CITATIONS}\n")
    if len(outside) > CITATIONS or "--list" in arguments:
        for one in outside:
            sys.stdout.write(f"{one.path}:{one.line}: {one.word} is not in this repository\n")
    is_exceeded = len(outside) > CITATIONS or any(
        len(found[part]) > ceiling for part, ceiling in CEILINGS.items()
    )
    if is_exceeded:
        sys.stderr.write("prose: see python tools/prose.py --list\n")
    return 1 if is_exceeded else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
