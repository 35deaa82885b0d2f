"""Command-line agents and the AI SDK: a prompt in, tool calls, their results, an answer.

Those that ``llama-actors launch`` knows are started by it. Each agent is asked to run a command.
The model is a scripted one (``tests.support.scripted_model``) that calls the agent's tool and, once
it has the result, writes a text; all else is as with any model. So each program must end well, have
run the command, and print the text; and the gateway must have computed of each later turn what is
new alone: its prompt begins with the turn before, and all of that, reply included, was warm.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from runtime.gateway.wire.canonical import BILLING
from tests.clients import turns
from tests.clients.install import Installed
from tests.clients.outcomes import Outcome
from tests.clients.processes import SYSTEM_PATH, Ran, clean, run
from tests.clients.recorder import Exchange, recording
from tests.clients.server import serve_gateway
from tests.clients.suite import Place, Suite
from tests.support.scripted_model import N_CTX, Scripts, scripted_model

_DEADLINE_S = 240.0
_COMMAND: Final = "printf '%s-%s' from tool"
_PRINTED: Final = "from-tool"  # which is not in the command
_ANSWER: Final = "The command has printed what you see above."
_PLAIN: Final = '{"title": "Two words"}'
_PROMPT: Final = f"Run the command `{_COMMAND}` and tell me what it prints."
_OTHER_PROMPT: Final = f"Which text does the command `{_COMMAND}` print? Run it."
SCRIPTS: Final = Scripts(
    calls={
        # Claude Code's: a tool that is not there at first is searched for, found and called.
        "Bash": [
            ("ToolSearch", {"query": "select:CronList"}),
            ("CronList", {}),
            ("Bash", {"command": _COMMAND, "description": "Print two words"}),
        ],
        "exec_command": [("exec_command", {"cmd": _COMMAND})],
        "bash": [("bash", {"command": _COMMAND})],
        "run_shell_command": [
            ("run_shell_command", {"command": _COMMAND, "is_background": False}),
        ],
        "two_words": [("two_words", {})],
    },
    answer=_ANSWER,
    plain=_PLAIN,
)


@dataclass(frozen=True, slots=True)
class Program:
    """How one program is started against a server.

    ``words`` follow the program's name. In them, in ``typed`` and in the values of ``env`` and
    ``files`` are filled in: {url}, {model}, {prompt}, and {work}, the folder where it starts and
    where ``files`` are.
    """

    name: str
    tool: str | None  # that the model calls; requests with it are the turns, others are beside them
    words: Sequence[str]
    env: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    typed: str = ""
    is_launched: bool = True
    """By ``llama-actors launch``, which sets the URL, the model and the key."""
    n_changed: int = 0
    """Tokens at the end of the first prompt that the program itself changes in the second turn."""
    prints: str = _ANSWER


_OPENCODE = {
    "permission": {"bash": "allow"},
    "autoupdate": False,
    "share": "disabled",
}

_LLM = {
    "model_id": "served",
    "model_name": "{model}",
    "api_base": "{url}/v1",
    "supports_tools": True,
}
_FUNCTION = f"def two_words() -> str:\n    return {_PRINTED!r}"

_CLAUDE = {
    "ANTHROPIC_BASE_URL": "{url}",
    "ANTHROPIC_AUTH_TOKEN": "none",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
}
"""As a user sets it by hand, so that it sends the biller's line that changes."""

PROGRAMS_LIST = (
    Program(
        name="claude",
        tool="Bash",
        words=("-p", "{prompt}", "--output-format", "json", "--allowedTools", "Bash"),
    ),
    Program(
        name="codex",
        tool="exec_command",
        words=(
            *("exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"),
            "{prompt}",
        ),
    ),
    Program(
        name="opencode",
        tool="bash",
        words=("run", "{prompt}"),
        env={"OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_MODELS_FETCH": "1"},
        files={"opencode.json": json.dumps(_OPENCODE)},
    ),
    Program(
        name="qwen",
        tool="run_shell_command",
        words=("-p", "{prompt}", "--approval-mode", "yolo"),
    ),
    Program(
        name="llm",
        tool="two_words",
        is_launched=False,
        words=("-m", "served", "--functions", _FUNCTION, "{prompt}"),
        env={"LLM_USER_PATH": "{work}"},
        files={"extra-openai-models.yaml": json.dumps([_LLM])},  # JSON is YAML
    ),
    # It has no tools. Its user has it run a command, and what that prints is added to the chat.
    Program(
        name="aider",
        tool=None,
        words=(
            *("--chat-mode", "ask", "--yes-always", "--no-git"),
            *("--no-check-update", "--analytics-disable", "--no-show-release-notes"),
            *("--no-show-model-warnings", "--no-fancy-input"),
        ),
        typed=f"What will you do?\n/run {_COMMAND}\nWhat does it print?\n",
        n_changed=15,  # "\n\nReply in English.\n", and the 3 tokens that end any prompt
        prints=_PLAIN,
    ),
)


@dataclass(frozen=True, slots=True)
class Session:
    """One run of a program: how it ended, and what came through in order."""

    ran: Ran
    exchanges: list[Exchange]

    def turns(self, tool: str | None) -> list[Exchange]:
        """The requests that have this tool; without one, all that ask the model."""
        asked = [e for e in self.exchanges if turns.path_of(e) in turns.PATHS]
        return [e for e in asked if tool is None or tool in turns.tool_names(e)]


def run_session(program: Program, place: Place, name: str, prompt: str = _PROMPT) -> Session:
    """One conversation of one program; its requests are kept beside its output."""
    home = place.folder / program.name
    work = home / "work"
    work.mkdir(parents=True, exist_ok=True)
    with recording(place.server.url) as recorder:
        values = {
            "{url}": recorder.url,
            "{model}": place.server.model,
            "{prompt}": prompt,
            "{work}": str(work),
        }

        def fill(text: str) -> str:
            for mark, value in values.items():
                text = text.replace(mark, value)
            return text

        for file, content in program.files.items():
            (work / file).write_text(fill(content), encoding="utf-8")
        variables = {name: fill(value) for name, value in program.env.items()}
        ran = run(
            [*_start(program, place.installed, values), *map(fill, program.words)],
            env=clean(home, **_path(program, place.installed), **variables),
            cwd=work,
            deadline_s=_DEADLINE_S,
            typed=fill(program.typed),
        )
    (home / f"{name}.output.txt").write_text(ran.output, encoding="utf-8")
    kept = b"".join(_kept(e) for e in recorder.exchanges)
    (home / f"{name}.requests.jsonl").write_bytes(kept)
    return Session(ran, recorder.exchanges)


def _start(program: Program, installed: Installed, values: dict[str, str]) -> list[str | Path]:
    """The words that start a program, before its own."""
    if not program.is_launched:
        return [_found(program.name, installed)]
    where = ("--url", values["{url}"], "--model", values["{model}"])
    return [sys.executable, "-m", "runtime", "launch", program.name, *where, "--"]


def _path(program: Program, installed: Installed) -> dict[str, str]:
    """Where ``launch`` finds it."""
    folder = _found(program.name, installed).parent
    return {"PATH": f"{SYSTEM_PATH}:{folder}"}


def _found(name: str, installed: Installed) -> Path:
    """The program of this name, wherever it was installed."""
    folders = (installed.node / "node_modules" / ".bin", installed.bin, installed.bin_aider)
    return next(folder / name for folder in folders if (folder / name).exists())


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
    n_calls = len(SCRIPTS.calls[program.tool]) if program.tool else 1
    if len(asked) != n_calls + 1:
        return f"{len(asked)} requests have the tool {program.tool}, expected {n_calls + 1}"
    if program.prints not in session.ran.output:
        return f"it did not print {program.prints!r}: {session.ran.detail}"
    *_, before, last = map(turns.history, asked)
    new = last[len(before) :]
    results = turns.tool_results(new) if program.tool else [json.dumps(new)]
    if not any(_PRINTED in result for result in results):
        return f"no result of a tool in the last turn has {_PRINTED}"
    found = (_check_turn(program, *pair) for pair in itertools.pairwise(asked))
    return next(filter(None, found), None)


def _check_turn(program: Program, before: Exchange, after: Exchange) -> str | None:
    """What is wrong with a turn and the next one; None when nothing is."""
    n = program.n_changed
    if not n and not turns.extends(turns.history(before), turns.history(after)):
        return "a later turn does not begin with the turn before"
    first, second = turns.usage(before), turns.usage(after)
    if first is None or second is None:
        return "an answer has no usage"
    owed = first.prompt - n if n else first.prompt + first.reply
    if second.cached < owed:
        return f"{second.cached} tokens of a later turn were warm, fewer than {owed}: {first}"
    return None


def _ai_sdk(place: Place, script: str) -> list[Outcome]:
    variables = {
        "CLIENTS_URL": place.server.url,
        "CLIENTS_MODEL": place.server.model,
        "CLIENTS_ANSWER": _ANSWER,
    }
    ran = run(
        ["node", place.installed.node / script],
        env=clean(place.folder, **variables),
        cwd=place.folder,
        deadline_s=_DEADLINE_S,
    )
    found = [
        Outcome(f"ai-sdk/{line[6:].partition(':')[0].strip()}", line.startswith("ok"), line)
        for line in ran.output.splitlines()
        if line.startswith(("ok ", "not ok "))
    ]
    return found or [Outcome(script, passed=False, detail=ran.detail)]


def _check_no_bill(session: Session) -> str | None:
    """What is wrong with a session that ``launch`` began: it has the biller's line."""
    billed = [e for e in session.exchanges if BILLING.encode() in e.body]
    return f"{len(billed)} requests have the line for the biller" if billed else None


def _check_second(first: Session, second: Session) -> str | None:
    """What is wrong with a second session of Claude Code in the same folder.

    Its first turn differs from the first session's in the biller's line, which comes before
    everything else, and in the user's words, which come near the end.
    """
    (before, *_), (after, *_) = first.turns("Bash"), second.turns("Bash")
    bills = [turn.json["system"][0]["text"] for turn in (before, after)]
    if bills[0] == bills[1] or not all(bill.startswith(BILLING) for bill in bills):
        return f"this version has no line for the biller that differs: {bills}"
    used = turns.usage(after)
    if used is None or used.cached <= 0.8 * used.prompt:
        return f"of the first turn of the second session too little was warm: {used}"
    return None


def _outcomes(place: Place) -> list[Outcome]:
    found = _ai_sdk(place, "ai_sdk.mjs")
    model = scripted_model(place.folder / "scripted.gguf", SCRIPTS)
    words = ("--n-ctx", str(N_CTX))
    with serve_gateway(place.folder, *words, model=f"scripted={model}") as server:
        here = Place(server, place.installed, place.folder)
        found += _ai_sdk(here, "ai_sdk_job.mjs")
        for program in PROGRAMS_LIST:
            first = run_session(program, here, "first")
            found.append(_outcome(program.name, check(program, first) or _check_no_bill(first)))
            if program.name == "claude":
                by_itself = replace(program, is_launched=False, env=_CLAUDE)
                first = run_session(by_itself, here, "by-itself")
                second = run_session(by_itself, here, "second", _OTHER_PROMPT)
                problem = check(program, second) or _check_second(first, second)
                found.append(_outcome("claude/second-session", problem))
    return found


def _outcome(name: str, problem: str | None) -> Outcome:
    return Outcome(name, passed=problem is None, detail=problem or "")


PROGRAMS = Suite(
    name="programs",
    about="Claude Code, Codex, opencode, qwen-code, aider, llm and the AI SDK",
    floor=31,
    known=(),
    outcomes=_outcomes,
    needs_programs=True,
)
