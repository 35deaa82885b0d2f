"""Memory estimated from a header: exact where the header has all facts, refused before loading."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from native.errors import NotEnoughMemory
from native.estimate import Room, estimate, plan, settle_n_ctx
from native.gguf_header import GgufSummary, TensorFacts, check_gguf
from native.params import ModelParams
from tests.support.gguf_files import Shape, write_model

pytestmark = pytest.mark.pure

MIB = 1 << 20


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> GgufSummary:
    return check_gguf(write_model(tmp_path_factory.mktemp("m") / "tiny.gguf", Shape()))


def test_the_parts_are_those_of_the_shape(header: GgufSummary) -> None:
    """Two layers of 2 KV heads of 32 numbers, keys and values, 2 bytes each."""
    found = estimate([header], ModelParams(n_ctx=1000))
    assert found.n_ctx == 1024
    assert found.host.kv == 2 * 2 * (2 * 32) * 2 * 1024
    assert found.host.weights == sum(one.n_bytes for one in header.tensors.values())
    assert found.device.total == 0
    assert not found.is_upper_bound


def test_smaller_kv_types_take_less(header: GgufSummary) -> None:
    full, q8, q4 = (
        estimate([header], ModelParams(type_k=kind, type_v=kind)).host.kv
        for kind in ("f16", "q8_0", "q4_0")
    )
    assert (q8 / full, q4 / full) == (34 / 64, 18 / 64)


def test_layers_on_a_gpu_leave_the_host(header: GgufSummary) -> None:
    host = estimate([header], ModelParams()).host
    for n, share in ((0, 0.0), (1, 0.0), (2, 0.5), (3, 1.0), (-1, 1.0)):
        found = estimate([header], ModelParams(n_gpu_layers=n), has_gpu=True)
        assert found.device.kv == share * host.kv
        assert found.device.weights + found.host.weights == host.weights
        assert (found.device.weights > 0) == (n != 0)


def test_a_vocabulary_alone_takes_next_to_nothing(header: GgufSummary) -> None:
    assert estimate([header], ModelParams(vocab_only=True)).total == 0


def test_what_cannot_fit_is_refused_with_both_numbers(header: GgufSummary) -> None:
    params = ModelParams(n_ctx=1 << 20)
    needed = estimate([header], params).total
    assert plan([header], params, Room(needed)).total == needed
    with pytest.raises(NotEnoughMemory) as caught:
        plan([header], params, Room(needed - 1))
    assert (caught.value.needed, caught.value.available) == (needed, needed - 1)
    assert "check_memory=False" in str(caught.value)
    anyway = replace(params, check_memory=False)
    assert plan([header], anyway, Room(0)).total == needed


def test_what_a_gpu_cannot_hold_is_refused(header: GgufSummary) -> None:
    with pytest.raises(NotEnoughMemory) as caught:
        plan([header], ModelParams(), Room(1 << 40, 1000))
    assert caught.value.where == "GPU memory"


def test_adapters_and_the_draft_model_count(header: GgufSummary, tmp_path: Path) -> None:
    for name, size in (("a", 1000), ("d", 5000)):
        (tmp_path / name).write_bytes(bytes(size))
    params = ModelParams(lora=((str(tmp_path / "a"), 1.0),), draft_path=str(tmp_path / "d"))
    more = plan([header], params, Room()).total - plan([header], ModelParams(), Room()).total
    assert more == 6000


def test_n_ctx_of_0_is_as_trained_unless_memory_is_short(header: GgufSummary) -> None:
    """Not a small default, and not the 262,144 of the file, which would not fit."""
    asked = ModelParams(n_ctx=0)
    assert settle_n_ctx([header], asked, Room()).n_ctx == 8192
    least = estimate([header], ModelParams(n_ctx=256)).total
    room = Room(2 * least)
    settled = settle_n_ctx([header], asked, room)
    assert 256 <= settled.n_ctx < 8192
    assert estimate([header], settled).total <= 2 * least
    bigger = settled.with_n_ctx(settled.n_ctx + 256)
    assert estimate([header], bigger).total > 0.9 * 2 * least
    with pytest.raises(NotEnoughMemory):
        plan([header], asked, Room(1000))


def test_a_context_never_outgrows_a_table_of_positions(header: GgufSummary) -> None:
    """llama.cpp looks vectors of positions up without asking whether there is one."""
    table = {**header.tensors, "position_embd.weight": TensorFacts((128, 1000), 0, 512_000)}
    learned = replace(header, tensors=table)
    for asked, settled in ((4096, 768), (0, 768), (512, 512)):
        params = settle_n_ctx([learned], ModelParams(n_ctx=asked), Room())
        assert plan([learned], params, Room()).n_ctx == settled


@pytest.mark.parametrize("lie", [0, -1, 1 << 30, 1 << 62, 3.5, "many"])
@pytest.mark.parametrize(
    "key", ["block_count", "embedding_length", "attention.head_count", "feed_forward_length"]
)
def test_a_header_with_wrong_numbers_is_estimated_at_once(
    header: GgufSummary, key: str, lie: float | str
) -> None:
    wrong = replace(header, metadata={**header.metadata, f"llama.{key}": lie})
    assert estimate([wrong], ModelParams()).total > 0
    arrays = {f"llama.{key}": (lie, float("nan"))}
    assert estimate([replace(header, arrays=arrays)], ModelParams()).total > 0  # type: ignore[arg-type]


@pytest.mark.parametrize("arch", ["mamba", "jamba", "lfm2"])
def test_recurrent_layers_have_a_state_for_each_sequence(arch: str, tmp_path: Path) -> None:
    header = check_gguf(write_model(tmp_path / "m.gguf", Shape(arch=arch, n_layer=4)))
    one, nine = (estimate([header], ModelParams(n_ctx=256, n_seq_max=n)).host.kv for n in (1, 9))
    layers = 4 if arch == "mamba" else 2
    state = 128 * 3 if arch == "lfm2" else 3 * 256 + 16 * 256
    assert nine - one == 8 * layers * state * 4
    longer = estimate([header], ModelParams(n_ctx=512, n_seq_max=1)).host.kv
    assert (longer > one) == (arch != "mamba")
