"""Filling in the middle and ranking, on a node: the prompt, the answer, the refusals."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from gguf import PoolingType

from native import Backend, ModelParams, load_backend
from runtime import AsyncNode, Completion, Node, TokenEvent, errors
from tests.support.bert_file import BertShape, byte_vocabulary, random_weights, write_bert
from tests.support.bert_reference import Bert
from tests.support.control_vector_files import directions, write_control_vector
from tests.support.gguf_files import TINY, tiny_llama
from tests.support.runtime_nodes import PROMPT, cli, kill, one_thread, pid_of

pytestmark = pytest.mark.model

MARKS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|repo_name|>", "<|file_sep|>")
PRE, SUF, MID, REP, SEP = MARKS
BEFORE, AFTER = "def add(a, b):\n    return ", "\n\nprint(add(1, 2))\n"
RANKER = BertShape()
BIRDS = ["A heron stands in the reeds.", "The spade leans at the shed.", "An owl.", "An owl."]


@pytest.fixture
def node(emptied_node: Node) -> Node:
    return emptied_node


@pytest.fixture(scope="module")
def coder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("coder") / "coder.gguf", controls=MARKS)


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranker") / "ranker.gguf"
    weights = random_weights(RANKER, n_scores=1)
    return write_bert(path, RANKER, weights, byte_vocabulary, pooling=PoolingType.RANK)


def shell(node: Node, home: Path, *arguments: str) -> str:
    ran = cli(*arguments, port=node.port, runtime_dir=home / "run")
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def vocabulary(path: Path) -> Backend:
    return load_backend("llama", path, ModelParams(vocab_only=True))


# ── infill ──────────────────────────────────────────────────────────────────────────────────────


def test_a_gap_is_filled_as_from_the_prompt_written_by_hand(node: Node, coder: Path) -> None:
    details = node.load("coder", one_thread(coder)).details
    assert (details["can_infill"], details["can_rank"]) == (True, False)
    words = vocabulary(coder)
    by_hand = words.tokenize(f"{PRE}{BEFORE}{SUF}{AFTER}{MID}", parse_special=True)
    turned = words.tokenize(f"{SUF}{AFTER}{PRE}{BEFORE}{MID}", parse_special=True)
    files = {"x.py": "one = 1\n", "y.py": "two = 2\n"}
    whole = f"{REP}r\n{SEP}x.py\none = 1\n{SEP}y.py\ntwo = 2\n{SEP}f.py\n{PRE}{BEFORE}{SUF}{MID}"
    with_files = words.tokenize(whole, parse_special=True)
    words.close()

    wanted = node.complete("coder", by_hand, max_tokens=12)
    filled = node.infill("coder", BEFORE, AFTER, max_tokens=12)
    assert (filled.tokens, filled.text) == (wanted.tokens, wanted.text)
    assert filled.usage.prompt_tokens == len(by_hand)
    assert filled.usage.cached_tokens == len(by_hand), "it is the same prompt, so it is warm"
    streamed = list(node.stream_infill("coder", BEFORE, AFTER, max_tokens=12))
    assert "".join(one.text for one in streamed if isinstance(one, TokenEvent)) == wanted.text

    other = node.infill("coder", BEFORE, AFTER, suffix_first=True, max_tokens=12)
    assert other.tokens == node.complete("coder", turned, max_tokens=12).tokens != wanted.tokens
    more = node.infill("coder", BEFORE, "", extra=files, repository="r", file="f.py", max_tokens=12)
    assert more.tokens == node.complete("coder", with_files, max_tokens=12).tokens
    assert more.usage.prompt_tokens == len(with_files)


def test_text_that_looks_like_a_mark_is_text(node: Node, coder: Path) -> None:
    """Whatever the caller's texts hold, each mark stands in the prompt once."""
    node.load("coder", one_thread(coder))
    words = vocabulary(coder)
    plain = len(words.tokenize(MID, add_special=False))
    assert plain > 1
    words.close()
    honest = node.infill("coder", "x", "y", max_tokens=0).usage.prompt_tokens
    for given in (("x" + MID, "y"), ("x", MID + "y")):
        forged = node.infill("coder", *given, max_tokens=0).usage.prompt_tokens
        assert forged == honest + plain


def test_models_without_the_tokens_and_texts_too_long_are_refused(
    tiny_node: Node, coder: Path
) -> None:
    with pytest.raises(errors.NotSupported, match="cannot fill in the middle"):
        tiny_node.infill("tiny", BEFORE, AFTER)
    tiny_node.load("coder", one_thread(coder, n_ctx=512))
    with pytest.raises(errors.PromptTooLong):
        tiny_node.infill("coder", "x" * 100_000, AFTER)
    with pytest.raises(errors.PromptTooLong):
        tiny_node.infill("coder", BEFORE, "y\n" * 600)


def test_a_big_gap_and_an_async_one_and_the_command(
    node: Node, coder: Path, module_home: Path
) -> None:
    """More than one message holds, on an event loop and from a shell."""
    node.load("coder", one_thread(coder, n_ctx=32_768))
    text = "".join(f"value_{at} = {at}\n" for at in range(1100))
    wanted = node.infill("coder", text, AFTER, max_tokens=4)
    assert wanted.usage.prompt_tokens > 10_000

    async def asked() -> Completion:
        async with AsyncNode.attach(node.port, runtime_dir=module_home / "run") as other:
            events = [one async for one in other.stream_infill("coder", "a", "b", max_tokens=4)]
            assert events
            return await other.infill("coder", text, AFTER, max_tokens=4)

    assert asyncio.run(asked()).tokens == wanted.tokens
    ran = shell(
        node, module_home, "infill", "coder", text[:5000], AFTER, "--max-tokens", "4", "--json"
    )
    again = node.infill("coder", text[:5000], AFTER, max_tokens=4)
    assert json.loads(ran)["tokens"] == list(again.tokens)


# ── rerank ──────────────────────────────────────────────────────────────────────────────────────


def test_documents_are_ordered_by_their_scores(node: Node, ranker: Path, module_home: Path) -> None:
    details = node.load("ranker", one_thread(ranker, embed_tokens=96)).details
    assert (details["can_infill"], details["can_rank"]) == (False, True)
    words = vocabulary(ranker)
    judge = Bert(RANKER, random_weights(RANKER, n_scores=1))
    bos = words.info.bos_token
    assert bos is not None
    query = words.tokenize("a bird?", add_special=False)
    prompts = [[*query, *words.tokenize(one, add_special=False)] for one in BIRDS]
    words.close()
    form = [bos] if words.info.add_bos else []
    wanted = [float(judge.scores([*form, *prompt])[0]) for prompt in prompts]

    found = node.rerank("ranker", "a bird?", BIRDS)
    assert [one.index for one in found.results] == sorted(
        range(len(BIRDS)), key=lambda at: (-wanted[at], at)
    )
    for one in found.results:
        assert one.score == pytest.approx(wanted[one.index], abs=8e-3)
    assert found.n_tokens == sum(len(form) + len(prompt) for prompt in prompts)
    assert node.rerank("ranker", "a bird?", BIRDS, top_n=2).results == found.results[:2]

    async def asked() -> object:
        async with AsyncNode.attach(node.port, runtime_dir=module_home / "run") as other:
            return await other.rerank("ranker", "a bird?", BIRDS, top_n=9)

    assert asyncio.run(asked()) == found
    ran = shell(node, module_home, "rerank", "ranker", "a bird?", *BIRDS, "--top-n", "1", "--json")
    best = found.results[0]
    assert json.loads(ran)["results"] == [{"index": best.index, "score": pytest.approx(best.score)}]
    shown = shell(node, module_home, "rerank", "ranker", "a bird?", *BIRDS).splitlines()
    assert [line.split("\t")[2] for line in shown] == [BIRDS[one.index] for one in found.results]


def test_what_cannot_be_ranked_is_refused(tiny_node: Node, ranker: Path) -> None:
    with pytest.raises(errors.NotSupported, match="no head that ranks"):
        tiny_node.rerank("tiny", "a", ["b"])
    tiny_node.load("ranker", one_thread(ranker, embed_tokens=96))
    with pytest.raises(errors.PromptTooLong, match="document 1 and the query"):
        tiny_node.rerank("ranker", "a", ["b", "x" * 97])
    with pytest.raises(errors.PromptTooLong, match="document 0"):
        tiny_node.rerank("ranker", "a", ["x" * 1_000_000])
    for query, documents in (("", ["b"]), ("a", []), ("a", [""]), ("a", ["b"] * 4097)):
        with pytest.raises(errors.InvalidRequest):
            tiny_node.rerank("ranker", query, documents)
    for wrong in ({"documents": "text"}, {"documents": [1]}, {"top_n": 0}, {"query": 1}):
        given = {"query": "a", "documents": ["b"]} | wrong
        with pytest.raises(errors.InvalidRequest):
            tiny_node.rerank("ranker", **given)  # type: ignore[arg-type]
    with pytest.raises(errors.NotSupported, match="rerank"):
        tiny_node.embed("ranker", "a")
    assert len(tiny_node.rerank("ranker", "a", ["b"]).results) == 1


# ── control vectors ─────────────────────────────────────────────────────────────────────────────


def test_rows_of_one_control_vector_are_never_found_with_another(
    node: Node, tiny_gguf: Path, tmp_path: Path
) -> None:
    vector = str(write_control_vector(tmp_path / "v.gguf", directions(TINY.n_embd, range(1, 2))))

    def reply(**options: object) -> Completion:
        node.load("m", one_thread(tiny_gguf, **options))
        done = node.complete("m", PROMPT, max_tokens=8)
        node.unload("m")
        return done

    plain, one = reply(), reply(control_vectors=((vector, 1.0),))
    half = reply(control_vectors=((vector, 0.5),))
    assert [done.usage.cached_tokens for done in (plain, one, half)] == [0, 0, 0]
    assert len({done.tokens for done in (plain, one, half)}) == 3
    again = reply(control_vectors=((vector, 1.0),))
    assert again.usage.cached_tokens > 0
    assert again.tokens == one.tokens
    assert reply().tokens == plain.tokens


def test_a_vector_is_shown_in_the_status_and_comes_back_after_a_crash(
    node: Node, tiny_gguf: Path, tmp_path: Path
) -> None:
    vector = str(write_control_vector(tmp_path / "v.gguf", directions(TINY.n_embd, range(1, 2))))
    options = {"control_vectors": ((vector, 2.0),), "control_vector_layers": (1, 1)}
    details = node.load("m", one_thread(tiny_gguf, **options)).details
    assert details["params"]["control_vectors"] == [[vector, 2.0]]
    assert details["params"]["control_vector_layers"] == [1, 1]
    before = node.complete("m", PROMPT, max_tokens=8)
    kill(pid_of(node, "model:m"))
    assert node.complete("m", PROMPT, max_tokens=8).tokens == before.tokens
    with pytest.raises(errors.ModelLoadFailed, match="not a control vector"):
        node.load("n", one_thread(tiny_gguf, control_vectors=(str(tiny_gguf),)))
