"""Write a tiny BERT: a model that embeds, sees the whole text at once and cannot generate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFWriter, PoolingType

from tests.support.gguf_files import vocabulary

N_EMBD, N_FF, N_HEAD, N_LAYER, N_VOCAB = 64, 128, 4, 2, 300


def tiny_bert(path: Path, *, pooling: PoolingType = PoolingType.CLS, n_positions: int = 96) -> Path:
    """Random weights, seeded; the byte-level vocabulary of the other small models."""
    writer = GGUFWriter(path, "bert")
    writer.add_name("random bert")
    writer.add_context_length(n_positions)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(N_LAYER)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEAD)
    writer.add_layer_norm_eps(1e-5)
    writer.add_causal_attention(False)
    writer.add_pooling_type(pooling)
    writer.add_vocab_size(N_VOCAB)
    tokens, merges = vocabulary(N_VOCAB)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_merges(merges)
    writer.add_token_type_count(2)
    writer.add_bos_token_id(N_VOCAB - 2)
    writer.add_eos_token_id(N_VOCAB - 1)
    rng = np.random.default_rng(3)

    def add(name: str, *dims: int) -> None:
        if len(dims) == 1:
            value = 0.0 if name.endswith("bias") else 1.0
            writer.add_tensor(name, np.full(dims, value, np.float32))
        else:
            numbers = rng.standard_normal(dims, dtype=np.float32) * 0.1
            writer.add_tensor(name, numbers.astype(np.float32))

    add("token_embd.weight", N_VOCAB, N_EMBD)
    add("token_types.weight", 2, N_EMBD)
    add("position_embd.weight", n_positions, N_EMBD)
    for end in ("weight", "bias"):
        add(f"token_embd_norm.{end}", N_EMBD)
    for layer in range(N_LAYER):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{name}.weight", N_EMBD, N_EMBD)
            add(f"blk.{layer}.{name}.bias", N_EMBD)
        for name in ("attn_output_norm", "layer_output_norm"):
            add(f"blk.{layer}.{name}.weight", N_EMBD)
            add(f"blk.{layer}.{name}.bias", N_EMBD)
        add(f"blk.{layer}.ffn_up.weight", N_FF, N_EMBD)
        add(f"blk.{layer}.ffn_down.weight", N_EMBD, N_FF)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
