"""States of whole sequences: exact on every kind of memory, and refused unless they are whole."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from native import Batch, InvalidParam, NoKvSpace, PromptTooLong, StateRefused
from native.llama import LlamaBackend
from native.stub import UNCUTTABLE, StubBackend
from tests.support.gguf_files import ARCHITECTURES, WINDOW, tiny_llama
from tests.support.sequence_states import PARAMS, TOKENS, difference, prefill, save

pytestmark = pytest.mark.model

LAYOUTS = {
    "f16": {},
    "q8_0": {"type_k": "q8_0", "type_v": "q8_0"},
    "f16, no flash attention": {"flash_attn": False},
    "q8_0 keys, no flash attention": {"flash_attn": False, "type_k": "q8_0"},
}
UNCUT = [arch for arch in ARCHITECTURES if arch != "llama"]
ROOT = Path(__file__).resolve().parents[2]
Load = Callable[..., LlamaBackend]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uncut")
    for arch in ARCHITECTURES:
        write(folder, arch)
    return folder


def write(folder: Path, arch: str) -> Path:
    # Of six layers of gemma3 the last one attends to everything: both halves of memory are used.
    return tiny_llama(folder / f"{arch}.gguf", arch=arch, n_layer=6 if arch == "gemma3" else 4)


@pytest.fixture
def load(models: Path) -> Iterator[Load]:
    opened: list[LlamaBackend] = []

    def open_one(name: str, **changes: object) -> LlamaBackend:
        backend = LlamaBackend.load(models / f"{name}.gguf", replace(PARAMS, **changes))
        opened.append(backend)
        return backend

    yield open_one
    for backend in opened:
        backend.close()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_restored_state_continues_as_its_original(load: Load, arch: str, layout: str) -> None:
    """In another context, empty or not; within the window and beyond."""
    b, fresh = load(arch, **LAYOUTS[layout]), load(arch, **LAYOUTS[layout])
    other = load(arch, **LAYOUTS[layout], n_ctx=768, n_seq_max=2)
    prefill(other, TOKENS[::-1], 0)
    for length in (1, WINDOW - 1, WINDOW, WINDOW + 1, 64, 150):
        for used, seq in ((b, 0), (fresh, 0), (other, 1)):
            assert used.seq_remove(seq, 0)
        prefill(b, TOKENS[:length], 0)
        state = save(b)
        for restored, seq in ((fresh, 0), (other, 1)):
            restored.restore_checkpoint(seq, length, state)
            held = restored.seq_range(seq)
            assert held is not None
            assert held[1] == length - 1
            assert save(restored, seq) == state, "where a state lies must not show in it"
        assert difference(b, fresh, length, (0, 0)) == 0.0, length
        # In the other pool the cells lie behind those of another sequence: sums round otherwise.
        assert b.seq_remove(0, 0)
        b.restore_checkpoint(0, length, state)
        assert difference(b, other, length, (0, 1)) < 1e-2, length


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_logits_depend_on_the_state_that_was_restored(load: Load, arch: str) -> None:
    b = load(arch)
    prefill(b, TOKENS[:80], 0)
    prefill(b, TOKENS[80:160], 1)
    states = [save(b, 0), save(b, 1)]
    for seq, state in enumerate(states):
        b.restore_checkpoint(2 + seq, 80, state)
    assert difference(b, b, 80, (2, 3)) > 0.1


def test_every_model_reports_how_its_memory_is_saved(load: Load) -> None:
    said = {arch: (load(arch).info.memory, load(arch).info.state_grows) for arch in ARCHITECTURES}
    assert said == {
        "llama": ("blocks", True),
        "gemma3": ("checkpoint", True),
        "gpt-oss": ("checkpoint", True),
        "mamba": ("checkpoint", False),
        "jamba": ("checkpoint", True),
        "lfm2": ("checkpoint", True),
    }


@pytest.mark.parametrize("arch", UNCUT)
def test_what_cannot_be_a_state_is_refused_and_leaves_nothing(load: Load, arch: str) -> None:
    b = load(arch)
    with pytest.raises(InvalidParam):
        b.checkpoint_bytes(0)
    prefill(b, TOKENS[:70])
    state = save(b)
    with pytest.raises(InvalidParam):
        b.save_checkpoint(0, bytearray(len(state) - 1))
    with pytest.raises(InvalidParam):
        b.restore_checkpoint(0, 70, state)  # it is not empty
    for n_tokens in (0, -1, 69, 71):
        with pytest.raises(StateRefused):
            b.restore_checkpoint(1, n_tokens, state)
    with pytest.raises(PromptTooLong):
        b.restore_checkpoint(1, b.info.n_ctx + 1, state)
    for payload in (b"", b"\0" * len(state), state[:-1], state + b"\0"):
        with pytest.raises(StateRefused):
            b.restore_checkpoint(1, 70, payload)
    assert b.seq_range(1) is None
    b.restore_checkpoint(1, 70, state)
    assert difference(b, b, 70, (0, 1)) == 0.0


@pytest.mark.parametrize("arch", UNCUT)
def test_states_of_another_layout_or_model_are_refused(load: Load, arch: str) -> None:
    b = load(arch)
    prefill(b, TOKENS[:70])
    own = save(b)
    others = [load(other) for other in ARCHITECTURES if other != arch]
    if arch != "mamba":  # it keeps nothing that these options change
        others += [load(arch, flash_attn=False), load(arch, type_k="q8_0", type_v="q8_0")]
    for other in others:
        prefill(other, TOKENS[:70])
        with pytest.raises(StateRefused):
            b.restore_checkpoint(1, 70, save(other))
        with pytest.raises(StateRefused):
            other.restore_checkpoint(1, 70, own)
        assert other.seq_range(1) is None


@pytest.mark.parametrize("arch", [arch for arch in UNCUT if arch != "mamba"])
def test_a_lack_of_room_is_reported_and_leaks_no_cell(load: Load, arch: str) -> None:
    b = load(arch)
    prefill(b, TOKENS[:150], 0)
    state = save(b)
    prefill(b, (TOKENS * 3)[:350], 1)
    with pytest.raises(NoKvSpace):
        b.restore_checkpoint(2, 150, state)
    assert b.seq_range(2) is None
    assert b.seq_remove(0, 0)
    b.restore_checkpoint(2, 150, state)
    prefill(b, TOKENS[:12], 0)  # the pool of 512 cells is full to its last one


@pytest.mark.parametrize("arch", ["mamba", "jamba"])
def test_numbers_that_are_not_finite_never_reach_a_recurrent_memory(load: Load, arch: str) -> None:
    b = load(arch)
    prefill(b, TOKENS[:70])
    good = save(b)
    for value in (float("nan"), float("inf"), float("-inf")):
        bad = bytearray(good)
        bad[-4:] = struct.pack("<f", value)
        with pytest.raises(StateRefused):
            b.restore_checkpoint(1, 70, bad)
    b.restore_checkpoint(1, 70, good)
    assert difference(b, b, 70, (0, 1)) == 0.0


@pytest.mark.parametrize("arch", UNCUT)
def test_hostile_states_never_crash_and_leave_no_trace(models: Path, arch: str) -> None:
    """In a process of its own, because llama.cpp aborts for some of them unless they are caught."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.sequence_states"],
        input=str(models / f"{arch}.gguf"),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.split()[:1]) == (0, ["healthy"]), done.stderr[-2000:]
    refused = int(done.stdout.split()[1])
    assert refused > 200, "the attack hit nothing"


def test_the_uncuttable_stub_behaves_as_a_recurrent_model() -> None:
    b = StubBackend.load(f"{UNCUTTABLE}-1", PARAMS)
    assert (b.info.can_cut, b.info.memory) == (False, "checkpoint")
    batch = Batch()
    batch.extend_prefill(TOKENS[:70], 0, 0, True)
    b.decode(batch)
    assert not b.seq_remove(0, 50)
    assert b.seq_range(0) == (0, 69)
    with pytest.raises(StateRefused):
        b.save_block(0, 0, 64, bytearray(1 << 16))
    state = bytearray(b.checkpoint_bytes(0))
    b.save_checkpoint(0, state)
    b.restore_checkpoint(1, 70, state)
    assert b.seq_range(1) == (0, 69)
    assert b.seq_remove(1, 0)
    with pytest.raises(StateRefused):
        b.restore_checkpoint(1, 69, state)
