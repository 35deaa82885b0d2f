"""What the tests of a suite gave, held against what is known to fail: values only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree


@dataclass(frozen=True, slots=True)
class Outcome:
    """One test of a suite; ``detail`` is why it failed."""

    name: str
    passed: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Known:
    """Tests that fail, whatever the gateway does or by its design, and why.

    ``pattern`` is a regular expression that must match the whole name of a test.
    """

    pattern: str
    reason: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a suite is as it should be: it is when there are no problems."""

    suite: str
    n_passed: int
    n_known: int
    problems: tuple[str, ...]


def judge(suite: str, outcomes: Sequence[Outcome], known: Iterable[Known], floor: int) -> Verdict:
    """Compare ``outcomes`` with the list of ``known`` failures and the ``floor`` of passes."""
    problems: list[str] = []
    listed: set[str] = set()
    for entry in known:
        matching = [o for o in outcomes if re.fullmatch(entry.pattern, o.name)]
        listed |= {o.name for o in matching}
        if not matching:
            problems.append(f"known failure {entry.pattern!r} matches no test: take it off")
        problems += [
            f"{o.name} passes, though it is listed as a known failure: take it off ({entry.reason})"
            for o in matching
            if o.passed
        ]
    problems += [
        f"{o.name} fails: {o.detail}" for o in outcomes if not o.passed and o.name not in listed
    ]
    n_passed = sum(o.passed for o in outcomes)
    if n_passed < floor:
        problems.append(f"{n_passed} tests pass, fewer than the floor of {floor}")
    return Verdict(suite, n_passed, len(listed), tuple(problems))


def from_junit(report: str) -> list[Outcome]:
    """The outcomes in a JUnit report of pytest, named ``module.Class.test[parameter]``.

    A skipped test is left out: it shows nothing.
    """
    found: list[Outcome] = []
    for case in ElementTree.fromstring(report).iter("testcase"):
        name = f"{case.get('classname', '')}.{case.get('name', '')}"
        trouble = [child for child in case if child.tag in ("failure", "error")]
        if trouble:
            found.append(Outcome(name, passed=False, detail=_first_line(trouble[0])))
        elif case.find("skipped") is None:
            found.append(Outcome(name, passed=True))
    return found


def _first_line(trouble: ElementTree.Element) -> str:
    text = (trouble.get("message") or trouble.text or "").strip()
    return text.splitlines()[0][:300] if text else "no message"
