"""The documents of the project: which there are, and what they show as code.

Rules that the documents follow, so that the tests can run what they show:

* a block marked ``sh`` holds commands, one a line; each is run, or at least parsed
* a line that names ``/path/to/``, or the models ``mine`` and ``other``, stands for a file of the
  reader's own and is parsed only
* a block marked ``python`` is run as it stands; ``node`` is a running node with the model ``demo``
* a ``python`` block whose first line is ``# NAME.py`` is a file that later blocks import
* a block marked ``toml`` is a settings file
* a block marked ``text`` shows output, or commands that need root or a container engine
"""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.nodes import ROOT

DOCS: Final = ROOT / "docs"
if str(DOCS) not in sys.path:
    sys.path.append(str(DOCS))  # for the generators of the reference pages

PACKAGES: Final = ("actors", "bench", "cache", "native", "runtime", "supervision")
PAGES: Final = sorted(DOCS.rglob("*.md"))
READMES: Final = [ROOT / package / "README.md" for package in PACKAGES]
OTHER_READMES: Final = sorted((ROOT / "examples").rglob("README.md"))
DOCUMENTS: Final = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *PAGES,
    *READMES,
    *OTHER_READMES,
]

PROGRAM: Final = "llama-actors"
LANGUAGES: Final = {"sh", "python", "toml", "text", "{toctree}", "{eval-rst}"}
_OWN_FILES: Final = re.compile(r"/path/to/|\b(?:mine|other)\b")
_NOT_HERE: Final = {"serve", "demo", "stop", "pull", "rm"}
"""Commands that start or end a node, which the tests share, or that need a hub: parsed only."""
_BLOCK: Final = re.compile(
    r"^(?P<indent> *)```(?P<language>\S*)\n(?P<text>.*?)^ *```$", re.M | re.S
)


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code in a document."""

    document: Path
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"

    @property
    def file_name(self) -> str | None:
        """The name of the file that a ``python`` block stands for, if it does."""
        match = re.match(r"# (\w+\.py)\n", self.text)
        return match[1] if match and self.language == "python" else None


@dataclass(frozen=True, slots=True)
class Command:
    """One line of a ``sh`` block: its words, and what is piped into it."""

    where: str
    line: str
    words: tuple[str, ...]
    given: str | None

    @property
    def is_ours(self) -> bool:
        return self.words[0] == PROGRAM

    @property
    def is_run(self) -> bool:
        """Whether the tests can run it on a node that has only the model ``demo``."""
        return (
            self.is_ours
            and self.words[1] not in _NOT_HERE
            and not {"--watch", "--pull"} & set(self.words)
            and not _OWN_FILES.search(" ".join(self.words))
        )


def name_of(path: Path) -> str:
    """The name of a document as the ids of tests have it."""
    return str(path.relative_to(ROOT))


def blocks(document: Path, language: str | None = None) -> list[Block]:
    """The blocks of a document, or those in one language."""
    text = document.read_text(encoding="utf-8")
    found = [
        Block(
            document,
            text.count("\n", 0, match.start()) + 1,
            match["language"],
            re.sub(rf"^{match['indent']}", "", match["text"], flags=re.M),
        )
        for match in _BLOCK.finditer(text)
    ]
    return [one for one in found if language in (None, one.language)]


def commands(document: Path) -> list[Command]:
    """The commands of a document's ``sh`` blocks."""
    found = []
    for block in blocks(document, "sh"):
        for number, line in enumerate(block.text.splitlines(), block.line + 1):
            before, pipe, command = line.rpartition(" | ")
            words = tuple(shlex.split(command, comments=True))
            if words:
                given = shlex.split(before)[1] + "\n" if pipe else None
                where = f"{block.document.relative_to(ROOT)}:{number}"
                found.append(Command(where, line, words, given))
    return found


def prose(document: Path) -> str:
    """The text of a document without its blocks."""
    return _BLOCK.sub("", document.read_text(encoding="utf-8"))
