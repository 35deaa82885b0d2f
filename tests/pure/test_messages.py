"""The protocol: frozen, small, and the same after a trip through the transport's codec."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import re
from pathlib import Path

import pytest

from actors import messages
from cache.keys import BLOCK_TOKENS, KEY_BYTES
from cache.rows import RowIdentity, SaveReason
from native.params import ModelParams, SamplingParams
from supervision import Address
from supervision.codec import ValueCodec

pytestmark = pytest.mark.pure

LIMIT = 64 * 1024
ALL = [
    kind
    for _, kind in inspect.getmembers(messages, inspect.isclass)
    if kind.__module__.startswith(messages.__name__) and dataclasses.is_dataclass(kind)
]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_message_is_a_frozen_slotted_dataclass_with_a_sentence(kind: type) -> None:
    params = kind.__dataclass_params__  # type: ignore[attr-defined]
    assert params.frozen
    assert "__slots__" in kind.__dict__
    assert kind.__doc__
    assert not kind.__doc__.startswith(f"{kind.__name__}(")


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_no_message_has_a_loose_field(kind: type) -> None:
    for field in dataclasses.fields(kind):
        assert not re.search(r"\b(Any|dict|list)\b", str(field.type)), field


def biggest() -> list[object]:
    """Each message that can grow, as big as the actors make it."""
    from actors.engine.lifecycle import HELD_TOKENS_LIMIT
    from actors.engine.reply_replay import MAX_CANDIDATES
    from actors.kv.store import ROWS_PER_MESSAGE as WANTED
    from actors.messages.payload import INLINE_LIMIT_BYTES
    from actors.messages.speculation import CANDIDATES_LIMIT
    from actors.model.embedding_service import MAX_INPUTS
    from actors.model.text_service import PAGE_BYTES, PAGE_CHARS, PAGE_TOKENS
    from actors.storage.tier_worker import ROWS_PER_MESSAGE as FOUND
    from actors.storage.tier_worker import batches
    from actors.text.reply_events import PAGE_BYTES as SPAN_BYTES
    from actors.text.reply_events import PAGE_TOKENS as SPAN_TOKENS
    from cache.text_marks import CANDIDATE, MAX_PACKED

    key, tokens = b"k" * KEY_BYTES, b"t" * 4 * BLOCK_TOKENS
    identity = RowIdentity(key, key, key, 1 << 20, tokens)
    row = messages.RowWanted.of(identity, 1 << 30)
    stored = messages.StoredRow.of(identity, 1 << 30, 1 << 40)
    marked = dataclasses.replace(stored, marks=b"m" * MAX_PACKED)
    thinking, ref = messages.TextKind.THINKING, "r" * 16
    span, tail = b"s" * SPAN_BYTES, b"t" * 4 * SPAN_TOKENS
    return [
        messages.SpanEnded(
            ref, 1 << 20, thinking, 1 << 20, span, tail, 99, 99, b"h" * 32, last=True
        ),
        messages.Tokenized(ref, b"t" * 4 * PAGE_TOKENS, last=False),
        messages.Detokenized(ref, b"t" * PAGE_BYTES, last=False),
        messages.ChatTemplateApplied(
            ref, "🦉" * PAGE_CHARS, b"t" * 4 * (PAGE_TOKENS // 2), last=False
        ),
        messages.ApplyChatTemplate(ref, b"p" * INLINE_LIMIT_BYTES),
        messages.NoteReply(key[:16], 1 << 30, 1 << 30, key, 1 << 30, b"t" * 4 * (BLOCK_TOKENS + 2)),
        messages.ResolveText(ref, "holder", key, b"c" * CANDIDATE.size * MAX_CANDIDATES),
        *(
            messages.RowsFound("ram", rows, last)
            for rows, last in batches(marked if at % 2 else stored for at in range(2 * FOUND))
        ),
        messages.Complete(
            "r" * 16, "m", messages.TextPrompt(b"p" * INLINE_LIMIT_BYTES), stop=("x" * 100,) * 8
        ),
        messages.Verify("r" * 16, "m", b"p" * INLINE_LIMIT_BYTES, b"c" * 4 * CANDIDATES_LIMIT),
        messages.Rerank(ref, b"p" * INLINE_LIMIT_BYTES),
        messages.Reranked(ref, b"s" * 4 * MAX_INPUTS, 1 << 30),
        messages.Complete(ref, "m", messages.InfillPrompt(b"p" * INLINE_LIMIT_BYTES)),
        messages.LookupPrefix("r" * 16, "holder", key, b"p" * INLINE_LIMIT_BYTES),
        messages.ReserveRows("r" * 16, "holder", key, SaveReason.COLD, (row,) * WANTED),
        messages.RowsReserved("r" * 16, 1, ((key, 1 << 40),) * WANTED, ()),
        messages.RowsWritten("holder", (key,) * WANTED, ()),
        messages.RowsFound("ram", (stored,) * FOUND, last=False),
        messages.TokensDelivered("r" * 16, 0, b"t" * 4 * HELD_TOKENS_LIMIT, "é" * 8192),
        messages.LoadModel("r" * 16, "m", "/" * 4096, params=ModelParams()),
        messages.LoadModel(
            ref,
            "m",
            "/" * 4096,
            params=ModelParams(
                override_kv=[f"{at:02}{'k' * 125}=str:{'v' * 127}" for at in range(64)],  # type: ignore[arg-type]
                override_tensors=[f"{'p' * 250}=CUDA{at}" for at in range(64)],  # type: ignore[arg-type]
            ),
        ),
        messages.Run(
            "id", Address("127.0.0.1", 1), messages.Complete("r", "m", messages.TextPrompt("text"))
        ),
    ]


def test_a_row_in_a_message_is_the_row_that_it_was_made_of() -> None:
    """Its fields are spelled out there, see ``RowWanted``."""
    row = RowIdentity.after(b"p" * KEY_BYTES, b"r" * KEY_BYTES, 128, b"t" * 4 * BLOCK_TOKENS)
    assert messages.RowWanted.of(row, 1000, b"marks").identity(row.root) == row
    stored = messages.StoredRow.of(row, 1000, None, 1.5, marks=b"marks", ends=b"ends")
    assert stored.identity == row
    assert (stored.row_bytes, stored.location, stored.age_s) == (1000, None, 1.5)
    assert (stored.marks, stored.ends) == (b"marks", b"ends")
    assert (row.n_tokens, row.end) == (BLOCK_TOKENS, 128 + BLOCK_TOKENS)


@pytest.mark.parametrize("message", biggest(), ids=lambda message: type(message).__name__)
def test_no_message_outgrows_the_limit(message: object) -> None:
    assert len(ValueCodec(("actors", "cache", "native")).pack(message)) < LIMIT


@pytest.mark.parametrize("message", biggest(), ids=lambda message: type(message).__name__)
def test_messages_survive_the_codec_of_the_transport(message: object) -> None:
    codec = ValueCodec(("actors", "cache", "native"))
    assert codec.unpack(codec.pack(message)) == message


def test_names_do_not_clash_with_those_of_supervision() -> None:
    import supervision.messages as theirs

    names = {kind.__name__ for kind in ALL}
    assert not names & {
        name for name, kind in inspect.getmembers(theirs, inspect.isclass)
        if kind.__module__.startswith(theirs.__name__)
    }  # fmt: skip


def test_names_follow_the_grammar() -> None:
    for kind in ALL:
        assert not re.search(r"(Msg|Data|Info|Manager)$", kind.__name__), kind


def test_enums_of_the_protocol_are_texts_a_person_can_read() -> None:
    for _, kind in inspect.getmembers(messages, inspect.isclass):
        if issubclass(kind, enum.Enum) and kind.__module__.startswith(messages.__name__):
            assert all(re.fullmatch(r"[a-z_]+", member.value) for member in kind)


def test_a_sampling_default_is_greedy() -> None:
    assert SamplingParams() == messages.Complete("r", "m", messages.TextPrompt("p")).sampling


def test_the_source_of_messages_imports_no_actor_library() -> None:
    for path in Path(messages.__file__).parent.glob("*.py"):
        assert "thespian" not in path.read_text(encoding="utf-8")
