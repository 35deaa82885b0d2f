"""Requests made from ``/openapi.json`` by schemathesis: whatever is sent, no answer is a 5xx."""

from __future__ import annotations

from tests.clients.outcomes import Outcome
from tests.clients.processes import clean, run
from tests.clients.suite import Place, Suite

_DEADLINE_S = 600.0
_EXAMPLES = 30


def _outcomes(place: Place) -> list[Outcome]:
    ran = run(
        [
            *(place.installed.bin / "schemathesis", "run", f"{place.server.url}/openapi.json"),
            *("--checks", "not_a_server_error,response_schema_conformance"),
            *("--phases", "examples,coverage,fuzzing", "--max-examples", str(_EXAMPLES)),
            *("--seed", "1", "--request-timeout", "60", "--no-color", "--warnings", "off"),
            "--continue-on-failure",
        ],
        env=clean(place.folder, COLUMNS="200"),
        cwd=place.folder,
        deadline_s=_DEADLINE_S,
    )
    (place.folder / "schemathesis.txt").write_text(ran.output, encoding="utf-8")
    return [Outcome("schemathesis", ran.code == 0, ran.detail)]


SCHEMA = Suite(
    name="schema",
    about="schemathesis on /openapi.json",
    floor=1,
    known=(),
    outcomes=_outcomes,
)
