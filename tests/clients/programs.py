"""Command-line agents and the AI SDK: a prompt in, a tool call, its result, an answer.

Each agent is asked to run a command. The model is a scripted one (``tests.support.scripted_model``)
that calls the agent's tool and, once it has the result, says a text; all else is as with any model.
So each program must end well, have run the command, and print the text; and the gateway must have
computed of the second turn what is new alone: its prompt begins with the first turn's, and at least
the first turn's prompt was warm.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tests.clients import turns
from tests.clients.outcomes import Outcome
from tests.clients.processes import Ran, clean, run
from tests.clients.recorder import Exchange, recording
from tests.clients.server import Server, serve_gateway
from tests.clients.suite import Place, Suite
from tests.support.scripted_model import N_CTX, Scripts, scripted_model

_DEADLINE_S = 240.0
_COMMAND: Final = "printf '%s-%s' from tool"
_PRINTED: Final = "from-tool"  # which is not in the command
_TOLD: Final = "The command has printed what you see above."
_PROMPT: Final = f"Run the command `{_COMMAND}` and tell me what it prints."
SCRIPTS: Final = Scripts(
    calls={
        "Bash": {"command": _COMMAND, "description": "Print two words"},
        "exec_command": {"cmd": _COMMAND},
        "bash": {"command": _COMMAND},
        "run_shell_command": {"command": _COMMAND, "is_background": False},
    },
    told=_TOLD,
    plain='{"title": "Two words"}',
)


@dataclass(frozen=True, slots=True)
class Program:
    """How one program is started against a server."""

    name: str
    tool: str  # that the model calls; requests with it are the turns, others are beside them
    words: Sequence[str]  # after the program; {url}, {model} and {prompt} are filled in
    env: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)  # in the folder where it starts


_OPENCODE = {
    "provider": {
        "served": {
            "npm": "@ai-sdk/openai-compatible",
            "name": "served",
            "options": {"baseURL": "{url}/v1", "apiKey": "none"},
            "models": {"{model}": {"name": "{model}", "limit": {"context": N_CTX, "output": 256}}},
        }
    },
    "permission": {"bash": "allow"},
    "autoupdate": False,
    "share": "disabled",
}

PROGRAMS_LIST = (
    Program(
        name="claude",
        tool="Bash",
        words=("-p", "{prompt}", "--output-format", "json", "--allowedTools", "Bash"),
        env={
            "ANTHROPIC_BASE_URL": "{url}",
            "ANTHROPIC_AUTH_TOKEN": "none",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        },
    ),
    Program(
        name="codex",
        tool="exec_command",
        words=(
            *("exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"),
            *("-c", 'model_providers.served={name="served",base_url="{url}/v1"}'),
            *("-c", 'model_provider="served"', "-m", "{model}", "{prompt}"),
        ),
    ),
    Program(
        name="opencode",
        tool="bash",
        words=("run", "-m", "served/{model}", "{prompt}"),
        env={"OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_MODELS_FETCH": "1"},
        files={"opencode.json": json.dumps(_OPENCODE)},
    ),
    Program(
        name="qwen",
        tool="run_shell_command",
        words=("-p", "{prompt}", "--approval-mode", "yolo", "--auth-type", "openai"),
        env={
            "OPENAI_BASE_URL": "{url}/v1",
            "OPENAI_API_KEY": "none",
            "OPENAI_MODEL": "{model}",
        },
    ),
)


@dataclass(frozen=True, slots=True)
class Session:
    """One run of a program: how it ended, and what came through in order."""

    ran: Ran
    exchanges: list[Exchange]

    def turns(self, tool: str) -> list[Exchange]:
        """The requests that have this tool."""
        asked = [e for e in self.exchanges if turns.path_of(e) in turns.PATHS]
        return [e for e in asked if tool in turns.tool_names(e)]


def run_session(program: Program, place: Place, name: str, prompt: str = _PROMPT) -> Session:
    """One conversation of one program; its requests are kept beside its output."""
    home = place.folder / program.name
    work = home / "work"
    work.mkdir(parents=True, exist_ok=True)
    with recording(place.server.url) as recorder:
        values = {"{url}": recorder.url, "{model}": place.server.model, "{prompt}": prompt}

        def fill(text: str) -> str:
            for mark, value in values.items():
                text = text.replace(mark, value)
            return text

        for file, content in program.files.items():
            (work / file).write_text(fill(content), encoding="utf-8")
        path = f"{place.installed.node / 'node_modules' / '.bin'}:/usr/local/bin:/usr/bin:/bin"
        variables = {name: fill(value) for name, value in program.env.items()}
        ran = run(
            [program.name, *map(fill, program.words)],
            env=clean(home, **variables) | {"PATH": path},
            cwd=work,
            deadline_s=_DEADLINE_S,
        )
    (home / f"{name}.output.txt").write_text(ran.output, encoding="utf-8")
    kept = b"".join(_kept(e) for e in recorder.exchanges)
    (home / f"{name}.requests.jsonl").write_bytes(kept)
    return Session(ran, recorder.exchanges)


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


def check(program: Program, session: Session) -> str | None:
    """What is wrong with a session; None when nothing is."""
    if session.ran.code != 0:
        return session.ran.detail
    refused = [e for e in session.exchanges if e.status >= 400 or e.status == 0]
    if refused:
        first = refused[0]
        text = first.answer[:300].decode("utf-8", "replace")
        return f"{first.method} {first.path} was answered {first.status}: {text}"
    asked = session.turns(program.tool)
    if len(asked) != 2:
        return f"{len(asked)} requests have the tool {program.tool}, expected 2"
    before, after = map(turns.history, asked)
    if not turns.extends(before, after):
        return "the second turn does not begin with the first"
    if not any(_PRINTED in result for result in turns.tool_results(after[len(before) :])):
        return f"no result of a tool in the second turn has {_PRINTED}"
    if _TOLD not in session.ran.output:
        return f"it did not print {_TOLD!r}: {session.ran.detail}"
    first, second = map(turns.usage, asked)
    if first is None or second is None:
        return "an answer has no usage"
    if second.cached < first.prompt:
        return f"{second.cached} tokens were warm, fewer than the first prompt's {first.prompt}"
    return None


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
    found = _ai_sdk(place)
    model = scripted_model(place.folder / "scripted.gguf", SCRIPTS)
    words = ("--n-ctx", str(N_CTX))
    with serve_gateway(place.folder, *words, model=f"scripted={model}") as server:
        agents = Place(server, place.installed, place.folder)
        for program in PROGRAMS_LIST:
            problem = check(program, run_session(program, agents, "first"))
            found.append(Outcome(program.name, passed=problem is None, detail=problem or ""))
    return found


PROGRAMS = Suite(
    name="programs",
    about="Claude Code, Codex, opencode, qwen-code and the AI SDK",
    floor=20,
    known=(),
    outcomes=_outcomes,
    needs_npm=True,
)
