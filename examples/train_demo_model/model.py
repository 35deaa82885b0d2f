"""The trained network: a small llama shape in PyTorch, tensor for tensor what llama.cpp computes.

Facts this file keeps equal to llama.cpp's ``llama`` architecture:

* RMS norm in float32 with epsilon ``NORM_EPS``.
* Rotary positions in the interleaved convention (element ``2i`` turns with ``2i + 1``), so that
  the query and key weights are exported as they are, without the usual permutation.
* SwiGLU: ``down(silu(gate(x)) * up(x))``.
* The output matrix is the token embedding (tied), so the file holds it once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch reader expects
from torch import nn

NORM_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the network. ``width`` and ``feed`` are multiples of 32, as Q8_0 rows must be."""

    vocab: int = 2048
    width: int = 192
    layers: int = 6
    heads: int = 3
    kv_heads: int = 3
    feed: int = 512
    context: int = 4096
    rope_base: float = 10_000.0

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


def rope_table(shape: Shape, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, each ``[length, head_dim / 2]``."""
    half = torch.arange(0, shape.head_dim, 2, dtype=torch.float64) / shape.head_dim
    angles = torch.outer(torch.arange(length, dtype=torch.float64), shape.rope_base**-half)
    return angles.cos().float(), angles.sin().float()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the pairs of ``x`` (``[batch, heads, time, head_dim]``) by their positions."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1)
    return turned.flatten(-2).to(x.dtype)


class Norm(nn.Module):  # type: ignore[misc,unused-ignore]  # torch may be absent
    """RMS norm with a learned scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, NORM_EPS)


class Block(nn.Module):  # type: ignore[misc,unused-ignore]  # torch may be absent
    """One layer: attention with grouped keys and values, then the feed-forward part."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        kv = shape.kv_heads * shape.head_dim
        self.attn_norm = Norm(shape.width)
        self.attn_q = nn.Linear(shape.width, shape.width, bias=False)
        self.attn_k = nn.Linear(shape.width, kv, bias=False)
        self.attn_v = nn.Linear(shape.width, kv, bias=False)
        self.attn_output = nn.Linear(shape.width, shape.width, bias=False)
        self.ffn_norm = Norm(shape.width)
        self.ffn_gate = nn.Linear(shape.width, shape.feed, bias=False)
        self.ffn_up = nn.Linear(shape.width, shape.feed, bias=False)
        self.ffn_down = nn.Linear(shape.feed, shape.width, bias=False)

    def attend(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        size = (self.shape.head_dim,)
        q = self.attn_q(x).unflatten(-1, (-1, *size)).transpose(1, 2)
        k = self.attn_k(x).unflatten(-1, (-1, *size)).transpose(1, 2)
        v = self.attn_v(x).unflatten(-1, (-1, *size)).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        groups = self.shape.heads // self.shape.kv_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: torch.Tensor = self.attn_output(y.transpose(1, 2).flatten(2))
        return out

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x = x + self.attend(self.attn_norm(x), cos, sin)
        h = self.ffn_norm(x)
        out: torch.Tensor = x + self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))
        return out


class Storyteller(nn.Module):  # type: ignore[misc,unused-ignore]  # torch may be absent
    """The whole network: tokens ``[batch, time]`` in, logits ``[batch, time, vocab]`` out."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocab, shape.width)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = Norm(shape.width)
        cos, sin = rope_table(shape, shape.context)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._start(seed)

    def _start(self, seed: int) -> None:
        made = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.ndim < 2:
                continue
            last = name.endswith(("attn_output.weight", "ffn_down.weight"))
            std = 0.02 if not last else 0.02 / (2 * self.shape.layers) ** 0.5
            nn.init.normal_(weight, std=std, generator=made)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        buffers: Any = self
        time = tokens.shape[1]
        cos, sin = buffers.cos[:time], buffers.sin[:time]
        x = self.token_embd(tokens)
        for block in self.blk:
            x = block(x, cos, sin)
        return F.linear(self.output_norm(x), self.token_embd.weight)

    def loss(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross entropy, nats per token; targets of -100 do not count."""
        logits = self(tokens)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100)
