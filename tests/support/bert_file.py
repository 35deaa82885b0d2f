"""Write BERT models: they embed or rank, see the whole text at once, and cannot generate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from gguf import GGUFReader, GGUFWriter, PoolingType, TokenType

from tests.support.gguf_files import vocabulary

Tensors: TypeAlias = dict[str, np.ndarray[Any, np.dtype[np.float32]]]


@dataclass(frozen=True, slots=True)
class BertShape:
    """The hyper-parameters of a BERT."""

    n_vocab: int = 300
    n_embd: int = 64
    n_ff: int = 128
    n_head: int = 4
    n_layer: int = 2
    n_positions: int = 96
    epsilon: float = 1e-5


TINY = BertShape()
N_EMBD = TINY.n_embd


def tiny_bert(path: Path, *, pooling: PoolingType = PoolingType.CLS) -> Path:
    """Random weights, seeded; the byte-level vocabulary of the other small models."""
    return write_bert(path, TINY, random_weights(TINY), byte_vocabulary, pooling=pooling)


def random_weights(shape: BertShape, *, seed: int = 3, n_scores: int = 0) -> Tensors:
    """Weights by the names of GGUF; with ``n_scores``, a head that ranks, as RoBERTa has one."""
    rng = np.random.default_rng(seed)

    def random(*dims: int, size: float = 0.1) -> Any:
        return rng.standard_normal(dims, dtype=np.float32) * np.float32(size)

    embd, ff = shape.n_embd, shape.n_ff
    found: Tensors = {
        "token_embd.weight": random(shape.n_vocab, embd, size=0.5),
        "token_types.weight": random(2, embd),
        "position_embd.weight": random(shape.n_positions, embd),
    }
    norms = ["token_embd_norm"]
    matrices: dict[str, tuple[int, int]] = {}
    for layer in range(shape.n_layer):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrices[f"blk.{layer}.{name}"] = (embd, embd)
        matrices |= {f"blk.{layer}.ffn_up": (ff, embd), f"blk.{layer}.ffn_down": (embd, ff)}
        norms += [f"blk.{layer}.{name}_output_norm" for name in ("attn", "layer")]
    if n_scores:
        matrices |= {"cls": (embd, embd), "cls.output": (n_scores, embd)}
    for name, (rows, columns) in matrices.items():
        found[f"{name}.weight"] = random(rows, columns, size=1.5 / embd**0.5)
        found[f"{name}.bias"] = random(rows)
    for name in norms:
        found[f"{name}.weight"] = 1 + random(embd)
        found[f"{name}.bias"] = random(embd)
    return found


def write_bert(
    path: Path,
    shape: BertShape,
    tensors: Mapping[str, np.ndarray[Any, Any]],
    add_vocabulary: Callable[[GGUFWriter, int], None],
    *,
    pooling: PoolingType,
    labels: Sequence[str] = (),
    rank_template: str | None = None,
) -> Path:
    writer = GGUFWriter(path, "bert")
    writer.add_name("bert")
    writer.add_context_length(shape.n_positions)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_layer_norm_eps(shape.epsilon)
    writer.add_causal_attention(False)
    writer.add_pooling_type(pooling)
    writer.add_vocab_size(shape.n_vocab)
    writer.add_token_type_count(2)
    if labels:
        writer.add_classifier_output_labels(labels)
    if rank_template is not None:
        writer.add_string("tokenizer.chat_template.rerank", rank_template)
    add_vocabulary(writer, shape.n_vocab)
    for name, numbers in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(numbers, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def byte_vocabulary(writer: GGUFWriter, n_vocab: int) -> None:
    """The byte-level vocabulary of ``gguf_files``; the last two tokens begin and end texts."""
    tokens, merges = vocabulary(n_vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.NORMAL] * (n_vocab - 2) + [TokenType.CONTROL] * 2)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(n_vocab - 2)
    writer.add_eos_token_id(n_vocab - 1)


def word_pieces(tokens: Sequence[str]) -> Callable[[GGUFWriter, int], None]:
    """A WordPiece vocabulary, as BERT's ``vocab.txt`` lists it: parts of words begin with ##."""

    def add(writer: GGUFWriter, n_vocab: int) -> None:
        del n_vocab
        controls = list(map(_is_control, tokens))
        marked = [
            one if control else one[2:] if one.startswith("##") else f"\u2581{one}"
            for one, control in zip(tokens, controls, strict=True)
        ]
        writer.add_tokenizer_model("bert")
        writer.add_tokenizer_pre("jina-v2-en")
        writer.add_token_list(marked)
        writer.add_token_types(
            [TokenType.CONTROL if control else TokenType.NORMAL for control in controls]
        )
        for key, token in (
            ("bos", "[CLS]"), ("eos", "[SEP]"), ("seperator", "[SEP]"), ("unknown", "[UNK]"),
            ("padding", "[PAD]"), ("cls", "[CLS]"), ("mask", "[MASK]"),
        ):  # fmt: skip
            writer.add_uint32(f"tokenizer.ggml.{key}_token_id", tokens.index(token))

    return add


def pieces_of(path: Path) -> list[str]:
    """The tokens of a GGUF file with a WordPiece vocabulary, as ``vocab.txt`` lists them."""
    field = GGUFReader(path).fields["tokenizer.ggml.tokens"]
    marked = [bytes(field.parts[at]).decode("utf-8") for at in field.data]
    return [
        one[1:] if one.startswith("\u2581") else one if _is_control(one) else f"##{one}"
        for one in marked
    ]


def _is_control(token: str) -> bool:
    return len(token) > 2 and token.startswith("[") and token.endswith("]")
