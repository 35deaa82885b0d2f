"""The machinery of the text: templates with choices, and a story that keeps its facts.

A template holds choices in square brackets and names in braces: ``"[One day|Then] {h} ran."``.
An empty choice may leave a sentence part out. Everything is drawn from one ``random.Random``, so a
seed fixes the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random

Node = str | tuple[tuple["Node", ...], ...] | list[str]
_TOKEN = re.compile(r"[\[\]|]|\{[^}]*\}|[^\[\]|{]+")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou](?!ni))")
_SPACES = re.compile(r" {2,}")
_BEFORE_STOP = re.compile(r" +([.,!?])")
_SENTENCE = re.compile(r'(^|[.!?] |")([a-z])')
PRONOUNS = {
    "he": {"he": "he", "him": "him", "his": "his", "self": "himself"},
    "she": {"he": "she", "him": "her", "his": "her", "self": "herself"},
    "it": {"he": "it", "him": "it", "his": "its", "self": "itself"},
}


@lru_cache(maxsize=8192)
def _parse(template: str) -> tuple[Node, ...]:
    """A sequence of text, fields (one-item lists) and choices (tuples of sequences)."""
    stack: list[list[list[Node]]] = [[[]]]
    for part in _TOKEN.findall(template):
        if part == "[":
            stack.append([[]])
        elif part == "|" and len(stack) > 1:
            stack[-1].append([])
        elif part == "]":
            branches = stack.pop()
            stack[-1][-1].append(tuple(tuple(branch) for branch in branches))
        elif part.startswith("{"):
            stack[-1][-1].append([part[1:-1]])
        else:
            stack[-1][-1].append(part)
    return tuple(stack[0][0])


def _walk(nodes: tuple[Node, ...], rng: Random, names: dict[str, str], out: list[str]) -> None:
    for node in nodes:
        if isinstance(node, str):
            out.append(node)
        elif isinstance(node, list):
            value = names[node[0]]
            if "{" in value or "[" in value:
                _walk(_parse(value), rng, names, out)
            else:
                out.append(value)
        else:
            _walk(node[int(rng.random() * len(node))], rng, names, out)


def expand(template: str, rng: Random, names: dict[str, str]) -> str:
    """One drawing of ``template``: articles, spaces and sentence starts put right."""
    out: list[str] = []
    _walk(_parse(template), rng, names, out)
    text = _BEFORE_STOP.sub(r"\1", _SPACES.sub(" ", "".join(out)).strip())
    text = _ARTICLE.sub(r"\1n ", text)
    return _SENTENCE.sub(lambda m: m[1] + m[2].upper(), text)


@dataclass(frozen=True, slots=True)
class Person:
    """A character of a story: the name or title used, the kind, and the pronoun (he, she, it)."""

    name: str
    kind: str
    pronoun: str
    home: str
    mood: str

    def fields(self, key: str) -> dict[str, str]:
        """Template names for this person under ``key``: ``{h}``, ``{h.he}``, ``{h.kind}``, …"""
        made = {f"{key}.{k}": v for k, v in PRONOUNS[self.pronoun].items()}
        made |= {f"{key}.{k.title()}": v.title() for k, v in PRONOUNS[self.pronoun].items()}
        made[f"{key}.possessive"] = f"{self.name}'s"
        made |= {key: self.name, f"{key}.kind": self.kind, f"{key}.home": self.home}
        return made | {f"{key}.mood": self.mood}


@dataclass(slots=True)
class Story:
    """Text under construction, with the names it may use and the questions it can answer."""

    rng: Random
    names: dict[str, str]
    paragraphs: list[list[str]] = field(default_factory=lambda: [[]])
    asks: list[tuple[str, str]] = field(default_factory=list)
    topic: str = ""

    def say(self, *templates: str) -> None:
        """Add sentences to the paragraph."""
        for template in templates:
            text = expand(template, self.rng, self.names)
            if text:
                self.paragraphs[-1].append(text)

    def maybe(self, chance: float, *templates: str) -> None:
        if self.rng.random() < chance:
            self.say(*templates)

    def turn(self) -> None:
        """Begin a new paragraph."""
        if self.paragraphs[-1]:
            self.paragraphs.append([])

    def ask(self, question: str, answer: str) -> None:
        """Record a question that this story answers."""
        pair = (expand(question, self.rng, self.names), expand(answer, self.rng, self.names))
        self.asks.append(pair)

    def pick(self, key: str, values: tuple[str, ...]) -> str:
        """Draw a value that no other name of this story has, and call it ``key``."""
        used = set(self.names.values())
        fresh = [v for v in values if v not in used] or list(values)
        self.names[key] = self.rng.choice(fresh)
        return self.names[key]

    def text(self) -> str:
        return "\n\n".join(" ".join(p) for p in self.paragraphs if p)


Plot = Callable[[Story], None]
