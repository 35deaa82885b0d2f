"""What a whole node promises of any model: 17 cases, on the model that ``LLAMA_TEST_MODEL`` names.

Without it they run on the embedded model. ``make real`` runs them on a published one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from native.params import ModelParams
from runtime import Completion, ModelConfig, Node, errors
from runtime.client.cache.upkeep import is_flushed
from runtime.embedded import path as embedded_path
from runtime.embedded.prompts import long_prompt
from tests.support.runtime_nodes import LeakCheck, kill, pid_of, started
from tests.support.waiting import eventually

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]

REAL = os.environ.get("LLAMA_TEST_MODEL")
MODEL = Path(REAL or embedded_path()).absolute()
PARAMS = ModelParams(n_ctx=2048, n_seq_max=4, n_threads=2 if REAL else 1)
PROMPT = long_prompt(220, seed=3)
SAID = [
    {"role": "system", "content": "Answer as a heron would."},
    {"role": "user", "content": "Who are you?"},
]
YES_OR_NO = 'root ::= "yes" | "no"'


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node with the model as ``real``, shared by all cases."""
    with LeakCheck() as leaks, started(tmp_path_factory.mktemp("real")) as running:
        running.client.load("real", ModelConfig(str(MODEL), PARAMS))
        leaks.watch(running)
        yield running
        leaks.watch(running)


@pytest.fixture(scope="module")
def cold(node: Node) -> Completion:
    """The prompt's first run."""
    return node.complete("real", PROMPT, max_tokens=16)


def test_a_model_is_loaded_and_unloaded(node: Node) -> None:
    node.client.load("second", ModelConfig(str(MODEL), PARAMS))
    assert [one.id for one in node.models()] == ["real", "second"]
    node.unload("second")
    eventually(lambda: [one.id for one in node.models()] == ["real"], what="it is gone")
    with pytest.raises(errors.ModelUnknown):
        node.complete("second", "x")


def test_a_prompt_gets_a_reply(cold: Completion) -> None:
    assert cold.text.strip()
    assert cold.usage.completion_tokens == len(cold.tokens) > 0
    assert cold.usage.cached_tokens == 0


def test_the_same_prompt_is_cold_and_then_warm(node: Node, cold: Completion) -> None:
    warm = node.complete("real", PROMPT, max_tokens=16)
    assert warm.cache.hit.value == "exact"
    assert warm.usage.cached_tokens >= cold.usage.prompt_tokens - 1
    assert warm.tokens == cold.tokens


def test_warm_takes_at_most_twice_as_long_as_cold(node: Node, cold: Completion) -> None:
    warm = node.complete("real", PROMPT, max_tokens=1)
    assert warm.timings.ttft_ms <= 2 * cold.timings.ttft_ms


def test_what_was_saved_answers_as_before_after_a_crash(node: Node, cold: Completion) -> None:
    eventually(lambda: is_flushed(node.client), within_s=30, what="the end is stored")
    kill(pid_of(node, "model:real"))
    healed = node.complete("real", PROMPT, max_tokens=16)
    assert healed.cache.source == "ram"
    assert healed.usage.cached_tokens >= cold.usage.prompt_tokens - 1
    assert healed.tokens == cold.tokens


def test_a_longer_prompt_reuses_the_longest_stored_prefix(node: Node, cold: Completion) -> None:
    n_begun = len(node.tokenize("real", PROMPT))
    longer = node.complete("real", PROMPT + " The next day they met again.", max_tokens=1)
    assert longer.cache.hit.value == "partial"
    assert n_begun - 2 <= longer.usage.cached_tokens < longer.usage.prompt_tokens


def test_the_chat_template_renders(node: Node) -> None:
    if not node.model_info("real").details["chat_template"]:
        with pytest.raises(errors.NotSupported, match="no chat template"):
            node.chat("real", SAID[1:])
        return
    prompt = node.apply_chat_template("real", SAID[1:])
    assert "Who are you?" in prompt.text
    assert node.chat("real", SAID[1:], max_tokens=4).usage.prompt_tokens == len(prompt.tokens)


def test_the_chat_template_includes_the_system_message(node: Node) -> None:
    if not node.model_info("real").details["chat_template"]:
        with pytest.raises(errors.NotSupported, match="no chat template"):
            node.apply_chat_template("real", SAID)
        return
    alone, whole = (node.apply_chat_template("real", one) for one in (SAID[1:], SAID))
    assert "Answer as a heron would." in whole.text
    assert len(whole.tokens) > len(alone.tokens)


def test_a_grammar_of_yes_and_no_yields_one_of_them(node: Node) -> None:
    for seed in range(3):
        done = node.complete(
            "real", "Is it?", grammar=YES_OR_NO, temperature=1.0, seed=seed, max_tokens=8
        )
        assert done.text in ("yes", "no")


def test_after_a_seeded_reply_a_greedy_one_is_greedy_again(node: Node, cold: Completion) -> None:
    node.complete("real", PROMPT, max_tokens=16, temperature=1.5, seed=9)
    again = node.complete("real", PROMPT, max_tokens=16)
    assert again.tokens == cold.tokens


def test_the_same_seed_gives_the_same_text(node: Node) -> None:
    options = {"max_tokens": 16, "temperature": 0.9, "seed": 42}
    first = node.complete("real", "Once upon a time", **options)
    assert all(
        node.complete("real", "Once upon a time", **options).text == first.text for _ in range(2)
    )


def test_different_seeds_give_different_texts(node: Node) -> None:
    options = {"max_tokens": 24, "temperature": 1.2}
    texts = {node.complete("real", "Once upon a time", seed=n, **options).text for n in range(3)}
    assert len(texts) > 1


def test_temperature_0_takes_the_likeliest_token(node: Node) -> None:
    done = node.complete("real", PROMPT, max_tokens=8, temperature=0.0, seed=5, top_logprobs=1)
    assert done.logprobs is not None
    for token, one in zip(done.tokens, done.logprobs, strict=True):
        assert one is not None
        assert token == one.top[0][0]


def test_a_grammar_and_a_seed_give_the_same_text(node: Node) -> None:
    options = {"grammar": 'root ::= [a-z]{4,12} "!"', "temperature": 1.0, "seed": 3}
    texts = {node.complete("real", "Say:", max_tokens=16, **options).text for _ in range(3)}
    assert len(texts) == 1
    (text,) = texts
    assert text[:-1].isalpha()


def test_verifying_leaves_the_choice_of_the_next_token(node: Node, cold: Completion) -> None:
    prompt = node.tokenize("real", PROMPT)
    verdict = node.verify("real", prompt, [cold.tokens[0], 7, 7, 7])
    again = node.complete("real", PROMPT, max_tokens=16)
    assert again.tokens == cold.tokens
    assert node.verify("real", prompt, [cold.tokens[0], 7, 7, 7]).accepted == verdict.accepted


def test_at_most_k_guesses_are_accepted(node: Node) -> None:
    prompt = node.tokenize("real", PROMPT)
    guesses = node.draft_tokens("real", prompt, 6)
    for k in (1, 3):
        assert node.verify("real", prompt, guesses, k=k).accepted <= k
    assert node.verify("real", prompt, guesses).accepted <= len(guesses)


def test_a_prompt_read_in_chunks_of_16_gets_the_same_greedy_text(
    node: Node, cold: Completion
) -> None:
    chunked = ModelParams(n_ctx=2048, n_batch=16, n_seq_max=4, n_threads=PARAMS.n_threads)
    node.client.load("chunked", ModelConfig(str(MODEL), chunked))
    # Its first words differ, so that nothing which the other model stored is reused.
    prompt = "Listen. " + PROMPT
    done = [node.complete(model, prompt, max_tokens=16) for model in ("chunked", "real")]
    node.unload("chunked")
    assert done[0].usage.cached_tokens <= 1  # the token that begins every text
    assert done[0].tokens == done[1].tokens
