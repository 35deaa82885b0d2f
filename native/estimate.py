"""Estimates the memory of a model from its header alone, before anything is loaded.

Weights are the tensors of the file. The KV cache is what llama.cpp allocates: for every layer that
attends, keys and values of ``n_ctx`` cells (windowed layers too: the full size is kept); for every
recurrent layer, a state for each sequence. The compute buffers are estimated; docs/models.md has
the measured error. Where the kind of a layer is not in the header, all are counted as attending,
and the estimate is marked as an upper bound.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from native._ggml_types import BLOCKS
from native.errors import NotEnoughMemory
from native.gguf_header import GgufSummary
from native.model_params import MAX_CTX, ModelParams
from native.overrides import CPU, TensorOverride, buffer_of

_TYPE_IDS = {"f32": 0, "f16": 1, "q4_0": 2, "q5_0": 6, "q5_1": 7, "q8_0": 8, "bf16": 30}
_PAD = 256  # llama.cpp rounds n_ctx up to this
_SHARE_OF_FREE = 0.9  # for n_ctx=0: some is left for the rest of the machine
_FALLBACK_CTX = 4096
_MAX_LAYERS = 4096  # eight times the limit of llama.cpp; a header may hold any number
_LAYER = re.compile(r"blk\.(\d+)\.")
_RECURRENT_ONLY = ("mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7")
_BOTH = ("falcon-h1",)
"""Every layer attends and is recurrent."""
_ATTENDS_EVERY = ("qwen3next", "qwen35", "qwen35moe")
"""Some layers attend at regular intervals, the others are recurrent."""


@dataclass(frozen=True, slots=True)
class Bytes:
    """Memory in one place, host or GPUs."""

    weights: int = 0
    kv: int = 0
    compute: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.compute


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """The memory that loading will take: bytes on the host and, summed, on the GPUs."""

    n_ctx: int
    host: Bytes
    device: Bytes
    is_upper_bound: bool
    """Which layers attend, or how, is not in the header; the real size is smaller."""

    @property
    def total(self) -> int:
        return self.host.total + self.device.total


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes that are free; ``None``: unknown, and then nothing is refused for lack of it."""

    host: int | None = None
    device: int | None = None

    def holds(self, estimate: MemoryEstimate, share: float = 1.0) -> bool:
        host = self.host is None or estimate.host.total <= share * self.host
        return host and (self.device is None or estimate.device.total <= share * self.device)


def plan(files: Sequence[GgufSummary], params: ModelParams, room: Room) -> MemoryEstimate:
    """The estimate for these parameters, ``n_ctx`` settled; ``NotEnoughMemory`` if it is too much.

    ``files`` are the headers of all splits. ``room.device`` of None means that there is no GPU.
    """
    has_gpu = room.device is not None
    found = estimate(files, settle_n_ctx(files, params, room), has_gpu=has_gpu)
    found = _with_companions(found, params)
    if params.check_memory and not room.holds(found):
        if room.host is not None and found.host.total > room.host:
            raise NotEnoughMemory(found.host.total, room.host)
        raise NotEnoughMemory(found.device.total, room.device or 0, "GPU memory")
    return found


def _with_companions(found: MemoryEstimate, params: ModelParams) -> MemoryEstimate:
    """Weights of adapters and the draft model, by the sizes of their files; on the host."""
    files = [path for path, _ in params.lora] + ([params.draft_path] if params.draft_path else [])
    extra = 0
    for path in files:
        with contextlib.suppress(OSError):  # loading it will report what is wrong
            extra += os.path.getsize(path)
    return replace(found, host=replace(found.host, weights=found.host.weights + extra))


def settle_n_ctx(files: Sequence[GgufSummary], params: ModelParams, room: Room) -> ModelParams:
    """Turn an ``n_ctx`` of 0 into the length the model was trained with, or the longest that fits.

    Never more than the model has positions, if it has a table of them.
    """
    most = n_positions(files)
    if params.n_ctx:
        whole = max(_PAD, (most or MAX_CTX) // _PAD * _PAD)
        return params.with_n_ctx(min(params.n_ctx, whole))
    trained = min(_Facts(files[0]).number("context_length") or _FALLBACK_CTX, most or MAX_CTX)
    high = max(1, min(trained, MAX_CTX) // _PAD)
    low, best = 1, 1
    while low <= high:  # the largest multiple of _PAD that fits
        middle = (low + high) // 2
        one = estimate(files, params.with_n_ctx(middle * _PAD), has_gpu=room.device is not None)
        if room.holds(one, _SHARE_OF_FREE):
            low, best = middle + 1, middle
        else:
            high = middle - 1
    return params.with_n_ctx(min(best * _PAD, trained))


def n_positions(files: Sequence[GgufSummary]) -> int | None:
    """How many positions the model has vectors for; None when it computes them.

    llama.cpp reads the vector of a position without looking whether there is one.
    """
    for file in files:
        table = file.tensors.get("position_embd.weight")
        if table is not None and len(table.dims) > 1:
            return table.dims[1]
    return None


def estimate(
    files: Sequence[GgufSummary], params: ModelParams, *, has_gpu: bool = False
) -> MemoryEstimate:
    """The memory for ``params``; ``n_ctx`` 0 counts as the length the model was trained with."""
    facts = _Facts(files[0])
    n_ctx = params.n_ctx or facts.number("context_length") or _FALLBACK_CTX
    n_ctx = -(-n_ctx // _PAD) * _PAD
    if params.vocab_only:
        return MemoryEstimate(0, Bytes(), Bytes(), is_upper_bound=False)
    on_gpu = _GpuLayers(params, facts.n_layer, has_gpu)
    weights = _weights(files, on_gpu, params.tensor_overrides if has_gpu else ())
    kv = [0, 0]
    for layer in range(facts.n_layer):
        kv[on_gpu.has(layer)] += facts.layer_kv(layer, n_ctx, params)
    compute = _compute(facts, params, n_ctx)
    on_host, on_device = (compute // 4, compute) if on_gpu.first <= facts.n_layer else (compute, 0)
    return MemoryEstimate(
        n_ctx,
        Bytes(weights[0], kv[0], on_host),
        Bytes(weights[1], kv[1], on_device),
        facts.is_guess,
    )


class _GpuLayers:
    """Which layers go to GPUs: the last ones, and the output last of all."""

    def __init__(self, params: ModelParams, n_layer: int, has_gpu: bool) -> None:
        wanted = params.n_gpu_layers if has_gpu else 0
        self._n_layer = n_layer
        self.first = 0 if wanted < 0 else max(0, n_layer + 1 - wanted)

    def has(self, layer: int) -> bool:
        return layer >= self.first

    def holds(self, tensor: str) -> bool:
        match = _LAYER.match(tensor)
        if match is not None:
            return self.has(int(match[1]))
        return tensor.startswith("output") and self.has(self._n_layer)


def _weights(
    files: Sequence[GgufSummary], on_gpu: _GpuLayers, moved: Sequence[TensorOverride]
) -> list[int]:
    found = [0, 0]
    for file in files:
        for name, tensor in file.tensors.items():
            buffer = buffer_of(name, moved) if moved else None
            on_device = on_gpu.holds(name) if buffer is None else buffer != CPU
            found[on_device] += tensor.n_bytes
    return found


class _Facts:
    """The shape of a model, from its header."""

    def __init__(self, header: GgufSummary) -> None:
        self._header = header
        self._arch = header.architecture
        self.n_layer = min(self.number("block_count"), _MAX_LAYERS)
        self.n_embd = self.number("embedding_length")
        self.n_head = max(self.each("attention.head_count", 0), default=0) or 1
        self.n_vocab = self._vocabulary()
        self.n_ff = max(self.each("feed_forward_length", 0), default=0)
        self.kv_heads = self.each("attention.head_count_kv", self.n_head)
        self._every = self.number("full_attention_interval") or 4
        self.n_experts = self.number("expert_used_count") or 1
        self.n_masks = 2 if self.number("attention.sliding_window") else 1
        if self._arch in _RECURRENT_ONLY:
            self.n_masks = 0
        known = (*_RECURRENT_ONLY, *_BOTH, *_ATTENDS_EVERY)
        varies = 0 in self.kv_heads
        has_state = bool(self.state_numbers()) or self.number("kda.head_dim") > 0
        self.is_guess = has_state and not varies and self._arch not in known
        self.is_guess = self.is_guess or self.number("attention.kv_lora_rank") > 0

    def number(self, key: str) -> int:
        """A whole number of this architecture; 0 when the header has none."""
        value = self._header.metadata.get(f"{self._arch}.{key}", 0)
        return _count(value)

    def each(self, key: str, otherwise: int) -> list[int]:
        """A number for each layer, which GGUF writes once or as an array."""
        values: Sequence[Any] = self._header.arrays.get(f"{self._arch}.{key}", ())
        if len(values) >= self.n_layer:
            return [_count(value) for value in values[: self.n_layer]]
        return [self.number(key) or otherwise] * self.n_layer

    def _vocabulary(self) -> int:
        for name in ("output.weight", "token_embd.weight"):
            tensor = self._header.tensors.get(name)
            if tensor is not None and len(tensor.dims) > 1:
                return tensor.dims[1]
        return self.number("vocab_size")

    def state_numbers(self) -> int:
        """Float32 numbers of one recurrent layer's state of one sequence."""
        if self.number("shortconv.l_cache"):
            return self.n_embd * (self.number("shortconv.l_cache") - 1)
        if self.number("wkv.head_size"):
            shifts = self.number("token_shift_count") or 2
            return self.n_embd * (shifts + self.number("wkv.head_size"))
        inner, state = self.number("ssm.inner_size"), self.number("ssm.state_size")
        groups = self.number("ssm.group_count")
        conv = max(0, self.number("ssm.conv_kernel") - 1) * (inner + 2 * groups * state)
        return conv + inner * state

    def layer_kv(self, layer: int, n_ctx: int, params: ModelParams) -> int:
        """Bytes of one layer's memory: cells, states, or both."""
        total = 0
        if self._is_recurrent(layer):
            total += 4 * self.state_numbers() * (params.n_seq_max + 1)
        if self._attends(layer):
            heads = self.kv_heads[layer]
            usual = self.n_embd // self.n_head
            keys = heads * (self.number("attention.key_length") or usual)
            values = heads * (self.number("attention.value_length") or usual)
            total += n_ctx * (_row(params.type_k, keys) + _row(params.type_v, values))
        return total

    def _is_recurrent(self, layer: int) -> bool:
        return self._arch in _BOTH or not self._attends(layer) or self.is_guess

    def _attends(self, layer: int) -> bool:
        if self._arch in _RECURRENT_ONLY:
            return False
        if self._arch in _ATTENDS_EVERY:
            return (layer + 1) % self._every == 0
        return self.kv_heads[layer] > 0


def _count(value: object) -> int:
    """A number of the header, 0 if it is invalid: loading the file will report that."""
    return value if isinstance(value, int) and 0 <= value < 1 << 31 else 0


def _row(kind: str, numbers: int) -> int:
    per_block, n_bytes = BLOCKS[_TYPE_IDS[kind]]
    return -(-numbers // per_block) * n_bytes


def _compute(facts: _Facts, params: ModelParams, n_ctx: int) -> int:
    """Buffers for the widest step: activations of a whole batch, attention's masks, logits.

    Fitted to what llama.cpp allocates, see docs/models.md.
    """
    rows = min(params.n_ubatch, params.n_batch, n_ctx)
    activations = 4 * rows * (6 * facts.n_embd + 3 * facts.n_ff * facts.n_experts)
    logits = 2 * 4 * facts.n_vocab * (params.n_seq_max + 1)
    masks = facts.n_masks * (2 if params.flash_attn else 4)
    scores = 0 if params.flash_attn or not facts.n_masks else 4 * facts.n_head
    return activations + logits + rows * n_ctx * (masks + scores)
