"""Command-line agents and the AI SDK, from npm: a prompt in, a tool call, an answer.

Each agent is asked to run a command. Whether it does depends on the model, so what is checked is
what the gateway owes any model: each request is answered, the program ends well and prints the
text of the last answer, and where a turn follows a tool call, its request begins with the turn
before.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.clients.outcomes import Outcome
from tests.clients.processes import clean, run
from tests.clients.recorder import Exchange, Recorder, recording
from tests.clients.suite import Place, Suite

_DEADLINE_S = 240.0
_PROMPT = "Run the command `echo from-tool` and repeat what it prints."


@dataclass(frozen=True, slots=True)
class Program:
    """How one program is started against a server, and where its requests go."""

    name: str
    path: str  # of the requests that ask the model
    words: Sequence[str]  # after the program; {url}, {model} and {prompt} are filled in
    history: str  # the field of a request that only grows
    env: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)  # in the folder where it starts


_OPENCODE = {
    "provider": {
        "served": {
            "npm": "@ai-sdk/openai-compatible",
            "name": "served",
            "options": {"baseURL": "{url}/v1", "apiKey": "none"},
            "models": {"{model}": {"name": "{model}", "limit": {"context": 65536, "output": 256}}},
        }
    },
    "permission": {"bash": "allow"},
    "autoupdate": False,
    "share": "disabled",
}

PROGRAMS_LIST = (
    Program(
        name="claude",
        path="/v1/messages",
        words=("-p", "{prompt}", "--output-format", "json", "--allowedTools", "Bash"),
        history="messages",
        env={
            "ANTHROPIC_BASE_URL": "{url}",
            "ANTHROPIC_AUTH_TOKEN": "none",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        },
    ),
    Program(
        name="codex",
        path="/v1/responses",
        words=(
            *("exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"),
            *("-c", 'model_providers.served={{name="served",base_url="{url}/v1"}}'),
            *("-c", 'model_provider="served"', "-m", "{model}", "{prompt}"),
        ),
        history="input",
    ),
    Program(
        name="opencode",
        path="/v1/chat/completions",
        words=("run", "-m", "served/{model}", "{prompt}"),
        history="messages",
        env={"OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_MODELS_FETCH": "1"},
        files={"opencode.json": json.dumps(_OPENCODE)},
    ),
    Program(
        name="qwen",
        path="/v1/chat/completions",
        words=("-p", "{prompt}", "--approval-mode", "yolo", "--auth-type", "openai"),
        history="messages",
        env={
            "OPENAI_BASE_URL": "{url}/v1",
            "OPENAI_API_KEY": "none",
            "OPENAI_MODEL": "{model}",
        },
    ),
)


def _filled(text: str, place: Place, url: str) -> str:
    values = {"{url}": url, "{model}": place.server.model, "{prompt}": _PROMPT}
    for name, value in values.items():
        text = text.replace(name, value)
    return text.replace("{{", "{").replace("}}", "}") if text.startswith("model_pro") else text


def run_program(program: Program, place: Place) -> Outcome:
    """One conversation of one program; its requests are kept beside its output."""
    home = place.folder / program.name
    work = home / "work"
    work.mkdir(parents=True, exist_ok=True)
    with recording(place.server.url) as recorder:

        def fill(text: str) -> str:
            return _filled(text, place, recorder.url)

        for name, content in program.files.items():
            (work / name).write_text(fill(content), encoding="utf-8")
        path = f"{place.installed.node / 'node_modules' / '.bin'}:/usr/local/bin:/usr/bin:/bin"
        variables = {name: fill(value) for name, value in program.env.items()}
        ran = run(
            [program.name, *map(fill, program.words)],
            env=clean(home, **variables) | {"PATH": path},
            cwd=work,
            deadline_s=_DEADLINE_S,
        )
    (home / "output.txt").write_text(ran.output, encoding="utf-8")
    (home / "requests.jsonl").write_bytes(b"".join(_kept(e) for e in recorder.exchanges))
    if ran.code != 0:
        return Outcome(program.name, passed=False, detail=ran.detail)
    problem = check(program, recorder)
    return Outcome(program.name, passed=problem is None, detail=problem or "")


def _kept(exchange: Exchange) -> bytes:
    line = {
        "method": exchange.method,
        "path": exchange.path,
        "status": exchange.status,
        "headers": exchange.headers,
        "body": exchange.body.decode("utf-8", "replace"),
        "answer": exchange.answer.decode("utf-8", "replace"),
    }
    return json.dumps(line).encode() + b"\n"


def check(program: Program, recorder: Recorder) -> str | None:
    """What is wrong with the requests and their answers; None when nothing is."""
    asked = recorder.asked(program.path)
    if not asked:
        return f"it sent no request to {program.path}"
    refused = [e for e in recorder.exchanges if e.status >= 400 or e.status == 0]
    if refused:
        first = refused[0]
        text = first.answer[:300].decode("utf-8", "replace")
        return f"{first.method} {first.path} was answered {first.status}: {text}"
    turns = [e.json for e in asked if e.json.get("tools")]
    for before, after in itertools.pairwise(turns):
        if not extends(before[program.history], after[program.history]):
            return "a later turn does not begin with the turn before"
    return None


def extends(before: list[Any], after: list[Any]) -> bool:
    return [_plain(item) for item in after[: len(before)]] == [_plain(item) for item in before]


def _plain(item: Any) -> Any:
    """An item of a history without what programs vary and templates do not see.

    Claude Code marks the last item for the cache, and writes a text as a list of one part while it
    is marked.
    """
    if isinstance(item, dict):
        kept = {k: _plain(v) for k, v in item.items() if k != "cache_control"}
        if kept.get("type") == "text" and kept.keys() == {"type", "text"}:
            return kept["text"]
        return kept
    if isinstance(item, list):
        parts = [_plain(part) for part in item]
        return parts[0] if len(parts) == 1 and isinstance(parts[0], str) else parts
    return item


def _ai_sdk(place: Place) -> list[Outcome]:
    script = place.installed.node / "ai_sdk.mjs"
    ran = run(
        ["node", script],
        env=clean(place.folder, CLIENTS_URL=place.server.url, CLIENTS_MODEL=place.server.model),
        cwd=place.folder,
        deadline_s=_DEADLINE_S,
    )
    found = [
        Outcome(f"ai-sdk/{line[6:].partition(':')[0].strip()}", line.startswith("ok"), line)
        for line in ran.output.splitlines()
        if line.startswith(("ok ", "not ok "))
    ]
    return found or [Outcome("ai-sdk", passed=False, detail=ran.detail)]


def _outcomes(place: Place) -> list[Outcome]:
    return _ai_sdk(place) + [run_program(program, place) for program in PROGRAMS_LIST]


PROGRAMS = Suite(
    name="programs",
    about="Claude Code, Codex, opencode, qwen-code and the AI SDK",
    floor=20,
    known=(),
    outcomes=_outcomes,
    needs_npm=True,
)
