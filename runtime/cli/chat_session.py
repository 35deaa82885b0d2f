"""A conversation with one model: its history, session and token counts. No terminal here."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime import errors
from runtime.client.results import Completion
from runtime.client.stream import CompletionStream

if TYPE_CHECKING:
    from runtime.node import Node
    from runtime.remote.node import RemoteNode
    from runtime.remote.stream import RemoteStream


@dataclass
class ChatSession:
    """Send a text with ``ask``; pass the outcome to ``answered`` or ``take_back``."""

    node: Node | RemoteNode
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    """All turns so far, without the system message."""
    turns: list[Completion] = field(default_factory=list)
    name: str = field(default_factory=lambda: f"chat-{uuid.uuid4().hex[:12]}")

    def ask(self, text: str) -> CompletionStream | RemoteStream:
        """The answer to ``text``; nothing is sent before its first step."""
        self.messages.append({"role": "user", "content": text})
        return self.node.stream_chat(
            self.model, self.conversation(), session=self.name, **self.options
        )

    def conversation(self) -> list[dict[str, Any]]:
        """All messages, as the template receives them."""
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*first, *self.messages]

    def answered(self, done: Completion) -> None:
        """Record a finished answer; an empty one is dropped together with its question."""
        if not done.text and not done.tool_calls:
            self.take_back()
            return
        self.turns.append(done)
        answer: dict[str, Any] = {"role": "assistant", "content": done.text}
        if done.thinking:
            answer["reasoning_content"] = done.thinking
        self.messages.append(answer)

    def take_back(self) -> None:
        """Remove the last question, which has no answer."""
        if self.messages and self.messages[-1]["role"] == "user":
            self.messages.pop()

    def reset(self) -> None:
        """Begin again, in a new session."""
        self.end()
        self.messages.clear()
        self.turns.clear()
        self.name = f"chat-{uuid.uuid4().hex[:12]}"

    def end(self) -> None:
        """End the session in the model, if it still exists."""
        with contextlib.suppress(errors.LlamaActorsError):
            self.node.end_session(self.model, self.name)

    def save(self, path: Path) -> None:
        """Write the messages as JSON; only its owner can read the file."""
        text = json.dumps({"messages": self.conversation()}, ensure_ascii=False, indent=2)
        path.touch(mode=0o600)
        path.write_text(text + "\n", encoding="utf-8")

    def load(self, path: Path) -> None:
        """Continue messages that ``save`` wrote; raises InvalidRequest for any other file."""
        plain = json.loads(path.read_text(encoding="utf-8"))
        messages = plain.get("messages") if isinstance(plain, dict) else plain
        if not isinstance(messages, list) or not all(_is_message(one) for one in messages):
            raise errors.InvalidRequest(f'{path} holds no list of {{"role": …, "content": …}}')
        self.reset()
        self.system = None
        if messages and messages[0]["role"] == "system":
            self.system = messages.pop(0)["content"]
        self.messages = messages

    def stats(self) -> str:
        """One line: turns, tokens, and how much of the prompts was warm."""
        prompt = sum(turn.usage.prompt_tokens for turn in self.turns)
        cached = sum(turn.usage.cached_tokens for turn in self.turns)
        generated = sum(turn.usage.completion_tokens for turn in self.turns)
        share = f", {100 * cached / prompt:.0f} % of them warm" if prompt else ""
        differs = self.turns[-1].cache.diverged if self.turns else None
        last = "" if differs is None else f"; in the last turn {differs}"
        return (
            f"{len(self.messages)} messages, {len(self.turns)} answers of {generated} tokens; "
            f"{prompt} prompt tokens{share}{last}; session {self.name}"
        )


def _is_message(one: object) -> bool:
    return (
        isinstance(one, dict)
        and isinstance(one.get("role"), str)
        and isinstance(one.get("content"), str)
    )
