"""Write small GGUF models with random weights: real files for libllama, made in the test.

The architecture is llama unless a test names another, the tokenizer a byte-level BPE made here:
every byte is a token, so any text survives a round trip. Weights are seeded; equal arguments give
equal files. ``shaped_llama`` has the shape and the KV size of a well-known 1.1B model, on which
timings depend; the benchmarks use it too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf import (
    GGML_QUANT_SIZES,
    GGMLQuantizationType,
    GGUFValueType,
    GGUFWriter,
    TokenType,
    quants,
)

QT = GGMLQuantizationType
_DISTINCT_ROWS = 256  # big matrices repeat a quantised slab of so many rows: written in seconds


@dataclass(frozen=True, slots=True)
class Shape:
    """The hyper-parameters of a llama model. ``qtype`` is a name of GGMLQuantizationType."""

    n_layer: int = 2
    n_embd: int = 128
    n_head: int = 4
    n_kv: int = 2
    n_ff: int = 256
    n_vocab: int = 512
    n_ctx_train: int = 8192
    qtype: str = "F16"
    seed: int = 0
    arch: str = "llama"  # or one of the other keys of _TENSORS
    pre: str = "gpt-2"  # name of the pre-tokenizer; "none": no vocabulary at all
    controls: tuple[str, ...] = ()  # texts of further control tokens, the last ids before begin

    def is_recurrent(self, layer: int) -> bool:
        """In the hybrids made here every second layer attends, the others are recurrent."""
        return self.arch == "mamba" or (self.arch in HYBRIDS and layer % 2 == 0)


WINDOW = 32  # tokens inside the sliding window of the models made here
HYBRIDS = ("jamba", "lfm2")
_STATE, _RANK, _CONV, _EXPERTS = 16, 8, 4, 4
_DELTA, _GROUPS, _DELTA_EVERY = 32, 4, 2
TINY = Shape()
PRESETS = {
    "1.1B": Shape(22, 2048, 32, 4, 5632, 32_000, qtype="Q4_0"),
    "60M": Shape(8, 512, 8, 4, 1408, 8_000, qtype="Q4_0"),
}


def tiny_llama(path: Path, **changes: int | str | tuple[str, ...]) -> Path:
    """Write a model of about a megabyte; ``changes`` override fields of ``Shape``."""
    return write_model(path, replace(TINY, **changes))


def shaped_llama(path: Path, preset: str = "1.1B") -> Path:
    """Write a model of the shape of ``preset``; "1.1B" is about 620 MB and takes seconds."""
    return write_model(path, PRESETS[preset])


def write_model(
    path: Path,
    shape: Shape,
    extra: Mapping[str, np.ndarray[Any, Any]] | None = None,
    *,
    add_metadata: Callable[[GGUFWriter], None] = lambda _: None,
) -> Path:
    """Write ``shape`` to ``path`` and return the path.

    ``extra`` are tensors beside the usual ones, ``add_metadata`` writes what is beside the usual.
    """
    writer = GGUFWriter(path, shape.arch)
    _add_parameters(writer, shape)
    add_metadata(writer)
    if shape.pre == "none":
        writer.add_tokenizer_model("none")
    else:
        _add_tokenizer(writer, shape.n_vocab, shape.controls)
        writer.add_tokenizer_pre(shape.pre)
    rng = np.random.default_rng(shape.seed)
    for name, dims, scale in (
        *_ends(shape),
        *_TENSORS[shape.arch](shape),
    ):
        _add_tensor(writer, name, dims, scale, QT[shape.qtype], rng)
    for name, numbers in (extra or {}).items():
        writer.add_tensor(name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_parameters(writer: GGUFWriter, shape: Shape) -> None:
    writer.add_name(f"random {shape.arch} {shape.n_layer}x{shape.n_embd}")
    writer.add_context_length(shape.n_ctx_train)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    per_layer = [0 if shape.is_recurrent(i) else shape.n_kv for i in range(shape.n_layer)]
    writer.add_head_count_kv(per_layer if shape.arch in HYBRIDS else shape.n_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.n_embd // shape.n_head)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(shape.n_vocab)
    if shape.arch == "gemma2":
        writer.add_attn_logit_softcapping(5.0)  # low, so that scores of random weights reach it
        writer.add_final_logit_softcapping(30.0)
    if shape.arch in ("gemma2", "gemma3", "gpt-oss"):
        writer.add_sliding_window(WINDOW)
        writer.add_key_length(shape.n_embd // shape.n_head)
        writer.add_value_length(shape.n_embd // shape.n_head)
    if shape.arch == "gpt-oss":
        writer.add_expert_count(_EXPERTS)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(shape.n_ff)
    if shape.arch in ("mamba", "jamba"):
        writer.add_ssm_conv_kernel(_CONV)
        writer.add_ssm_inner_size(2 * shape.n_embd)
        writer.add_ssm_state_size(_STATE)
        writer.add_ssm_time_step_rank(_RANK)
    if shape.arch == "lfm2":
        writer.add_shortconv_l_cache(_CONV)
    if shape.arch == "qwen35":
        writer.add_ssm_conv_kernel(_CONV)
        writer.add_ssm_inner_size(_RANK * _DELTA)
        writer.add_ssm_state_size(_DELTA)
        writer.add_ssm_time_step_rank(_RANK)
        writer.add_ssm_group_count(_GROUPS)
        writer.add_full_attention_interval(_DELTA_EVERY)
        writer.add_key_length(shape.n_embd // shape.n_head)
        writer.add_value_length(shape.n_embd // shape.n_head)
    if shape.arch in ("qwen2vl", "qwen35"):
        pairs = shape.n_embd // shape.n_head // 2
        writer.add_rope_dimension_sections([pairs // 4, pairs // 4, pairs // 2, 0])


def patch_number(path: Path, key: str, value: int) -> None:
    """Overwrite the 32-bit number behind metadata ``key`` in place, to make the header wrong."""
    data = bytearray(path.read_bytes())
    at = data.index(key.encode()) + len(key) + 4  # the value's type lies between
    data[at : at + 4] = value.to_bytes(4, "little")
    path.write_bytes(data)


def vocabulary(n_vocab: int) -> tuple[list[str], list[str]]:
    """Return tokens (256 bytes, merged pairs, begin, end of text) and the merges behind them."""
    if n_vocab < 258:
        raise ValueError(f"n_vocab={n_vocab}: 256 bytes and two control tokens need at least 258")
    letters = [byte_symbol(b) for b in range(256)]
    tokens, merges = list(letters), []
    for left, right in itertools.islice(_pairs(), n_vocab - 258):
        tokens.append(left + right)
        merges.append(f"{left} {right}")
    return [*tokens, "<|begin|>", "<|end|>"], merges


def _add_tokenizer(writer: GGUFWriter, n_vocab: int, controls: tuple[str, ...] = ()) -> None:
    tokens, merges = vocabulary(n_vocab - len(controls))
    tokens[-2:-2] = controls
    kinds = [TokenType.NORMAL] * (n_vocab - 2 - len(controls))
    kinds += [TokenType.CONTROL] * (2 + len(controls))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    # An empty array has no element type, and llama.cpp requires the key.
    writer.add_key_value("tokenizer.ggml.merges", merges or ["a a"], GGUFValueType.ARRAY)
    writer.add_bos_token_id(n_vocab - 2)
    writer.add_eos_token_id(n_vocab - 1)
    writer.add_add_bos_token(True)


def byte_symbol(byte: int) -> str:
    """The visible character that byte-level BPE vocabularies write for a byte."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in visible:
        return chr(byte)
    hidden = [b for b in range(256) if b not in visible]
    return chr(256 + hidden.index(byte))


def _pairs() -> Iterator[tuple[str, str]]:
    """Merges in a fixed order: letter pairs with and without a leading space, then longer ones."""
    letters = "etaoinshrdlucmfwygpbvkjxqz"
    space = byte_symbol(32)
    known = [space + a for a in letters]
    yield from ((space, a) for a in letters)
    words = [a + b for a in letters for b in letters]
    yield from ((a, b) for a in letters for b in letters)
    known += words
    while True:
        longer = []
        for word, letter in itertools.product(known, letters):
            longer.append(word + letter)
            yield word, letter
        known = longer


# A tensor is its name, its dimensions (rows, columns) and the spread of its random weights.
# A spread of 0 means ones and -1 means minus ones, both float32: norms, and what must be stable.
Tensor = tuple[str, tuple[int, ...], float]


def _ends(shape: Shape) -> Iterator[Tensor]:
    yield "token_embd.weight", (shape.n_vocab, shape.n_embd), 1.0
    norm = "token_embd_norm.weight" if shape.arch == "lfm2" else "output_norm.weight"
    yield norm, (shape.n_embd,), 0.0
    if shape.arch != "gemma2":  # its output is the embedding of its input
        yield "output.weight", (shape.n_vocab, shape.n_embd), 0.1


def _attention(shape: Shape, i: int) -> Iterator[Tensor]:
    embd, kv = shape.n_embd, shape.n_kv * (shape.n_embd // shape.n_head)
    yield f"blk.{i}.attn_q.weight", (embd, embd), 0.1
    yield f"blk.{i}.attn_k.weight", (kv, embd), 0.1
    yield f"blk.{i}.attn_v.weight", (kv, embd), 0.1
    yield f"blk.{i}.attn_output.weight", (embd, embd), 0.1


def _feed_forward(shape: Shape, i: int) -> Iterator[Tensor]:
    yield f"blk.{i}.ffn_norm.weight", (shape.n_embd,), 0.0
    yield f"blk.{i}.ffn_gate.weight", (shape.n_ff, shape.n_embd), 0.05
    yield f"blk.{i}.ffn_up.weight", (shape.n_ff, shape.n_embd), 0.05
    yield f"blk.{i}.ffn_down.weight", (shape.n_embd, shape.n_ff), 0.05


def _llama(shape: Shape) -> Iterator[Tensor]:
    for i in range(shape.n_layer):
        yield f"blk.{i}.attn_norm.weight", (shape.n_embd,), 0.0
        yield from _attention(shape, i)
        yield from _feed_forward(shape, i)


def _gemma3(shape: Shape) -> Iterator[Tensor]:
    yield from _llama(shape)
    head = shape.n_embd // shape.n_head
    for i in range(shape.n_layer):
        yield f"blk.{i}.attn_q_norm.weight", (head,), 0.0
        yield f"blk.{i}.attn_k_norm.weight", (head,), 0.0
        yield f"blk.{i}.post_attention_norm.weight", (shape.n_embd,), 0.0
        yield f"blk.{i}.post_ffw_norm.weight", (shape.n_embd,), 0.0


def _qwen3(shape: Shape) -> Iterator[Tensor]:
    yield from _llama(shape)
    for i in range(shape.n_layer):
        for kind in "qk":
            yield f"blk.{i}.attn_{kind}_norm.weight", (shape.n_embd // shape.n_head,), 0.0


def _gemma2(shape: Shape) -> Iterator[Tensor]:
    yield from _llama(shape)
    for i in range(shape.n_layer):
        yield f"blk.{i}.post_attention_norm.weight", (shape.n_embd,), 0.0
        yield f"blk.{i}.post_ffw_norm.weight", (shape.n_embd,), 0.0


def _gpt_oss(shape: Shape) -> Iterator[Tensor]:
    embd, ff, experts = shape.n_embd, shape.n_ff, _EXPERTS
    for i in range(shape.n_layer):
        yield f"blk.{i}.attn_norm.weight", (embd,), 0.0
        yield f"blk.{i}.post_attention_norm.weight", (embd,), 0.0
        yield from _attention(shape, i)
        yield f"blk.{i}.attn_output.bias", (embd,), 0.0
        yield f"blk.{i}.attn_sinks.weight", (shape.n_head,), 0.0
        yield f"blk.{i}.ffn_gate_inp.weight", (experts, embd), 0.1
        yield f"blk.{i}.ffn_gate_inp.bias", (experts,), 0.0
        for name, dims in (("gate", (ff, embd)), ("down", (embd, ff)), ("up", (ff, embd))):
            yield f"blk.{i}.ffn_{name}_exps.weight", (experts, *dims), 0.05
            yield f"blk.{i}.ffn_{name}_exps.bias", (experts, dims[0]), 0.0


def _mamba(shape: Shape) -> Iterator[Tensor]:
    for i in range(shape.n_layer):
        yield f"blk.{i}.attn_norm.weight", (shape.n_embd,), 0.0
        yield from _state_space(shape, i)


def _state_space(shape: Shape, i: int) -> Iterator[Tensor]:
    embd, inner = shape.n_embd, 2 * shape.n_embd
    yield f"blk.{i}.ssm_in.weight", (2 * inner, embd), 0.1
    yield f"blk.{i}.ssm_conv1d.weight", (inner, _CONV), 0.0
    yield f"blk.{i}.ssm_conv1d.bias", (inner,), 0.0
    yield f"blk.{i}.ssm_x.weight", (_RANK + 2 * _STATE, inner), 0.1
    yield f"blk.{i}.ssm_dt.weight", (inner, _RANK), 0.1
    yield f"blk.{i}.ssm_dt.bias", (inner,), 0.0
    yield f"blk.{i}.ssm_a", (inner, _STATE), -1.0
    yield f"blk.{i}.ssm_d", (inner,), 0.0
    yield f"blk.{i}.ssm_out.weight", (embd, inner), 0.1


def _jamba(shape: Shape) -> Iterator[Tensor]:
    for i in range(shape.n_layer):
        yield f"blk.{i}.attn_norm.weight", (shape.n_embd,), 0.0
        if shape.is_recurrent(i):
            yield from _state_space(shape, i)
            yield f"blk.{i}.ssm_dt_norm.weight", (_RANK,), 0.0
            yield f"blk.{i}.ssm_b_norm.weight", (_STATE,), 0.0
            yield f"blk.{i}.ssm_c_norm.weight", (_STATE,), 0.0
        else:
            yield from _attention(shape, i)
        yield from _feed_forward(shape, i)


def _lfm2(shape: Shape) -> Iterator[Tensor]:
    embd, head = shape.n_embd, shape.n_embd // shape.n_head
    for i in range(shape.n_layer):
        yield f"blk.{i}.attn_norm.weight", (embd,), 0.0
        if shape.is_recurrent(i):
            yield f"blk.{i}.shortconv.conv.weight", (embd, _CONV), 0.0
            yield f"blk.{i}.shortconv.in_proj.weight", (3 * embd, embd), 0.1
            yield f"blk.{i}.shortconv.out_proj.weight", (embd, embd), 0.1
        else:
            yield f"blk.{i}.attn_q_norm.weight", (head,), 0.0
            yield f"blk.{i}.attn_k_norm.weight", (head,), 0.0
            yield from _attention(shape, i)
        yield from _feed_forward(shape, i)


def _qwen2vl(shape: Shape) -> Iterator[Tensor]:
    yield from _llama(shape)
    kv = shape.n_kv * (shape.n_embd // shape.n_head)
    for i in range(shape.n_layer):
        for name, width in (("q", shape.n_embd), ("k", kv), ("v", kv)):
            yield f"blk.{i}.attn_{name}.bias", (width,), 0.0


def _qwen35(shape: Shape) -> Iterator[Tensor]:
    embd, head = shape.n_embd, shape.n_embd // shape.n_head
    keys, values = _GROUPS * _DELTA, _RANK * _DELTA
    for i in range(shape.n_layer):
        yield f"blk.{i}.attn_norm.weight", (embd,), 0.0
        yield f"blk.{i}.post_attention_norm.weight", (embd,), 0.0
        if (i + 1) % _DELTA_EVERY:
            yield f"blk.{i}.attn_qkv.weight", (2 * keys + values, embd), 0.1
            yield f"blk.{i}.attn_gate.weight", (values, embd), 0.1
            yield f"blk.{i}.ssm_conv1d.weight", (2 * keys + values, _CONV), 0.0
            yield f"blk.{i}.ssm_dt.bias", (_RANK,), 0.0
            yield f"blk.{i}.ssm_a", (_RANK,), -1.0
            yield f"blk.{i}.ssm_beta.weight", (_RANK, embd), 0.1
            yield f"blk.{i}.ssm_alpha.weight", (_RANK, embd), 0.1
            yield f"blk.{i}.ssm_norm.weight", (_DELTA,), 0.0
            yield f"blk.{i}.ssm_out.weight", (embd, values), 0.1
        else:
            yield f"blk.{i}.attn_q.weight", (2 * embd, embd), 0.1
            for name in ("k", "v"):
                yield f"blk.{i}.attn_{name}.weight", (shape.n_kv * head, embd), 0.1
            yield f"blk.{i}.attn_output.weight", (embd, embd), 0.1
            yield f"blk.{i}.attn_q_norm.weight", (head,), 0.0
            yield f"blk.{i}.attn_k_norm.weight", (head,), 0.0
        yield from list(_feed_forward(shape, i))[1:]  # its norm is the one after attention


ARCHITECTURES: dict[str, Callable[[Shape], Iterator[Tensor]]] = {
    "llama": _llama,
    "gemma3": _gemma3,  # sliding window, every sixth layer attends to everything
    "gpt-oss": _gpt_oss,  # sliding window in every second layer, sinks, experts
    "mamba": _mamba,  # recurrent
    "jamba": _jamba,  # hybrid of both kinds of layer
    "lfm2": _lfm2,  # hybrid with short convolutions
}
# Positions of several numbers lie between the cells: a state that this build cannot save.
UNSAVED = {"qwen2vl": _qwen2vl}
# So are they here; every other layer is a gated delta net.
DELTA_NETS = {"qwen35": _qwen35}
# Sliding window in every second layer, as in gpt-oss; the scores of attention saturate.
SATURATING = {"gemma2": _gemma2}
# Its rerankers have a head beside the usual tensors.
RANKING = {"qwen3": _qwen3}
_TENSORS = ARCHITECTURES | UNSAVED | DELTA_NETS | SATURATING | RANKING


def _add_tensor(
    writer: GGUFWriter,
    name: str,
    dims: tuple[int, ...],
    scale: float,
    qtype: GGMLQuantizationType,
    rng: np.random.Generator,
) -> None:
    if scale <= 0.0:
        writer.add_tensor(name, np.full(dims, -1.0 if scale < 0 else 1.0, np.float32))
        return
    rows = min(dims[0], _DISTINCT_ROWS)
    if dims[-1] % GGML_QUANT_SIZES[qtype][0]:
        qtype = QT.F32  # as llama.cpp does with rows that are no whole blocks
    if qtype in _BLOCKS:
        packed = _random_blocks(_BLOCKS[qtype], (rows, *dims[1:]), scale, rng)
    else:
        slab = rng.standard_normal((rows, *dims[1:]), dtype=np.float32) * scale
        packed = quants.quantize(slab, qtype)
    packed = np.tile(packed, (-(-dims[0] // rows), *(1 for _ in dims[1:])))[: dims[0]]
    raw = None if qtype in {QT.F16, QT.F32} else qtype
    writer.add_tensor(name, packed, raw_dtype=raw)


@dataclass(frozen=True, slots=True)
class _Block:
    """Types that ``gguf`` reads and cannot write: blocks of 256 numbers, of random bytes.

    ``sizes`` gives where a block has its float16 factors, and their values for numbers of spread
    1. ``same`` fixes other bytes: scales within the block, so that the factors are right for them.
    """

    n_bytes: int
    sizes: tuple[tuple[int, float], ...]
    same: tuple[tuple[int, bytes], ...] = ()


_SCALES_OF_32 = b"\xa0" * 8 + b"\0" * 4  # eight scales and eight minima of 6 bits
_BLOCKS = {
    QT.Q2_K: _Block(84, ((80, 1 / 8.9), (82, 1.5 / 8.9)), ((0, b"\x88" * 16),)),
    QT.Q3_K: _Block(110, ((108, 1 / 42),)),
    QT.Q4_K: _Block(144, ((0, 1 / 148), (2, 7.5 / 148)), ((4, _SCALES_OF_32),)),
    QT.Q5_K: _Block(176, ((0, 1 / 295), (2, 15.5 / 295)), ((4, _SCALES_OF_32),)),
    QT.Q6_K: _Block(210, ((208, 1 / 592),), ((192, b"\x20" * 16),)),
    QT.IQ4_XS: _Block(136, ((0, 1 / 1150),)),
}


def _random_blocks(
    kind: _Block, dims: tuple[int, ...], scale: float, rng: np.random.Generator
) -> np.ndarray:
    shape = (*dims[:-1], dims[-1] // 256)
    blocks = rng.integers(0, 256, (*shape, kind.n_bytes), np.uint8)
    for at, fixed in kind.same:
        blocks[..., at : at + len(fixed)] = np.frombuffer(fixed, np.uint8)
    spread = scale * rng.uniform(0.5, 1.5, (*shape, 1))
    for at, size in kind.sizes:
        blocks[..., at : at + 2] = (size * spread).astype(np.float16).view(np.uint8)
    return blocks.reshape(*dims[:-1], -1)
