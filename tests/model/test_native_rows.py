"""The numbers of a row depend on the tokens of its own sequence, and on nothing else.

With ``Batch.rows`` "many", logits of a prompt are the same bytes wherever it is cut, whatever else
is in the batch or in the pool of cells, and by any number of threads; with "alone" they are those
of a decode of each row by itself. The reference of a sequence is one decode of all its rows, in
empty memory, by one thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import Phase, example, given
from hypothesis import strategies as st

from native import Batch, ModelParams
from native.backend import Rows
from native.llama import LlamaBackend
from tests.support.examples import examples
from tests.support.gguf_files import TINY, write_model
from tests.support.lora_files import tiny_lora

pytestmark = pytest.mark.model

N = 150
"""Tokens of each sequence: more than two blocks, and than four windows."""
N_SEQ = 6
THREADS = (1, 2, 3)


@dataclass(frozen=True)
class Case:
    """A small model and the type of its KV."""

    qtype: str = "Q4_K"
    kv: str = "f16"
    shape: dict[str, int | str] = field(default_factory=dict)
    adapter: bool = False

    @property
    def can_cut(self) -> bool:
        return self.shape.get("arch", "llama") == "llama"


CASES = {
    "q4_k": Case(),
    "q4_k, f32 KV": Case(kv="f32"),
    "q4_k, bf16 KV": Case(kv="bf16"),
    "q4_k, q8_0 KV": Case(kv="q8_0"),
    "q4_0": Case("Q4_0"),
    "q8_0": Case("Q8_0"),
    "f16": Case("F16"),
    "q4_1": Case("Q4_1"),
    "q5_0": Case("Q5_0"),
    "q5_1": Case("Q5_1"),
    "bf16": Case("BF16"),
    "q2_k": Case("Q2_K"),
    "q3_k": Case("Q3_K"),
    "q5_k": Case("Q5_K"),
    "q6_k": Case("Q6_K"),
    "iq4_xs": Case("IQ4_XS"),
    "mxfp4": Case("MXFP4"),
    "rows of 96 numbers": Case("Q4_0", shape={"n_embd": 96, "n_head": 3, "n_kv": 1, "n_ff": 160}),
    "an adapter": Case(adapter=True),
    "f32": Case("F32"),
    "f32, f32 KV": Case("F32", "f32"),
    "heads of 32, 8 to 1": Case(shape={"n_head": 8, "n_kv": 1}),
    "heads of 32, 8 to 8": Case(shape={"n_head": 8, "n_kv": 8}),
    "heads of 128": Case(shape={"n_head": 2, "n_kv": 2}),
    "a head of 256": Case(shape={"n_head": 1, "n_kv": 1}),
    "window": Case(shape={"arch": "gemma3", "n_layer": 6}),
    "window, q8_0 KV": Case(kv="q8_0", shape={"arch": "gemma3", "n_layer": 6}),
    "window and softcap": Case(shape={"arch": "gemma2"}),
    "window, sinks and experts": Case(shape={"arch": "gpt-oss"}),
    "window, sinks and experts, q6_k": Case("Q6_K", shape={"arch": "gpt-oss"}),
    "recurrent": Case(shape={"arch": "mamba"}),
    "recurrent, f32": Case("F32", shape={"arch": "mamba"}),
    "hybrid": Case(shape={"arch": "jamba", "n_layer": 4}),
    "hybrid with convolutions": Case("Q6_K", shape={"arch": "lfm2", "n_layer": 4}),
    "delta net": Case(shape={"arch": "qwen35"}),
    "window, sinks and experts, f32": Case("F32", shape={"arch": "gpt-oss"}),
}


def tokens(seq: int) -> list[int]:
    """Of a sequence; no two begin alike."""
    return [(seq * 131 + i * 37 + i * i * (seq + 1)) % 500 for i in range(N)]


@dataclass(frozen=True)
class Part:
    """So many next rows of a sequence, side by side in a batch."""

    seq: int
    n: int


class Pool:
    """A backend, and how far each of its sequences is."""

    def __init__(self, backend: LlamaBackend) -> None:
        self.backend = backend
        self.at = [0] * N_SEQ
        for seq in range(N_SEQ):
            assert backend.seq_remove(seq, 0)
        self._batch = Batch()

    def step(
        self, parts: Sequence[Part], rows: Rows, *, ends_only: bool = False
    ) -> dict[tuple[int, int], bytes]:
        """Decode one batch; logits by sequence and position, of parts' last rows or of all."""
        self._batch.clear()
        self._batch.rows = rows
        wanted: dict[tuple[int, int], int] = {}
        for part in parts:
            for index in range(part.n):
                position = self.at[part.seq]
                wants = not ends_only or index == part.n - 1
                row = self._batch.add(tokens(part.seq)[position], position, part.seq, wants)
                self.at[part.seq] += 1
                if wants:
                    wanted[part.seq, position] = row
        self.backend.decode(self._batch)
        return {where: self.backend.logits(row).tobytes() for where, row in wanted.items()}

    def drop(self, seq: int) -> None:
        assert self.backend.seq_remove(seq, 0)
        self.at[seq] = 0


class Models:
    """Backends of one case by number of threads, and the references of all; made at first use."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loaded: dict[tuple[str, int], LlamaBackend] = {}
        self._references: dict[tuple[str, int], dict[int, bytes]] = {}

    def pool(self, case: str, n_threads: int = 1) -> Pool:
        """Empty. Backends of other cases are closed: llama.cpp holds 64 contexts at most."""
        for other, n in [at for at in self._loaded if at[0] != case]:
            self._loaded.pop((other, n)).close()
        if (case, n_threads) not in self._loaded:
            one, path = CASES[case], self._folder / f"{list(CASES).index(case)}.gguf"
            wide: dict[str, int | str] = {"n_embd": 256, "n_ff": 512, "qtype": one.qtype}
            shape = replace(TINY, **(wide | one.shape))
            if not path.exists():
                write_model(path, shape)
                tiny_lora(path.with_suffix(".lora"), shape=shape)
            lora = ((str(path.with_suffix(".lora")), 1.0),) if one.adapter else ()
            params = ModelParams(
                n_ctx=N_SEQ * N + 100,
                n_batch=512,
                n_seq_max=N_SEQ,
                n_threads=n_threads,
                type_k=one.kv,
                type_v=one.kv,
                lora=lora,
            )
            self._loaded[case, n_threads] = LlamaBackend.load(path, params)
        return Pool(self._loaded[case, n_threads])

    def reference(self, case: str, seq: int = 0) -> dict[int, bytes]:
        """Logits of every position of a sequence."""
        if (case, seq) not in self._references:
            found = self.pool(case).step([Part(seq, N)], "many")
            self._references[case, seq] = {position: one for (_, position), one in found.items()}
        return self._references[case, seq]

    def check(self, case: str, found: dict[tuple[int, int], bytes]) -> None:
        """All bytes that were found are those of the references."""
        assert found
        differ = [at for at, one in found.items() if one != self.reference(case, at[0])[at[1]]]
        assert not differ, f"{len(differ)} of {len(found)} rows differ, first {sorted(differ)[:4]}"

    def close(self) -> None:
        for backend in self._loaded.values():
            backend.close()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    made = Models(tmp_path_factory.mktemp("rows"))
    yield made
    made.close()


def sizes(total: int, cuts: Sequence[int]) -> list[int]:
    """What lies between cuts at these positions."""
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < total}), total]
    return [b - a for a, b in pairwise(edges)]


CUTS = st.lists(st.integers(1, N - 1), max_size=8)
EVERY_CASE = pytest.mark.parametrize("case", CASES)
FEW = examples(5, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
"""A failure is not made smaller: its message has the rows, and each example loads no model."""


@EVERY_CASE
@FEW
@given(cuts=CUTS, n_threads=st.sampled_from(THREADS), ends_only=st.booleans())
@example(cuts=list(range(N)), n_threads=1, ends_only=False)
def test_many_rows_are_the_same_wherever_a_prompt_is_cut(
    models: Models, case: str, cuts: list[int], n_threads: int, ends_only: bool
) -> None:
    """Down to single rows; also where only the last row's logits are wanted."""
    models.reference(case)
    pool = models.pool(case, n_threads)
    for n in sizes(N, cuts):
        models.check(case, pool.step([Part(0, n)], "many", ends_only=ends_only))


@EVERY_CASE
@FEW
@given(data=st.data(), n_threads=st.sampled_from(THREADS))
def test_many_rows_are_the_same_in_any_company(
    models: Models, case: str, data: st.DataObject, n_threads: int
) -> None:
    """Rows of others lie before, between and behind them; all are compared."""
    for seq in range(3):
        models.reference(case, seq)
    pool = models.pool(case, n_threads)
    part = st.builds(Part, st.integers(0, 2), st.integers(1, 40))
    while pool.at[0] < N:
        parts, left = [], [N - at for at in pool.at]
        for one in data.draw(st.lists(part, min_size=1, max_size=6)):
            n = min(one.n, left[one.seq])
            if n:
                left[one.seq] -= n
                parts.append(Part(one.seq, n))
        models.check(case, pool.step(parts or [Part(0, left[0])], "many"))


@EVERY_CASE
@FEW
@given(
    idle=st.lists(st.integers(1, 100), min_size=5, max_size=5),
    dropped=st.sets(st.integers(1, 5), max_size=4),
    cuts=CUTS,
    n_threads=st.sampled_from(THREADS),
)
def test_many_rows_are_the_same_beside_idle_cells_and_in_gaps(
    models: Models,
    case: str,
    idle: list[int],
    dropped: set[int],
    cuts: list[int],
    n_threads: int,
) -> None:
    """Sequences lie in the pool, some of which were dropped: the cells are not in order."""
    models.reference(case)
    pool = models.pool(case, n_threads)
    for seq, n in enumerate(idle, start=1):
        pool.step([Part(seq, n)], "many")
    parts = sizes(N, cuts)
    for n in parts[: len(parts) // 2]:
        models.check(case, pool.step([Part(0, n)], "many"))
    for seq in sorted(dropped):
        pool.drop(seq)
    for n in parts[len(parts) // 2 :]:
        models.check(case, pool.step([Part(0, n)], "many"))


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case.can_cut])
@FEW
@given(
    cut=st.integers(1, N - 1),
    n=st.integers(1, 64),
    n_threads=st.sampled_from(THREADS),
)
def test_many_rows_are_the_same_behind_restored_blocks(
    models: Models, case: str, cut: int, n: int, n_threads: int
) -> None:
    """Blocks of ``n`` tokens were saved elsewhere; another sequence lies between two of them."""
    models.reference(case)
    source = models.pool(case)
    source.step([Part(0, cut)], "many")
    blocks = []
    for start in range(0, cut, n):
        size = min(n, cut - start)
        payload = bytearray(source.backend.block_bytes(size))
        source.backend.save_block(0, start, start + size, payload)
        blocks.append((start, size, payload))
    pool = models.pool(case, n_threads)
    pool.step([Part(1, 7)], "many")
    for number, (start, size, payload) in enumerate(blocks):
        pool.backend.restore_block(0, start, size, payload)
        if not number:
            pool.step([Part(2, 13)], "many")
    pool.at[0] = cut
    models.check(case, pool.step([Part(0, N - cut)], "many"))


@EVERY_CASE
@FEW
@given(
    start=st.integers(1, N - 30),
    n=st.integers(1, 30),
    company=st.lists(st.integers(0, 6), min_size=2, max_size=2),
    n_threads=st.sampled_from(THREADS),
)
def test_rows_alone_are_those_of_a_decode_each(
    models: Models, case: str, start: int, n: int, company: list[int], n_threads: int
) -> None:
    """One decode of ``n`` rows, with rows of others, and ``n`` decodes of one row: any or alone."""
    each: dict[tuple[int, int], bytes] = {}
    pool = models.pool(case)
    pool.step([Part(0, start)], "many")
    for number in range(n):
        each |= pool.step([Part(0, 1)], "any" if number % 2 else "alone")
    pool = models.pool(case, n_threads)
    for seq, before in enumerate(company, start=1):
        pool.step([Part(seq, 5 + before)], "many")
    pool.step([Part(0, start)], "many")
    parts = [Part(1, company[0]), Part(0, n), Part(2, company[1])]
    found = pool.step([part for part in parts if part.n], "alone")
    differ = sorted(at for at, one in each.items() if found[at] != one)
    assert not differ, f"{len(differ)} of {n} rows differ, first {differ[:4]}"
