"""Why a request could not use all of what an earlier one has left: two of them, part by part.

Of a request only digests are kept: of its model, of what else changes the rendered prompt, of each
tool, each block of its system text, and each message. Comparing two of them shows which kind of
part differs first, exactly and in microseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, Literal

from runtime.gateway.wire.bodies import encode
from runtime.gateway.wire.wanted import Wanted

DIGEST_BYTES: Final = 16
RENDERED: Final = (
    "documents", "chat_template_kwargs", "enable_thinking", "reasoning_effort",
    "continue_final_message",
)  # fmt: skip
"""Options of a chat that its template reads, beside messages and tools."""
_SYSTEM: Final = ("system", "developer")
Kind = Literal["model", "tools", "system", "settings", "messages"]


@dataclass(frozen=True, slots=True)
class Parts:
    """Digests of the parts of one request. Texts of several are joined: 16 bytes each."""

    model: bytes
    settings: tuple[tuple[str, bytes], ...]
    """By name, sorted."""
    tools: bytes
    system: bytes
    """Of the blocks of the system messages at the beginning."""
    messages: bytes
    """Of the others."""
    n_tokens: int | None = None
    """Of the rendered prompt; None while that is not known."""

    @property
    def n_bytes(self) -> int:
        return sum(map(len, (self.model, self.tools, self.system, self.messages)))


@dataclass(frozen=True, slots=True)
class Change:
    """The first kind of part in which a request does not continue an earlier one."""

    kind: Kind
    names: tuple[str, ...] = ()
    """Of the settings that differ."""
    at: int | None = None
    """Number of the first tool, block or message that differs."""


def parts_of(
    model: str,
    messages: Sequence[Any],
    tools: Sequence[Any] = (),
    settings: Mapping[str, object] | None = None,
) -> Parts:
    """The digests of a request in the runtime's form."""
    n_lead = next((n for n, one in enumerate(messages) if not _is_system(one)), len(messages))
    blocks = [block for one in messages[:n_lead] for block in _blocks(one)]
    return Parts(
        model=_digest(model),
        settings=tuple(sorted((name, _digest(one)) for name, one in (settings or {}).items())),
        tools=_joined(tools),
        system=_joined(blocks),
        messages=_joined(messages[n_lead:]),
    )


def parts_of_chat(wanted: Wanted, model: str) -> Parts:
    """The digests of a chat, with the settings that its template reads."""
    options = wanted.options
    settings = {name: options[name] for name in RENDERED if name in options}
    return parts_of(model, wanted.inputs[0], options.get("tools") or (), settings)


def _is_system(message: Any) -> bool:
    return isinstance(message, Mapping) and message.get("role") in _SYSTEM


def _blocks(message: Mapping[str, Any]) -> list[Any]:
    content = message.get("content")
    return content if isinstance(content, list) else [content]


def _digest(value: object) -> bytes:
    return blake2b(encode(value), digest_size=DIGEST_BYTES).digest()


def _joined(values: Sequence[object]) -> bytes:
    return b"".join(map(_digest, values))


def compare(earlier: Parts, later: Parts) -> Change | None:
    """Where ``later`` stops being ``earlier`` with more messages; None: it never does.

    In the order in which kinds are looked at: model, tools, system, settings, messages.
    """
    if earlier.model != later.model:
        return Change("model")
    if earlier.tools != later.tools:
        return Change("tools", at=_first(earlier.tools, later.tools))
    if earlier.system != later.system:
        return Change("system", at=_first(earlier.system, later.system))
    before, now = dict(earlier.settings), dict(later.settings)
    names = {name for name in before | now if before.get(name) != now.get(name)}
    if names:
        return Change("settings", tuple(sorted(names)))
    if not later.messages.startswith(earlier.messages):
        return Change("messages", at=_first(earlier.messages, later.messages))
    return None


def _first(one: bytes, other: bytes) -> int:
    """The number of the first digest that differs, or that only one of them has."""
    n = min(len(one), len(other)) // DIGEST_BYTES
    cuts = (slice(at * DIGEST_BYTES, (at + 1) * DIGEST_BYTES) for at in range(n))
    return next((at for at, cut in enumerate(cuts) if one[cut] != other[cut]), n)
