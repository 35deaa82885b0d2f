"""``chat``: talk to a model, at a terminal or in a pipe (one line is one turn).

Answers go to standard output, everything else to standard error. Ctrl-C stops an answer and not the
program. In a pipe a failed turn makes the exit code 1, and the next line is read all the same.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from runtime import errors
from runtime.cli.chat_session import ChatSession
from runtime.cli.node_flags import add_port, attached
from runtime.cli.progress import ProgressLine
from runtime.cli.request_flags import add_request_flags, options_from
from runtime.client.results import Completion, CompletionEvent, PrefillEvent, SpanEvent, TokenEvent
from runtime.client.stream import CompletionStream
from runtime.settings.template_settings import add_template_flag, template_given
from runtime.settings.user_paths import expanded, path_flag

PROMPT: Final = "> "
HELP: Final = """\
/reset        begin anew
/system TEXT  set the system message, and begin anew; without TEXT: show it
/stats        tokens so far, and how many were warm
/save FILE    write the conversation as JSON
/load FILE    go on with a saved one
/exit         leave (or Ctrl-D)
"""


def add_chat(chat: argparse.ArgumentParser) -> None:
    """Add the arguments of ``chat``."""
    chat.epilog = "In the chat:\n" + HELP
    chat.formatter_class = argparse.RawDescriptionHelpFormatter
    add_port(chat)
    chat.add_argument("model", metavar="MODEL")
    chat.add_argument("--system", metavar="TEXT", help="the system message")
    chat.add_argument(
        "--load", type=path_flag, metavar="FILE", help="go on with a saved conversation"
    )
    add_template_flag(chat)
    add_request_flags(chat)
    chat.set_defaults(run=chat_command)


def chat_command(arguments: argparse.Namespace) -> int:
    """Read turns until the end of the input; the exit code."""
    options = options_from(arguments)
    template = template_given(arguments, "chat")
    if template is not None:
        options["chat_template"] = template
    with attached(arguments) as node:
        session = ChatSession(node, arguments.model, options, arguments.system)
        talk = _Talk(session)
        try:
            if arguments.load is not None and not talk.obey(f"/load {arguments.load}"):
                return 2
            for line in _lines():
                if not talk.take(line):
                    break
        finally:
            session.end()
    return 1 if talk.has_failed and not _is_at_terminal() else 0


class _Talk:
    """Shows what the session hears, and does what the user wants."""

    def __init__(self, session: ChatSession) -> None:
        self._session = session
        self.has_failed = False
        self._commands: dict[str, Callable[[str], None]] = {
            "/reset": lambda _: session.reset(),
            "/system": self._system,
            "/stats": lambda _: _say(session.stats()),
            "/save": lambda path: session.save(_path(path)),
            "/load": lambda path: session.load(_path(path)),
            "/help": lambda _: _say(HELP.rstrip()),
        }

    def take(self, line: str) -> bool:
        """One line of input; False: the user wants to leave."""
        text = line.strip()
        if text in ("/exit", "/quit"):
            return False
        if text.startswith("/"):
            self.obey(text)
        elif text:
            self._turn(text)
        return True

    def obey(self, text: str) -> bool:
        """A command; whether it was done."""
        name, _, rest = text.partition(" ")
        command = self._commands.get(name)
        try:
            if command is None:
                raise errors.InvalidRequest(f"there is no {name}; /help shows what there is")
            command(rest.strip())
        except (errors.InvalidRequest, errors.ConfigError, OSError, ValueError) as error:
            self._complain(error)
            return False
        return True

    def _system(self, text: str) -> None:
        if text:
            self._session.system = text
            self._session.reset()
        else:
            _say(self._session.system or "there is no system message")

    def _turn(self, text: str) -> None:
        try:
            with self._session.say(text) as events, _stopped_by_ctrl_c(events):
                done = _shown(events)
        except (errors.RequestError, errors.ModelDown, errors.NoReply) as error:
            self._session.failed()
            self._complain(error)
            return
        self._session.heard(done)
        usage = done.usage
        _dim(
            f"[{usage.cached_tokens} of {usage.prompt_tokens} tokens warm, "
            f"{usage.completion_tokens} said, {done.timings.tokens_per_second:.0f}/s"
            f"{', stopped' if done.finish_reason == 'cancelled' else ''}"
            f"{', cut at --max-tokens' if done.finish_reason == 'length' else ''}]"
        )

    def _complain(self, error: Exception) -> None:
        self.has_failed = True
        _say(f"error: {error}")


def _shown(events: CompletionStream) -> Completion:
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
                    pass  # a word in progress of a tool call, which is shown when it is whole
    raise errors.NoReply("the answer ended without a result")


@contextlib.contextmanager
def _stopped_by_ctrl_c(events: CompletionStream) -> Iterator[None]:
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
            _say("\n/exit or Ctrl-D leaves")
        except EOFError:
            _say("")
            return


def _is_at_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _dim(text: str, end: str = "\n") -> None:
    """A remark for people; nothing in a pipe."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\x1b[2m{text}\x1b[0m{end}")
        sys.stderr.flush()


def _path(text: str) -> Path:
    if not text:
        raise errors.InvalidRequest("name a file")
    return expanded(text, "the file")
