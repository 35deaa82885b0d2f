"""Deterministic automata over characters: which texts a string may be."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from native.schema import charsets
from native.schema.charsets import Ranges
from native.schema.regex import BadPattern, Nfa, leading_conditions, parse

MAX_STATES = 6_000
MAX_WORK = 200_000
"""Transitions that may be computed for one automaton."""
MAX_TOTAL_WORK = 500_000
"""And for all of one schema."""


class Budget(threading.local):
    """What the automata of one conversion cost; a pattern that is used twice counts once."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.spent = 0
        self._known: set[tuple[str, bool]] = set()

    def spend(self, work: int, pattern: tuple[str, bool] | None = None) -> None:
        if pattern is not None and pattern in self._known:
            return
        self.spent += work
        if pattern is not None:
            self._known.add(pattern)
        if self.spent > MAX_TOTAL_WORK:
            raise BadPattern("the patterns of this schema are too large together")


BUDGET = Budget()


@dataclass(frozen=True, slots=True)
class Dfa:
    """State 0 is the start; characters without a transition lead nowhere.

    Trimmed: from each state an accepting one can be reached, unless it accepts nothing.
    """

    steps: tuple[tuple[tuple[Ranges, int], ...], ...]
    accepting: frozenset[int]

    @property
    def is_empty(self) -> bool:
        return not self.accepting

    def accepts(self, text: str) -> bool:
        state: int | None = 0
        for char in text:
            targets = (t for ranges, t in self.steps[state or 0] if charsets.has(ranges, char))
            state = next(targets, None)
            if state is None:
                return False
        return state in self.accepting


ANYTHING = Dfa((((charsets.ALL, 0),),), frozenset({0}))
NOTHING = Dfa(((),), frozenset())


def _too_large() -> BadPattern:
    return BadPattern(f"it is too large: more than {MAX_STATES} states, or too many steps of them")


def of_pattern(pattern: str, *, wide: bool = False) -> Dfa:
    """The texts in which ``pattern`` is found; where dialects differ, in all or (``wide``) in any.

    BadPattern if it is not regular or too large.
    """
    conditions, rest = leading_conditions(pattern)
    dfa, work = _of_pattern(rest, wide=wide)
    BUDGET.spend(work, (rest, wide))
    for is_wanted, inner in conditions:
        other = of_pattern(f"^(?:{inner})", wide=wide == is_wanted)
        dfa = intersection(dfa, other if is_wanted else complement(other))
    return dfa


@lru_cache(maxsize=64)
def _of_pattern(pattern: str, *, wide: bool) -> tuple[Dfa, int]:
    nfa = parse(pattern, wide=wide)
    atoms = _atoms(nfa)
    start = _closed(nfa, {nfa.start}, "^")
    numbers: dict[tuple[frozenset[int], bool], int] = {(start, True): 0}
    todo = [(start, True)]
    steps: list[list[tuple[Ranges, int]]] = []
    accepting = set()
    work = 0
    for states, is_start in todo:  # grows while it is read
        if nfa.final in _closed(nfa, states, "^$" if is_start else "$"):
            accepting.add(numbers[states, is_start])
        steps.append([])
        for target, ranges in _moves(nfa, states, atoms).items():
            work += 1
            key = (target, False)
            if key not in numbers:
                numbers[key] = len(numbers)
                todo.append(key)
            steps[-1].append((ranges, numbers[key]))
        work += len(atoms) + len(states)
        if len(todo) > MAX_STATES or work > MAX_WORK:
            raise _too_large()
    return _trimmed(steps, accepting), work


def _atoms(nfa: Nfa) -> list[Ranges]:
    """Disjoint sets of characters that every part of the pattern treats alike."""
    atoms: list[Ranges] = [charsets.ALL]
    for ranges in {ranges for steps in nfa.steps for ranges, _ in steps}:
        split = []
        for atom in atoms:
            split += [charsets.both(atom, ranges), charsets.without(atom, ranges)]
        atoms = [atom for atom in split if atom]
        if len(atoms) > MAX_STATES:
            raise _too_large()
    return atoms


def _closed(nfa: Nfa, states: Iterable[int], at: str) -> frozenset[int]:
    seen = set(states)
    todo = list(seen)
    while todo:
        for mark, target in nfa.jumps[todo.pop()]:
            if (not mark or mark in at) and target not in seen:
                seen.add(target)
                todo.append(target)
    return frozenset({nfa.final}) if nfa.final in seen and "$" not in at else frozenset(seen)


def _moves(nfa: Nfa, states: frozenset[int], atoms: list[Ranges]) -> dict[frozenset[int], Ranges]:
    arcs: dict[Ranges, set[int]] = {}
    for state in states:
        for ranges, target in nfa.steps[state]:
            arcs.setdefault(ranges, set()).add(target)
    by_atom: dict[frozenset[int], list[tuple[int, int]]] = {}
    for atom in atoms:
        char = chr(atom[0][0])
        targets: set[int] = set()
        for ranges, ends in arcs.items():
            if charsets.has(ranges, char):
                targets |= ends
        if targets:
            by_atom.setdefault(frozenset(targets), []).extend(atom)
    closed: dict[frozenset[int], list[tuple[int, int]]] = {}
    for raw, found in by_atom.items():
        closed.setdefault(_closed(nfa, raw, ""), []).extend(found)
    return {target: charsets.normal(found) for target, found in closed.items()}


def _trimmed(steps: list[list[tuple[Ranges, int]]], accepting: set[int]) -> Dfa:
    sources: list[list[int]] = [[] for _ in steps]
    for state, outs in enumerate(steps):
        for _, target in outs:
            sources[target].append(state)
    alive = set(accepting)
    todo = list(alive)
    while todo:
        fresh = [s for s in sources[todo.pop()] if s not in alive]
        alive.update(fresh)
        todo += fresh
    reached = {0}
    todo = [0]
    while todo:
        fresh = [t for _, t in steps[todo.pop()] if t in alive and t not in reached]
        reached.update(fresh)
        todo += fresh
    if 0 not in alive:
        return NOTHING
    alive &= reached
    numbers = {old: new for new, old in enumerate(sorted(alive))}
    kept = tuple(
        tuple((ranges, numbers[target]) for ranges, target in steps[old] if target in alive)
        for old in sorted(alive)
    )
    return Dfa(kept, frozenset(numbers[old] for old in accepting if old in alive))


def intersection(a: Dfa, b: Dfa) -> Dfa:
    """The texts that both accept."""
    if a is ANYTHING or b is ANYTHING:
        return b if a is ANYTHING else a
    numbers = {(0, 0): 0}
    todo = [(0, 0)]
    steps: list[list[tuple[Ranges, int]]] = []
    work = 0
    for one, other in todo:  # grows while it is read
        steps.append([])
        work += len(a.steps[one]) * len(b.steps[other])
        if len(todo) > MAX_STATES or work > MAX_WORK:
            raise _too_large()
        for ranges, target in a.steps[one]:
            for more, end in b.steps[other]:
                shared = charsets.both(ranges, more)
                if shared:
                    if (target, end) not in numbers:
                        numbers[target, end] = len(numbers)
                        todo.append((target, end))
                    steps[-1].append((shared, numbers[target, end]))
    BUDGET.spend(work)
    found = {n for (x, y), n in numbers.items() if x in a.accepting and y in b.accepting}
    return _trimmed(steps, found)


def complement(a: Dfa) -> Dfa:
    """The texts that ``a`` does not accept."""
    sink = len(a.steps)
    steps: list[list[tuple[Ranges, int]]] = []
    for outs in a.steps:
        known = charsets.normal(one for ranges, _ in outs for one in ranges)
        rest = charsets.without(charsets.ALL, known)
        steps.append([*outs, (rest, sink)] if rest else list(outs))
    steps.append([(charsets.ALL, sink)])
    return _trimmed(steps, set(range(sink + 1)) - a.accepting)


def of_texts(texts: Iterable[str]) -> Dfa:
    """Exactly these texts."""
    nodes: list[dict[str, int]] = [{}]
    accepting = set()
    for text in texts:
        at = 0
        for char in text:
            if char not in nodes[at]:
                nodes[at][char] = len(nodes)
                nodes.append({})
            at = nodes[at][char]
        accepting.add(at)
    steps = [[(charsets.of(char), t) for char, t in sorted(node.items())] for node in nodes]
    return _trimmed(steps, accepting)


def of_lengths(least: int, most: int | None) -> Dfa:
    """Texts of ``least`` to ``most`` characters."""
    last = least if most is None else most
    if last > MAX_STATES:
        raise _too_large()
    steps: list[list[tuple[Ranges, int]]] = [[(charsets.ALL, n + 1)] for n in range(last)]
    steps.append([(charsets.ALL, last)] if most is None else [])
    return _trimmed(steps, set(range(least, last + 1)))


def lengths(a: Dfa) -> tuple[int, int | None]:
    """The lengths of the shortest and the longest text (None: there is no longest)."""
    distance = {0: 0}
    todo = [0]
    for state in todo:  # grows while it is read
        for _, target in a.steps[state]:
            if target not in distance:
                distance[target] = distance[state] + 1
                todo.append(target)
    least = min(distance[state] for state in a.accepting)
    return least, _longest(a)


def _longest(a: Dfa) -> int | None:
    waiting = [0] * len(a.steps)
    for outs in a.steps:
        for _, target in outs:
            waiting[target] += 1
    longest = [0] * len(a.steps)
    ready = [state for state, n in enumerate(waiting) if n == 0]
    for state in ready:  # grows while it is read
        for _, target in a.steps[state]:
            longest[target] = max(longest[target], longest[state] + 1)
            waiting[target] -= 1
            if waiting[target] == 0:
                ready.append(target)
    return max(longest) if len(ready) == len(a.steps) else None
