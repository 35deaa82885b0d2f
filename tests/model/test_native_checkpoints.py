"""States of whole sequences: exact on every kind of memory, and refused unless they are whole."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from native import Batch, InvalidParam, ModelParams, NoKvSpace, PromptTooLong, StateRefused
from native.llama import LlamaBackend
from native.stub import UNCUTTABLE, StubBackend
from tests.support.gguf_files import ARCHITECTURES, WINDOW, tiny_llama

pytestmark = pytest.mark.model

PARAMS = ModelParams(n_ctx=512, n_batch=128, n_ubatch=64, n_seq_max=4, n_threads=1)
LAYOUTS = {
    "f16": {},
    "q8_0": {"type_k": "q8_0", "type_v": "q8_0"},
    "f16, no flash attention": {"flash_attn": False},
    "q8_0 keys, no flash attention": {"flash_attn": False, "type_k": "q8_0"},
}
TOKENS = [32 + (i * 37) % 90 for i in range(180)]
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
    # Of six layers of gemma3 the last one looks at everything: both halves of its memory are used.
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


def prefill(b: LlamaBackend, tokens: list[int], seq: int = 0, start: int = 0) -> int:
    batch, row = Batch(), -1
    for at in range(0, len(tokens), b.info.n_batch):
        batch.clear()
        found = batch.extend_prefill(tokens[at : at + b.info.n_batch], start + at, seq, True)
        assert found is not None
        row = found
        b.decode(batch)
    return row


def save(b: LlamaBackend, seq: int = 0) -> bytearray:
    state = bytearray(b.checkpoint_bytes(seq))
    assert b.save_checkpoint(seq, state) == len(state)
    return state


def difference(one: LlamaBackend, two: LlamaBackend, at: int, seqs: tuple[int, int]) -> float:
    """The largest difference of the logits after the same further token."""
    first = one.logits(prefill(one, TOKENS[at : at + 1], seqs[0], at))
    second = two.logits(prefill(two, TOKENS[at : at + 1], seqs[1], at))
    return max(abs(x - y) for x, y in zip(first, second, strict=True))


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


def test_every_model_says_how_its_memory_is_saved(load: Load) -> None:
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
def test_no_room_is_said_and_leaks_no_cell(load: Load, arch: str) -> None:
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
    """In a process of its own, because llama.cpp aborts for some of them if it is let."""
    done = subprocess.run(
        [sys.executable, "-c", "from tests.model import test_native_checkpoints as t; t.attack()"],
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


def attack() -> None:
    """Restore thousands of damaged states; say whether the context still works, and who fell."""
    b = LlamaBackend.load(sys.stdin.read(), PARAMS)
    prefill(b, TOKENS[:70])
    good = bytes(save(b))
    rng = random.Random(7)
    refused = 0
    for bad in damaged(good, rng):
        try:
            b.restore_checkpoint(1, 70, bad)
        except StateRefused:
            refused += 1
            assert b.seq_range(1) is None
        else:
            prefill(b, TOKENS[70:71], 1, 70)  # other numbers of the right kind: the digest's part
            assert b.seq_remove(1, 0)
    b.restore_checkpoint(1, 70, good)
    assert difference(b, b, 70, (0, 1)) == 0.0
    for seq in range(4):
        assert b.seq_remove(seq, 0)
    prefill(b, (TOKENS * 3)[: b.info.n_ctx], 3)  # no cell was leaked
    print("healthy", refused)


def damaged(good: bytes, rng: random.Random) -> Iterator[bytes]:
    """Cut, changed at its head, changed anywhere, two recurrent cells, positions out of range."""
    for length in (*range(64), *rng.sample(range(len(good)), 60)):
        yield good[:length]
    for at in range(120):
        for change in (0x01, 0x80, 0xFF):
            yield good[:at] + bytes((good[at] ^ change,)) + good[at + 1 :]
    for _ in range(200):
        at = rng.randrange(len(good))
        yield good[:at] + bytes((good[at] ^ rng.randrange(1, 256),)) + good[at + 1 :]
    last = struct.pack("<i", 69)
    at = -1
    while (at := good.find(last, at + 1)) >= 0:
        for position in (-1, 0, 68, 70, 0x7FFFFFFF, -0x80000000):
            yield good[:at] + struct.pack("<i", position) + good[at + 4 :]
        for count in (0, 2, 3, 0xFFFFFFFF):  # before the position of a recurrent cell: how many
            yield good[: at - 4] + struct.pack("<I", count) + good[at:]


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
