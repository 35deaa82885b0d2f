"""Where the parts of a prompt end, and which of them differs from an earlier conversation."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.messages.completion import Divergence
from actors.text.chat_request import chat_from
from actors.text.chat_template import ChatTemplate
from actors.text.divergence import Earlier, RecentConversations, divergence, part_at
from actors.text.part_places import Pieces, Places, digests_of, token_ends
from actors.text.parts import Part, Parts, parts_of
from cache import tokens as token_bytes
from native.params import ModelParams
from native.stub import StubBackend

pytestmark = pytest.mark.pure

SOURCE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<{{ m.role }}>"
    "{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
BACKEND = StubBackend.load("stub", ModelParams())
PIECES = Pieces(BACKEND)
TALK = ["Be brief.", "Why?", "Hence.", "How?"]
NO_INPUT = {"name": "", "description": "d", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": {**NO_INPUT, "name": name}} for name in ("one", "two")]


def said(texts: list[str]) -> list[dict[str, str]]:
    roles = ["system", *["user", "assistant"] * len(texts)]
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


class Model:
    """The conversations of one model, by a tokenizer with a token for each byte."""

    def __init__(self, **limits: int) -> None:
        self.recent = RecentConversations(**limits)
        self.template = ChatTemplate(SOURCE)

    def place(
        self, texts: list[str], salt: bytes = b"", **more: Any
    ) -> tuple[Places, Earlier | None, str]:
        chat = chat_from(json.dumps({"messages": said(texts), **more}))
        text, marks = self.template.render_marked(chat.variables())
        ids = BACKEND.tokenize(text, add_special=False)
        parts = parts_of(chat, text, marks.found)
        packed = token_bytes.pack(ids)
        places, earlier = self.recent.place(parts, text, ids, packed, PIECES, salt)
        assert list(places.tokens) == token_ends(
            text, [one.end for one in parts.found], ids, PIECES
        )
        assert places.tokens[-1] == len(ids)
        return places, earlier, text

    def diverged(
        self, texts: list[str], miss_at: int | None = None, **more: Any
    ) -> Divergence | None:
        places, earlier, text = self.place(texts, **more)
        ids = BACKEND.tokenize(text, add_special=False)
        number = None if miss_at is None else part_at(places, miss_at)
        start = 0 if number is None else places.start_of(number) or 0
        pieces = [PIECES[token] for token in ids[start : miss_at or 0]]
        return divergence(places, text, earlier, pieces, miss_at)


def test_the_first_conversation_differs_from_nothing() -> None:
    assert Model().diverged(TALK) is None


def test_a_next_turn_and_a_repeat_differ_from_nothing() -> None:
    model = Model()
    model.diverged(TALK)
    assert model.diverged([*TALK, "So.", "And?"]) is None
    assert model.diverged([*TALK, "So.", "And?"]) is None
    assert len(model.recent) == 1


def test_an_earlier_turn_that_is_asked_again_differs_from_nothing() -> None:
    model = Model()
    model.diverged(TALK[:2])
    model.diverged(TALK)
    assert model.diverged(TALK[:2]) is None


def test_conversations_are_compared_with_those_of_the_same_salt_only() -> None:
    model, edited = Model(), [*TALK[:3], "Where?"]
    model.diverged(TALK, salt=b"a")
    for salt in (b"b", b""):
        assert model.place(edited, salt)[1] is None
        assert model.diverged(edited, salt=salt) is None
    found = model.diverged(edited, salt=b"a")
    assert found is not None
    assert found.part == "messages[3]"
    assert len(model.recent) == 4
    model.diverged([*TALK, "So.", "And?"], salt=b"b")  # continues nothing of the other salt
    assert model.place(TALK, b"a")[1] is not None


@pytest.mark.parametrize("changed", range(4))
def test_a_changed_message_is_named_with_what_it_costs(changed: int) -> None:
    model = Model()
    model.diverged(TALK)
    texts = [*TALK[:changed], "No, not so.", *TALK[changed + 1 :]]
    found = model.diverged(texts)
    assert found is not None
    assert (found.part, found.at_char) == (f"messages[{changed}]", None)
    before = sum(len(f"<{m['role']}>{m['content']}</>") for m in said(TALK)[:changed])
    assert (found.prompt_char, found.prompt_token) == (before, before)
    whole = sum(len(f"<{m['role']}>{m['content']}</>") for m in said(TALK)) + len("<assistant>")
    assert found.lost_tokens == found.lost_chars == whole - before


def test_the_token_at_which_stored_rows_end_shows_the_character() -> None:
    model = Model()
    model.diverged(TALK)
    at = len("<system>Be brief.</><user>Wh")
    found = model.diverged(["Be brief.", "Who?", *TALK[2:]], miss_at=at)
    assert found is not None
    assert (found.part, found.at_char) == ("messages[1].content", 2)
    assert (found.prompt_char, found.prompt_token) == (at, at)


def test_a_token_in_another_part_does_not_move_the_place() -> None:
    model = Model()
    model.diverged(TALK)
    found = model.diverged([*TALK[:3], "Who?"], miss_at=3)
    assert found is not None
    assert (found.part, found.at_char) == ("messages[3]", None)


def test_characters_of_several_bytes_are_counted_once() -> None:
    model = Model()
    model.diverged(["Sois bref, héron.", "Où?"])
    at = len("<system>Sois bref, héron.</><user>O".encode())
    found = model.diverged(["Sois bref, héron.", "Oú?"], miss_at=at + 1)  # in the middle of one
    assert found is not None
    assert (found.part, found.at_char) == ("messages[1].content", 1)


def test_a_changed_tool_is_named() -> None:
    model = Model()
    model.diverged(TALK, tools=TOOLS)
    other = [TOOLS[0], {"type": "function", "function": {**NO_INPUT, "name": "tree"}}]
    at = json.dumps(other, ensure_ascii=False).index("tree") + 1
    found = model.diverged(TALK, miss_at=at, tools=other)
    assert found is not None
    assert (found.part, found.at_char) == ("tools[1]", 1)
    model.diverged(TALK, tools=TOOLS)
    found = model.diverged(TALK, tools=TOOLS[:1])
    assert found is not None
    assert found.part == "tools"


def test_a_reply_that_comes_back_changed_is_named_by_what_is_stored() -> None:
    """What was generated is not among the prompts that are remembered."""
    model = Model()
    places, _, _ = model.place(TALK)
    at = (places.start_of(4) or 0) + len("<assistant>S")
    found = model.diverged([*TALK, "So.", "And?"], miss_at=at)
    assert found is not None
    assert (found.part, found.at_char) == ("messages[4].content", 1)
    assert (found.lost_tokens, found.lost_chars) == (None, None)


def test_the_nearest_conversation_counts_and_not_the_latest() -> None:
    model = Model()
    model.diverged(TALK)
    model.diverged(["Be long.", "Why?"])
    found = model.diverged([*TALK[:3], "Who?"])
    assert found is not None
    assert found.part == "messages[3]"


def test_where_nothing_is_shared_the_first_part_differs() -> None:
    model = Model()
    model.diverged(TALK)
    found = model.diverged(["Be long."])
    assert found is not None
    assert (found.part, found.prompt_token) == ("messages[0]", 0)


def test_it_is_shown_as_a_sentence_and_as_json() -> None:
    found = Divergence("tools[1]", 4, 30, 9, 12, 40)
    assert str(found) == "tools[1] differs from character 4 on: 12 tokens were not warm"
    assert found.to_dict()["part"] == "tools[1]"
    assert set(found.to_dict()) == set(Divergence.__dataclass_fields__)
    assert str(Divergence("messages[2]", None, 30, None, None, None)) == "messages[2] differs"


def test_a_bounded_number_is_kept() -> None:
    model = Model(max_conversations=3)
    for number in range(9):
        model.diverged([str(number), "Why?"])
    assert len(model.recent) == 3
    model = Model(max_parts=20)
    for number in range(9):
        model.diverged([str(number), *["Why?"] * 6])
    assert len(model.recent) == 2
    model.diverged(["all", *["Why?"] * 100])
    assert len(model.recent) == 1


@given(
    talks=st.lists(
        st.lists(st.sampled_from(["a", "b", "éé", "<user>", "</><assistant>"]), min_size=1),
        min_size=1,
    )
)
def test_parts_in_common_are_those_with_the_same_text_before_their_ends(
    talks: list[list[str]],
) -> None:
    model = Model()
    kept: list[tuple[tuple[int, ...], str]] = []
    for texts in talks:
        places, earlier, text = model.place(texts)
        ends = [one.end for one in places.parts.found]
        best = 0
        for other_ends, other in kept:
            n_same = 0
            while (
                n_same < min(len(ends), len(other_ends))
                and ends[n_same] == other_ends[n_same]
                and text[: ends[n_same]] == other[: ends[n_same]]
            ):
                n_same += 1
            best = max(best, n_same)
        assert (earlier is None) == (not kept)
        if earlier is not None:
            # One that was continued is not kept beside the longer one.
            assert best - 1 <= earlier.n_parts <= best
        kept.append((tuple(ends), text))


def test_other_tokens_of_the_same_text_keep_what_is_known_of_them() -> None:
    parts = tuple(Part(f"messages[{n}]", n * 10, n * 10 + 10) for n in range(4))
    places = Places(Parts(parts, restarts=(1, 3)), (4, 8, 12, 16), digests_of(parts, "x" * 40), 16)
    old = token_bytes.pack(range(16))
    assert places.for_tokens(old, old) is places
    new = token_bytes.pack([*range(6), 99, 98, 97, *range(10, 16)])  # three in place of four
    moved = places.for_tokens(old, new)
    assert moved.tokens == (4, None, 11, 15)
    assert moved.restarts == (4, 11)
    assert places.restarts == (4, 12)


def test_a_text_whose_tokens_have_other_bytes_has_no_places() -> None:
    ids = BACKEND.tokenize("abcdef", add_special=False)
    assert token_ends("abXYdef", [1, 2, 3, 7], ids, PIECES) == [1, 2, None, None]


def test_comparing_long_conversations_takes_little_time() -> None:
    """With all that are remembered sharing their first hundred messages."""
    model = Model()
    start = [f"This is what was said as number {at}." for at in range(100)]
    for number in range(60):
        model.place([*start, f"At last {number}.", "Yes."])
    more = [*start, "At last, something new."]
    spent = []
    for _ in range(5):
        began = time.thread_time()
        model.place(more)
        spent.append(time.thread_time() - began)
    assert min(spent) < 0.05  # of which rendering is most
