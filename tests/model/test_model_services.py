"""What a loaded model does beside completions, on a node: embeddings, facts, limits."""

from __future__ import annotations

import json
import math
import os
import threading
from array import array
from pathlib import Path

import pytest

from actors import messages as m
from native.params import ModelParams
from runtime import ModelConfig, Node, errors
from supervision.messages import new_ref
from tests.support.bert_file import tiny_bert
from tests.support.lora_files import tiny_lora
from tests.support.nodes import alive
from tests.support.runtime_nodes import PROMPT, cli, one_thread, pids
from tests.support.waiting import eventually

pytestmark = pytest.mark.model

LOADS = 50


def embed(node: Node, model: str, inputs: object, **options: object) -> list[list[float]]:
    """One row for each input, all pooled."""
    question = m.Embed(new_ref(), json.dumps(inputs).encode(), **options)  # type: ignore[arg-type]
    numbers = array("f")
    for answer in node.connection.stream(f"model:{model}", question, idle_timeout_s=30):
        match answer:
            case m.EmbeddingPage(_, data):
                numbers.frombytes(data)
            case m.Embedded(_, n_embd, rows, _):
                assert sum(rows) * n_embd == len(numbers)
                return [list(numbers[at : at + n_embd]) for at in range(0, len(numbers), n_embd)]
            case _:
                raise AssertionError(answer)
    raise AssertionError("no end")


def test_a_model_embeds_while_it_generates(tiny_node: Node) -> None:
    wanted = embed(tiny_node, "tiny", ["a first text", "another one"])
    assert [math.hypot(*row) for row in wanted] == pytest.approx([1.0, 1.0], abs=1e-5)
    done: list[object] = []
    talk = threading.Thread(
        target=lambda: done.append(tiny_node.complete("tiny", PROMPT, max_tokens=400))
    )
    talk.start()
    during = 0
    while talk.is_alive():
        assert embed(tiny_node, "tiny", ["a first text", "another one"]) == wanted
        during += 1
    talk.join()
    assert during
    assert done
    details = tiny_node.models()[0].details
    assert details["texts_embedded"] == 2 * during + 2


def test_what_a_model_cannot_do_is_refused_with_a_reason(tiny_node: Node) -> None:
    question = m.Embed(new_ref(), json.dumps(["x" * 5000]).encode())
    answer = tiny_node.client.ask("model:tiny", question)
    assert isinstance(answer, m.EmbedFailed)
    assert answer.reason is m.FailReason.PROMPT_TOO_LONG
    answer = tiny_node.client.ask("model:tiny", m.ReportVram(new_ref()))
    assert isinstance(answer, m.NoVram)
    assert answer.reason is m.FailReason.NOT_SUPPORTED


def test_models_that_cannot_generate_load_and_refuse_completions(
    node: Node, tiny_gguf: Path, tmp_path: Path
) -> None:
    details = node.client.load("words", one_thread(tiny_gguf, vocab_only=True)).details
    assert details["can_generate"] is False
    with pytest.raises(errors.LlamaActorsError, match="vocab_only"):
        node.complete("words", "Hello", max_tokens=1)
    answer = node.client.ask("model:words", m.Embed(new_ref(), b'["text"]'))
    assert isinstance(answer, m.EmbedFailed)
    assert answer.reason is m.FailReason.NOT_SUPPORTED

    node.client.load("bert", one_thread(tiny_bert(tmp_path / "bert.gguf")))
    vectors = embed(node, "bert", ["text", "other text"])
    assert [len(row) for row in vectors] == [64, 64]
    with pytest.raises(errors.LlamaActorsError, match="only embeds"):
        node.complete("bert", "Hello", max_tokens=1)


def test_a_model_reports_how_it_was_loaded_and_what_it_takes(tiny_node: Node) -> None:
    details = tiny_node.models()[0].details
    assert details["params"]["n_threads"] == 1
    assert set(details["params"]) == set(ModelParams.__dataclass_fields__)
    assert (details["n_embd"], details["n_head"], details["n_head_kv"]) == (128, 4, 2)
    expected, taken = details["memory_expected"], details["memory_taken"]
    assert expected["host_kv"] == taken["host_context"]
    assert expected["host_weights"] == pytest.approx(taken["host_model"], rel=0.02)


def test_flags_reach_the_model(node: Node, tiny_gguf: Path, tmp_path: Path) -> None:
    lora = tiny_lora(tmp_path / "a.gguf")
    flags = (
        "--n-ctx", "512", "--type-k", "q8_0", "--threads", "1", "--n-gpu-layers", "-1",
        "--rope-freq-base", "20000", "--lora", f"{lora}@0.25",
    )  # fmt: skip
    said = cli("load", f"mine={tiny_gguf}", *flags, port=node.port, runtime_dir=tmp_path / "run")
    assert said.returncode == 0, said.stderr
    params = node.models()[0].details["params"]
    assert (params["n_ctx"], params["type_k"], params["rope_freq_base"]) == (512, "q8_0", 20_000.0)
    assert params["lora"] == [[str(lora), 0.25]]
    assert node.complete("mine", "Hello", max_tokens=2).tokens


def test_what_cannot_fit_is_refused_before_it_is_loaded(node: Node, tiny_gguf: Path) -> None:
    too_big = one_thread(tiny_gguf, n_ctx=1 << 24, n_ubatch=8192, n_batch=8192)
    with pytest.raises(errors.ModelLoadFailed) as caught:
        node.client.load("big", too_big)
    assert caught.value.kind == "NotEnoughMemory"
    assert "n_ctx" in str(caught.value)
    node.client.load("big", one_thread(tiny_gguf))
    assert node.complete("big", "Hello", max_tokens=1).tokens


def _resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _shared_mappings(pid: int) -> int:
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
        return sum(line.split()[1].endswith("s") for line in maps)


def _figures(node: Node) -> tuple[dict[int, int], dict[int, int], dict[int, int]]:
    living = {pid for pid in pids(node.tree()) | {node.launcher_pid} if alive(pid)}
    return (
        {pid: _open_files(pid) for pid in living},
        {pid: _shared_mappings(pid) for pid in living},
        {pid: _resident(pid) for pid in living},
    )


def test_loading_and_unloading_over_and_over_leaks_nothing(node: Node, tiny_gguf: Path) -> None:
    """The same id each time, with a request in between now and then."""
    config = ModelConfig(str(tiny_gguf), ModelParams(n_threads=1, n_ctx=256))

    def once(turn: int) -> None:
        node.client.load("again", config)
        if turn % 10 == 0:
            assert node.complete("again", "Hello", max_tokens=2).tokens
        node.unload("again")

    for turn in range(5):  # what is taken once and kept
        once(turn)
    files, shared, resident = _figures(node)
    for turn in range(LOADS):
        once(turn)
    eventually(lambda: set(_figures(node)[0]) == set(files), within_s=30, what="no process is left")
    files_after, shared_after, resident_after = _figures(node)
    for pid, before in resident.items():  # a connection more or less is no leak of fifty loads
        assert files_after[pid] <= files[pid] + 2, f"{pid} keeps files open"
        assert shared_after[pid] <= shared[pid] + 2, f"{pid} keeps memory mapped"
        assert resident_after[pid] - before < 4 << 20, f"{pid} grew"
