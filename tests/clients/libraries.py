"""Our own checks of values through other libraries: the tests in ``checks``, run by their Python.

They do not import the project, so they show what a user of the library sees.
"""

from __future__ import annotations

from pathlib import Path

from tests.clients.outcomes import Outcome
from tests.clients.sdk_tests import run_pytest
from tests.clients.suite import Place, Suite

CHECKS = Path(__file__).parent / "checks"
_OLDER = ("test_llama_index.py",)


def _outcomes(place: Place) -> list[Outcome]:
    newest = sorted(p.name for p in CHECKS.glob("test_*.py") if p.name not in _OLDER)
    return [
        outcome
        for folder, files in ((place.installed.bin, newest), (place.installed.bin_older, _OLDER))
        for outcome in run_pytest(
            place,
            ["--confcutdir=.", *files],
            program=folder / "python",
            cwd=CHECKS,
            CLIENTS_URL=place.server.url,
            CLIENTS_MODEL=place.server.model,
            PYTHONDONTWRITEBYTECODE="1",
            LITELLM_LOCAL_MODEL_COST_MAP="True",  # else it asks the network for prices
        )
    ]


LIBRARIES = Suite(
    name="libraries",
    about="values through LiteLLM, LangChain, llama-index, llm, stored responses, a tool runner",
    floor=47,
    known=(),
    outcomes=_outcomes,
)
