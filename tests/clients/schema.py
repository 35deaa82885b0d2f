"""Requests made from ``/openapi.json`` by schemathesis: whatever is sent, no answer is a 5xx.

The gateway has no keys here, so every request is an administrator's: models are unloaded and rows
wiped in between. That is meant. The model is the embedded one, which is loaded again at its first
use, and the cache is a folder of this run.
"""

from __future__ import annotations

import re

from tests.clients.outcomes import Outcome
from tests.clients.processes import clean, run
from tests.clients.suite import Place, Suite

_DEADLINE_S = 1200.0
_EXAMPLES = 30
_STATUS = re.compile(r"^\s*\[(\d{3})\]", re.M)
_FACT = re.compile(r"^(?:- \w+ .+|\[\d{3}\].*| +curl .+)$", re.M)
"""What a failed operation broke, the status of the answer, and the command that repeats it."""


def _outcomes(place: Place) -> list[Outcome]:
    ran = run(
        [
            *(place.installed.bin / "schemathesis", "run", f"{place.server.url}/openapi.json"),
            *("--checks", "not_a_server_error,response_schema_conformance"),
            *("--phases", "examples,coverage,fuzzing", "--max-examples", str(_EXAMPLES)),
            *("--seed", "1", "--request-timeout", "60", "--no-color", "--warnings", "off"),
            *("--exclude-path", "/llama/v1/events"),  # it has no end
            "--continue-on-failure",
        ],
        env=clean(place.folder, COLUMNS="200"),
        cwd=place.folder,
        deadline_s=_DEADLINE_S,
    )
    (place.folder / "schemathesis.txt").write_text(ran.output, encoding="utf-8")
    # Exit 1 is a failure that the report names; anything else is one of schemathesis itself.
    whole = Outcome("schemathesis", ran.code in (0, 1), ran.detail)
    return [whole, *failures(ran.output)]


def failures(report: str) -> list[Outcome]:
    """One outcome for each operation that the report of schemathesis has under its failures."""
    # 501 is how llama-server and Ollama answer what this node does not do; its text has the way.
    parts = re.split(r"^_{3,} (.+?) _{3,}$", report.partition(" FAILURES =")[2], flags=re.M)
    return [
        Outcome(name, passed=False, detail=" | ".join(_FACT.findall(text))[:600])
        for name, text in zip(parts[1::2], parts[2::2], strict=True)
        if set(_STATUS.findall(text)) != {"501"}
    ]


SCHEMA = Suite(
    name="schema",
    about="schemathesis on /openapi.json",
    floor=1,
    known=(),
    outcomes=_outcomes,
)
