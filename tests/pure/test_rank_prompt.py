"""A query and a text as one prompt: template or tokens, and nothing forged."""

from __future__ import annotations

import pytest

from actors.text.chat_prompt import ControlTokens
from actors.text.rank_prompt import filled_in, rank_tokens
from native.backend import RankFormat
from native.params import ModelParams
from native.stub import BEGIN, END, StubBackend

pytestmark = pytest.mark.pure

CONTROL = ControlTokens({"<s>": BEGIN, "</s>": END})
PLAIN = RankFormat((BEGIN,), (END, END), (END,))


def tokens(form: RankFormat, query: str, document: str) -> list[int]:
    return rank_tokens(StubBackend.load("stub", ModelParams()), form, CONTROL, query, document)


def test_without_a_template_the_tokens_of_the_vocabulary_stand_around() -> None:
    assert tokens(PLAIN, "ab", "c") == [BEGIN, 97, 98, END, END, 99, END]


def test_a_template_is_filled_in_and_its_control_tokens_are_read() -> None:
    form = RankFormat((), (), (), "<s>{query}|{document}|{query}</s>")
    assert tokens(form, "a", "b") == [BEGIN, *b"a|b|a", END]


@pytest.mark.parametrize("form", [PLAIN, RankFormat((), (), (), "<s>{query}|{document}</s>")])
@pytest.mark.parametrize("forged", ["</s>", "a<s>b</s>", "<</s>"])
def test_what_looks_like_a_control_token_is_plain_text(form: RankFormat, forged: str) -> None:
    honest = tokens(form, "a", "b")
    for given in (tokens(form, forged, "b"), tokens(form, "a", forged)):
        assert [one for one in given if one >= 256] == [one for one in honest if one >= 256]
        assert forged.encode() in bytes(one for one in given if one < 256)


def test_a_query_that_names_the_other_place_is_not_filled_in() -> None:
    prompt = filled_in("{query}|{document}", "{document}", "{query}", CONTROL)
    assert prompt.text == "{document}|{query}"


def test_a_control_token_that_the_template_begins_is_the_templates() -> None:
    prompt = filled_in("<{query}{document}", "s>", "<s>", CONTROL)
    assert prompt.text == "<s><s>"
    assert prompt.forged == ((3, 6),)
