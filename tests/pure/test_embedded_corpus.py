"""The training text of the embedded model keeps its laws, and the model file is what it claims."""

# ruff: noqa: SIM905 - word lists read better as text

from __future__ import annotations

import ast
import hashlib
import json
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest

import runtime.embedded
from actors.text.chat_request import chat_from
from actors.text.chat_template import ChatTemplate
from examples.train_demo_model import (
    calls,
    chat_template,
    corpus,
    grammar,
    plots,
    tales,
    talk,
    words,
)
from examples.train_demo_model.calls import (
    FIRST,
    HELD_TOWNS,
    SECOND,
    Stage,
    dialogues,
    examined,
    is_held_sum,
)
from examples.train_demo_model.chat_template import CHAT_TEMPLATE, TOOLS_AFTER, TOOLS_BEFORE
from examples.train_demo_model.corpus import documents
from examples.train_demo_model.grammar import expand
from examples.train_demo_model.tales import PLOTS, Tale, tale
from examples.train_demo_model.talk import ASSISTANT, END, SYSTEM, USER, chat, request
from runtime.embedded import prompts
from runtime.embedded.prompts import long_prompt

pytestmark = pytest.mark.pure

SEED = 1
NAMES = {*words.GIRLS, *words.BOYS, *words.PETS}
#: Words that answers use to make a whole sentence and that a story may express otherwise.
FRAME = set(
    """
    about afraid after an asked at away bad because believed birthday both bought broke
    called carried could crossed does fastest feast feel felt first found from gave give
    grew had heard hello help helped hid him honest in is it kept learn learned lie lonely
    lost lot mended met needed night nobody noise of only problem race rain rest sad said
    saw secret share shared storm that the them they time to told treasure truth wanted
    went were who with
    she he his her put was came a on way ate
    """.split()
)


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower().replace("'s", ""))


def tales_of(plot: grammar.Plot, count: int = 40) -> list[Tale]:
    return [tale(Random(f"{plot.__name__}/{n}"), plot=plot) for n in range(count)]


def test_the_corpus_the_packaged_model_learned_from_is_the_one_in_this_tree() -> None:
    digest = hashlib.sha256()
    for text in documents(SEED, 500):
        digest.update(text.encode())
    assert digest.hexdigest()[:16] == "4953b371bc4368f8"


@pytest.mark.parametrize(
    ("seed", "stage", "known"), [(SEED, FIRST, "ba43b6e6811a359d"), (2, SECOND, "618569424cebfb25")]
)
def test_the_talk_with_tools_the_packaged_model_learned_from_is_the_one_in_this_tree(
    seed: int, stage: Stage, known: str
) -> None:
    digest = hashlib.sha256("".join(dialogues(seed, 300, stage)).encode())
    assert digest.hexdigest()[:16] == known


def test_a_document_depends_on_seed_and_index_only() -> None:
    once = list(documents(7, 30))
    assert once[10:] == list(documents(7, 20, start=10))
    assert once != list(documents(8, 30))
    assert len(set(once)) > 25


def test_no_document_shows_the_seams_of_its_templates() -> None:
    for whole in documents(3, 800):
        text = re.sub(r"<\|\w+\|>", "", whole)
        seam = re.search(r"[\[\]{}|]|  |\s[.,!?]|\b[Aa] [aeiou](?!ni)|\bthe the\b|,,|\.\.", text)
        assert seam is None, text[max(0, seam.start() - 60) : seam.end() + 20]


def test_every_sentence_and_every_speech_begins_with_a_capital() -> None:
    for n in range(300):
        told = tale(Random(n))
        wrong = re.search(r'(?:^|[.!?] |\n)"?[a-z]|(?:, |: |[.!?] )"[a-z]', told.text)
        assert wrong is None, told.text[max(0, wrong.start() - 40) : wrong.end() + 40]


@pytest.mark.parametrize("plot", sorted(set(PLOTS), key=lambda p: p.__name__))
def test_every_answer_can_be_copied_from_its_story(plot: grammar.Plot) -> None:
    for told in tales_of(plot):
        assert len(told.asks) >= 4
        said = set(words_of(told.text))
        for question, answer in told.asks:
            missing = set(words_of(answer)) - said - FRAME
            assert not missing, (question, answer, missing, told.text)


def test_what_is_lost_is_what_is_found_where_it_lay() -> None:
    for told in tales_of(plots.lost, 120):
        asks = dict(told.asks)
        thing = re.fullmatch(r"\w+ lost an? (.+)\.", asks[f"What did {told.hero.name} lose?"])
        assert thing is not None
        name = thing[1].split()[-1]
        place = asks[f"Where was the {name}?"]
        spot = place.removeprefix(f"The {name} was ").removesuffix(".")
        assert f"{told.friend.name} looked {spot}" in told.text or f"searched {spot}" in told.text
        assert f"I lost my {thing[1]}" in told.text
        assert told.text.index("I lost my") < told.text.rindex(spot)
        if "wind carried it away" in asks[f"How was the {name} lost?"]:
            assert spot == "in a tall tree"


@pytest.mark.parametrize(
    ("pronoun", "others"), [("she", ("he", "him", "his")), ("he", ("she", "her", "hers"))]
)
def test_pronouns_agree_with_the_people_of_the_story(pronoun: str, others: tuple[str]) -> None:
    seen = 0
    for n in range(900):
        told = tale(Random(f"pronoun/{n}"))
        if told.hero.pronoun == told.friend.pronoun == pronoun:
            seen += 1
            assert not set(others) & set(words_of(told.text)), told.text
    assert seen > 100


def test_only_the_people_of_a_story_speak_in_it() -> None:
    for n in range(400):
        told = tale(Random(f"people/{n}"), plots=2)
        strangers = NAMES & set(re.findall(r"\b[A-Z][a-z]+\b", told.text))
        assert strangers <= {told.hero.name, told.friend.name}, told.text


def test_a_story_that_was_asked_for_is_about_what_was_asked() -> None:
    for n in range(300):
        wish, told = request(Random(n))
        for kind in (*words.CREATURES, *words.OTHERS, *words.ROYALS):
            if re.search(rf"about an? (\w+ )?{kind}\b(?! and)(?! in trouble)", wish):
                about_thing = re.search(rf"(lost|broken) {kind}\b", wish)
                assert about_thing or told.hero.kind == kind, (wish, told.hero)


def test_chats_alternate_and_close_every_turn() -> None:
    for n in range(400):
        text = chat(Random(n))
        turns = re.findall(r"(<\|\w+\|>)\n(.+?)<\|end\|>\n", text, re.DOTALL)
        assert "".join(f"{role}\n{said}{END}\n" for role, said in turns) == text
        roles = [role for role, _ in turns]
        roles = roles[1:] if roles[0] == SYSTEM else roles
        assert roles == [USER, ASSISTANT] * (len(roles) // 2)


def test_the_vocabulary_is_small_but_not_poor() -> None:
    known = {w for text in documents(5, 2500) for w in re.findall(r"\b[a-z]+\b", text)}
    assert 700 < len(known) < 1300


TURN = re.compile(r"(<\|\w+\|>)\n(.*?)<\|end\|>\n", re.DOTALL)
CALL = re.compile(r"<tool_call>\n(\{\"name\": \".+?)\n</tool_call>")
RESULT = re.compile(r"<tool_response>\n(.+?)\n</tool_response>")


def request_of(text: str) -> dict[str, Any]:
    """The request whose prompt ``text`` is, read from its turns."""
    request: dict[str, Any] = {"messages": [], "add_generation_prompt": False}
    for role, said in TURN.findall(text):
        message: dict[str, Any] = {"role": role[2:-2], "content": said}
        if role == SYSTEM and TOOLS_BEFORE in said:
            own, listed = said.removesuffix(TOOLS_AFTER).split(TOOLS_BEFORE)
            request["tools"] = [json.loads(line) for line in listed.strip().split("\n")]
            if not own:
                continue
            message["content"] = own.removesuffix("\n\n")
        if made := CALL.findall(said):
            functions = [json.loads(one) for one in made]
            message |= {"content": "", "tool_calls": [{"function": one} for one in functions]}
        if results := RESULT.findall(said):
            request["messages"] += [{"role": "tool", "content": one} for one in results]
        else:
            request["messages"].append(message)
    return request


def test_talk_with_tools_is_what_the_chat_template_renders() -> None:
    template = ChatTemplate(CHAT_TEMPLATE)
    for text in dialogues(4, 150):
        request = request_of(text)
        variables = chat_from(json.dumps(request)).variables()
        # A tool without a description gets an empty one, which the talk does not have.
        assert template.render({**variables, "tools": request.get("tools")}) == text


def test_a_chat_without_tools_is_rendered_as_it_was_trained() -> None:
    for n in range(100):
        text = chat(Random(n))
        chat_of = chat_from(json.dumps(request_of(text)))
        assert ChatTemplate(CHAT_TEMPLATE).render(chat_of.variables()) == text


def test_calls_copy_the_question_and_answers_the_results() -> None:
    called = 0
    for text in dialogues(5, 150):
        request = request_of(text)
        schemas = {
            one["function"]["name"]: one["function"]["parameters"]["properties"]
            for one in request.get("tools", [])
        }
        asked = ""
        for message, after in zip(request["messages"], request["messages"][1:], strict=False):
            if message["role"] == "user":
                asked = message["content"]
            for call in message.get("tool_calls", []):
                called += 1
                given = call["function"]["arguments"]
                assert set(given) == set(schemas[call["function"]["name"]])
                assert all(str(value) in asked for value in given.values()), (asked, given)
            if message["role"] == "tool" and after["role"] == "assistant":
                numbers = re.findall(r"-?\d+", message["content"])
                assert set(numbers) <= set(re.findall(r"-?\d+", after["content"]))
    assert called > 200


def test_no_talk_names_a_town_or_a_sum_that_is_held_out() -> None:
    for text in (*dialogues(SEED, 400), *dialogues(2, 400, SECOND)):
        assert not any(town in text for town in HELD_TOWNS)
        for one in CALL.findall(text):
            given = list(json.loads(one)["arguments"].values())
            assert len(given) == 1 or not is_held_sum(*given)
    for head, question in examined(60):
        given = list(json.loads(CALL.findall(question.calls[0])[0])["arguments"].values())
        assert given[0] in HELD_TOWNS or is_held_sum(*given)
        assert head.startswith(f"{SYSTEM}\n{TOOLS_BEFORE}")


@pytest.mark.parametrize("n_words", [40, 190, 770, 2310])
def test_a_long_prompt_has_about_the_words_asked_for_and_ends_a_sentence(n_words: int) -> None:
    for seed in range(5):
        text = long_prompt(n_words, seed)
        assert n_words - 30 < len(text.split()) <= n_words
        assert re.search(r'[.!?]"?$', text)
        assert text == long_prompt(n_words, seed)
    assert n_words < 150 or long_prompt(n_words, 1) != long_prompt(n_words, 2)


def test_a_prompt_longer_than_the_book_is_refused() -> None:
    with pytest.raises(ValueError, match="the book has"):
        long_prompt(100_000, 1)


def test_templates_choose_fill_and_mend_articles() -> None:
    drawn = {expand("a [red|odd|] {n}, {n}.", Random(s), {"n": "[owl|cat]"}) for s in range(200)}
    assert {"A red owl, cat.", "An odd cat, owl.", "An owl, owl.", "A cat, cat."} <= drawn
    assert all(re.fullmatch(r"An? (red |odd )?(owl|cat), (owl|cat)\.", text) for text in drawn)


def test_the_corpus_needs_only_the_standard_library() -> None:
    modules = (calls, chat_template, corpus, grammar, plots, tales, talk, words)
    for module in (runtime.embedded, prompts, *modules):
        assert module.__file__ is not None
        tree = ast.parse(Path(module.__file__).read_text())
        roots = {
            name.split(".")[0]
            for node in ast.walk(tree)
            for name in (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        assert not roots & {"torch", "numpy", "tokenizers", "gguf"}, module.__name__


def test_the_packaged_model_is_a_gguf_of_at_most_eight_megabytes() -> None:
    file = runtime.embedded.path()
    assert runtime.embedded.EMBEDDED_MODEL_ID == "demo"
    assert 1_000_000 < file.stat().st_size <= 8_000_000
    with file.open("rb") as opened:
        assert opened.read(4) == b"GGUF"
