"""``chat``: chat with a model, at a terminal or in a pipe (one line is one turn).

Answers go to standard output, everything else to standard error. Ctrl-C stops an answer and not the
program. In a pipe a failed turn makes the exit code 1, and the next line is still read.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from runtime import errors
from runtime.cli.chat_session import ChatSession
from runtime.cli.options import (
    USER_PATH,
    attached,
    model_argument,
    node_command,
    node_options,
    template_given,
    template_option,
)
from runtime.cli.progress import ProgressLine
from runtime.cli.request_options import options_from, request_options
from runtime.client.results import Completion, CompletionEvent, PrefillEvent, SpanEvent, TokenEvent
from runtime.client.stream import CompletionStream
from runtime.settings.user_paths import expanded

if TYPE_CHECKING:
    from runtime.remote.stream import RemoteStream

PROMPT: Final = "> "
_CUT: Final = {"max_tokens": ", cut at --max-tokens", "context": ", cut: the context is full"}
HELP: Final = """\
/reset        begin again
/system TEXT  set the system message, and begin again; without TEXT: show it
/stats        tokens so far, and how many were warm
/save FILE    write the conversation as JSON
/load FILE    continue a saved one
/exit         leave (or Ctrl-D)
"""


@node_command(epilog="\b\nIn the chat:\n" + HELP)
@node_options
@model_argument
@click.option("--system", metavar="TEXT", help="the system message")
@click.option("--load", type=USER_PATH, metavar="FILE", help="continue a saved conversation")
@template_option()
@request_options
def command(**given: Any) -> int:
    """Read turns until the end of the input."""
    options = options_from(given)
    template = template_given(given["chat_template_file"], "chat")
    if template is not None:
        options["chat_template"] = template
    with attached(given) as node:
        return converse(ChatSession(node, given["model"], options, given["system"]), given["load"])


def converse(session: ChatSession, load: Path | None = None) -> int:
    """Read turns until the end of the input, after a saved conversation; returns the exit code."""
    loop = _Loop(session)
    try:
        if load is not None and not loop.obey(f"/load {load}"):
            return 2
        for line in _lines():
            if not loop.take(line):
                break
    finally:
        session.end()
    return 1 if loop.has_failed and not _is_at_terminal() else 0


class _Loop:
    """Shows the answers of the session, and runs the commands of the user."""

    def __init__(self, session: ChatSession) -> None:
        self._session = session
        self.has_failed = False
        self._commands: dict[str, Callable[[str], None]] = {
            "/reset": lambda _: session.reset(),
            "/system": self._system,
            "/stats": lambda _: _note(session.stats()),
            "/save": lambda path: session.save(_path(path)),
            "/load": lambda path: session.load(_path(path)),
            "/help": lambda _: _note(HELP.rstrip()),
        }

    def take(self, line: str) -> bool:
        """Handle one line of input; returns False at the end of the chat."""
        text = line.strip()
        if text in ("/exit", "/quit"):
            return False
        if text.startswith("/"):
            self.obey(text)
        elif text:
            self._turn(text)
        return True

    def obey(self, text: str) -> bool:
        """Run a command; returns whether it succeeded."""
        name, _, rest = text.partition(" ")
        command = self._commands.get(name)
        try:
            if command is None:
                raise errors.InvalidRequest(f"there is no {name}; /help shows what there is")
            command(rest.strip())
        except (errors.InvalidRequest, errors.ConfigError, OSError, ValueError) as error:
            self._report(error)
            return False
        return True

    def _system(self, text: str) -> None:
        if text:
            self._session.system = text
            self._session.reset()
        else:
            _note(self._session.system or "there is no system message")

    def _turn(self, text: str) -> None:
        try:
            with self._session.ask(text) as events, _stopped_by_ctrl_c(events):
                done = _shown(events)
        except (
            errors.RequestError,
            errors.ModelDown,
            errors.NoReply,
            errors.GatewayError,
        ) as error:
            self._session.take_back()
            self._report(error)
            return
        self._session.answered(done)
        usage = done.usage
        _dim(
            f"[{usage.cached_tokens} of {usage.prompt_tokens} tokens warm, "
            f"{usage.completion_tokens} generated, {done.timings.tokens_per_second:.0f}/s"
            f"{', stopped' if done.finish_reason == 'cancelled' else ''}"
            f"{_CUT.get(done.limit or '', '')}]"
        )

    def _report(self, error: Exception) -> None:
        self.has_failed = True
        _note(f"error: {error}")


def _shown(events: CompletionStream | RemoteStream) -> Completion:
    """Print the answer as it comes."""
    with ProgressLine("reading") as line:
        for event in events:
            match event:
                case PrefillEvent(done, total, _):
                    line.share(done / max(1, total))
                case TokenEvent(text=text, kind="text"):
                    line.clear()
                    sys.stdout.write(text)
                    sys.stdout.flush()
                case TokenEvent(text=text, kind="thinking"):
                    line.clear()
                    _dim(text, end="")
                case SpanEvent(kind="thinking"):
                    _dim("")
                case SpanEvent(content=content):
                    sys.stdout.write(content.decode("utf-8", "replace"))
                case CompletionEvent(completion):
                    line.clear()
                    sys.stdout.write("\n")
                    sys.stdout.flush()
                    return completion
                case _:
                    pass  # part of a tool call, which is shown when it is complete
    raise errors.NoReply("the answer ended without a result")


@contextlib.contextmanager
def _stopped_by_ctrl_c(events: CompletionStream | RemoteStream) -> Iterator[None]:
    """The first Ctrl-C cancels the answer, on a thread of its own; a second one interrupts."""

    def stop(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Thread(target=events.cancel, name="cancel").start()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _lines() -> Iterator[str]:
    """Lines of input, with a prompt and editing at a terminal."""
    if not _is_at_terminal():
        for line in sys.stdin:  # noqa: UP028 - `yield from` would close it
            yield line
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - makes input() edit lines and remember them
    while True:
        try:
            yield input(PROMPT)
        except KeyboardInterrupt:
            _note("\n/exit or Ctrl-D leaves")
        except EOFError:
            _note("")
            return


def _is_at_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _note(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _dim(text: str, end: str = "\n") -> None:
    """A remark at a terminal; nothing in a pipe."""
    if sys.stderr.isatty():
        sys.stderr.write(click.style(text, dim=True) + end)
        sys.stderr.flush()


def _path(text: str) -> Path:
    if not text:
        raise errors.InvalidRequest("name a file")
    return expanded(text, "the file")
