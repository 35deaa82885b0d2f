"""The API tests that the SDKs of OpenAI and Anthropic carry in their source distributions.

They are generated from the APIs' specifications: each method is called with its required and with
all parameters, plain, as a raw and as a streamed response, and each field of the answer is checked
against its declared type. The clients ``strict`` and ``aiohttp`` also refuse what the loose one
would convert.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.clients.outcomes import Known, Outcome, from_junit
from tests.clients.processes import clean, run
from tests.clients.suite import Place, Suite

_DEADLINE_S = 900.0
_TEST_DEADLINE_S = 60


def run_pytest(
    place: Place,
    words: Sequence[str],
    *,
    program: Path,
    cwd: Path,
    prefix: str = "",
    **variables: str,
) -> list[Outcome]:
    """Outcomes of one run of pytest, without ``prefix`` in their names; at least one outcome."""
    report = place.folder / f"{program.parent.parent.name}-{abs(hash((*words,)))}.xml"
    ran = run(
        [
            *(program, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short"),
            *(f"--timeout={_TEST_DEADLINE_S}", f"--junit-xml={report}"),
            *words,
        ],
        env=clean(place.folder, **variables),
        cwd=cwd,
        deadline_s=_DEADLINE_S,
    )
    if ran.code not in (0, 1) or not report.exists():
        return [Outcome("pytest", passed=False, detail=ran.detail)]
    found = from_junit(report.read_text(encoding="utf-8"))
    return [Outcome(o.name.removeprefix(prefix), o.passed, o.detail) for o in found]


_OPENAI_FILES = (
    "chat/test_completions.py",
    "test_completions.py",
    "test_embeddings.py",
    "test_models.py",
    "test_responses.py",
    "responses/test_input_items.py",
    "responses/test_input_tokens.py",
)


def _openai(place: Place) -> list[Outcome]:
    return run_pytest(
        place,
        ["-o", "addopts=", *(f"tests/api_resources/{file}" for file in _OPENAI_FILES)],
        program=place.installed.bin / "python",
        cwd=place.installed.sdists["openai"],
        prefix="tests.api_resources.",
        TEST_API_BASE_URL=f"{place.server.url}/v1",
    )


_WAYS = r"(method|raw_response|streaming_response)"
_REFUSED = "a field that would change the text and that no local server has is refused, not ignored"
_BY_ID = "asks for an id that the test invents; real ids are in checks/test_openai_stored.py"

OPENAI = Suite(
    name="openai",
    about="API tests of openai-python, sync and async",
    floor=201,
    known=(
        Known(
            rf"chat\.test_completions\.Test(Async)?Completions\.test_{_WAYS}"
            r"_(retrieve|update|list|list_with_all_params|delete)\[\w+\]",
            "stored chats: they are kept by /v1/responses only",
        ),
        Known(
            r"test_completions\.Test(Async)?Completions\."
            r"test_method_create_with_all_params_overload_[12]\[\w+\]",
            "suffix: the embedded model has no tokens for what surrounds a gap",
        ),
        Known(
            rf"test_embeddings\.Test(Async)?Embeddings\.test_{_WAYS}_create\[(strict|aiohttp)\]",
            "asks for base64 by itself and then refuses a string where floats are declared",
        ),
        Known(
            r"test_embeddings\.Test(Async)?Embeddings\.test_method_create_with_all_params\[\w+\]",
            "one dimension: vectors are not cut",
        ),
        Known(
            rf"test_models\.Test(Async)?Models\.test_{_WAYS}_delete\[\w+\]",
            "no model is deleted over HTTP",
        ),
        Known(
            r"test_responses\.Test(Async)?Responses\."
            r"test_method_create_with_all_params_overload_[12]\[\w+\]",
            f"conversation, prompt, truncation: {_REFUSED}",
        ),
        Known(
            rf"test_responses\.Test(Async)?Responses\.test_{_WAYS}"
            r"_(retrieve(_with_all_params)?_overload_[12]|delete|cancel)\[\w+\]",
            _BY_ID,
        ),
        Known(
            rf"test_responses\.Test(Async)?Responses\.test_{_WAYS}_compact(_with_all_params)?"
            r"\[\w+\]",
            "compaction is a model's work, with a prompt of OpenAI's own",
        ),
        Known(
            rf"responses\.test_input_items\.Test(Async)?InputItems\.test_{_WAYS}"
            r"_list(_with_all_params)?\[\w+\]",
            _BY_ID,
        ),
        Known(
            r"responses\.test_input_tokens\.Test(Async)?InputTokens\."
            r"test_method_count_with_all_params\[\w+\]",
            f"conversation, previous_response_id of an unknown response: {_REFUSED}",
        ),
    ),
    outcomes=_openai,
)

_ANTHROPIC_FILES = (
    "test_messages.py",
    "test_models.py",
    "beta/test_messages.py",
    "beta/test_models.py",
)


def _anthropic(place: Place) -> list[Outcome]:
    return run_pytest(
        place,
        ["-o", "addopts=", "-p", "tests._alias_httpx"]
        + [f"tests/api_resources/{file}" for file in _ANTHROPIC_FILES],
        program=place.installed.bin / "python",
        cwd=place.installed.sdists["anthropic"],
        prefix="tests.api_resources.",
        TEST_API_BASE_URL=place.server.url,
    )


ANTHROPIC = Suite(
    name="anthropic",
    about="API tests of anthropic-python, sync and async",
    floor=215,
    known=(),
    outcomes=_anthropic,
)
