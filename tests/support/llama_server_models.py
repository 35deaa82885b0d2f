"""Small models in place of those that llama-server's own tests download.

Random weights, so what they write means nothing; they are as small as those, and their
vocabularies are of the same kinds: SentencePiece with bytes, and WordPiece.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from gguf import GGUFWriter, PoolingType, TokenType

import runtime.embedded
from tests.support.bert_file import BertShape, random_weights, word_pieces, write_bert

SPACE: Final = "\u2581"
N_MERGES: Final = 110
"""So that texts have about as many tokens as with the vocabulary of the tests' own model."""
FIM: Final = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
CHATML: Final = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""What llama-server takes for a model without a template."""
_WORDS: Final = (
    "i believe the meaning of life is a this test hello world goodbye machine learning what which "
    "city paris joke about ai write from very long prompt will not be truncated another string"
)
_EMBD, _FF, _LAYERS, _HEADS = 64, 128, 2, 4
_BERT: Final = BertShape(n_embd=64, n_ff=128, n_positions=512)


def book() -> str:
    """A text to learn pieces from."""
    return (Path(runtime.embedded.__file__).parent / "book.txt").read_text(encoding="utf-8")


def story_model(path: Path) -> Path:
    """Completes texts and conversations; never writes a control token by itself."""
    return _write_llama(path, ())


def infill_model(path: Path) -> Path:
    """The same with tokens for what surrounds a gap."""
    return _write_llama(path, FIM)


def embedding_model(path: Path) -> Path:
    tokens = _word_vocabulary()
    shape = BertShape(len(tokens), _BERT.n_embd, _BERT.n_ff, n_positions=_BERT.n_positions)
    return write_bert(
        path, shape, random_weights(shape), word_pieces(tokens), pooling=PoolingType.CLS
    )


def ranking_model(path: Path) -> Path:
    tokens = _word_vocabulary()
    shape = BertShape(len(tokens), _BERT.n_embd, _BERT.n_ff, n_positions=_BERT.n_positions)
    weights = random_weights(shape, n_scores=1)
    return write_bert(path, shape, weights, word_pieces(tokens), pooling=PoolingType.RANK)


WRITERS: Final[dict[str, Callable[[Path], Path]]] = {
    "story": story_model,
    "infill": infill_model,
    "embedding": embedding_model,
    "ranking": ranking_model,
}


def _word_vocabulary() -> list[str]:
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'\"-()"
    words = [one for one in dict.fromkeys(_WORDS.split()) if len(one) > 1]
    controls = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return [*controls, *letters, *(f"##{one}" for one in letters), *words]


@functools.cache
def _pieces(text: str, n_merges: int) -> list[str]:
    """Characters of a text, then the pairs that are most frequent, as byte-pair encoding does."""
    words = Counter(SPACE + one for one in re.findall(r"\S+", text))
    split = {word: list(word) for word in words}
    visible = {chr(code) for code in range(33, 127)}
    found = [SPACE, "\n", *sorted(visible)]
    for _ in range(n_merges):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            parts = split[word]
            for pair in itertools.pairwise(parts):
                pairs[pair] += count
        first, second = max(pairs, key=lambda pair: (pairs[pair], pair))
        found.append(first + second)
        for word, parts in split.items():
            split[word] = list(_merged(parts, first, second))
    return found


def _merged(parts: list[str], first: str, second: str) -> Iterator[str]:
    at = 0
    while at < len(parts):
        if parts[at : at + 2] == [first, second]:
            yield first + second
            at += 2
        else:
            yield parts[at]
            at += 1


def _write_llama(path: Path, controls: tuple[str, ...]) -> Path:
    pieces = _pieces(book(), N_MERGES)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    kinds += [TokenType.BYTE] * 256 + [TokenType.NORMAL] * len(pieces)
    tokens += controls
    kinds += [TokenType.CONTROL] * len(controls)
    writer = GGUFWriter(path, "llama")
    writer.add_name("random story")
    writer.add_context_length(8192)
    writer.add_embedding_length(_EMBD)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_FF)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_EMBD // _HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(at) for at in range(len(tokens))])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHATML)
    is_text = np.array([kind == TokenType.NORMAL for kind in kinds])
    for name, numbers in _weights(is_text):
        writer.add_tensor(name, np.ascontiguousarray(numbers, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _weights(is_text: Any) -> Iterator[tuple[str, Any]]:
    """Number 0 of each state is the same everywhere, and by it texts are likely, others not."""
    rng = np.random.default_rng(42)
    n_vocab = len(is_text)

    def random(*dims: int, size: float) -> Any:
        return rng.standard_normal(dims, dtype=np.float32) * np.float32(size)

    embedding, output = random(n_vocab, _EMBD, size=1.0), random(n_vocab, _EMBD, size=0.4)
    embedding[:, 0] = 4.0
    output[:, 0] = np.where(is_text, 4.0, -4.0)
    yield "token_embd.weight", embedding
    yield "output.weight", output
    yield "output_norm.weight", np.ones(_EMBD)
    for layer in range(_LAYERS):
        for name, rows, columns in (
            ("attn_q", _EMBD, _EMBD), ("attn_k", _EMBD, _EMBD), ("attn_v", _EMBD, _EMBD),
            ("attn_output", _EMBD, _EMBD), ("ffn_gate", _FF, _EMBD), ("ffn_up", _FF, _EMBD),
            ("ffn_down", _EMBD, _FF),
        ):  # fmt: skip
            numbers = random(rows, columns, size=0.2)
            if name in ("attn_output", "ffn_down"):
                numbers[0] = 0.0
            yield f"blk.{layer}.{name}.weight", numbers
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{layer}.{name}.weight", np.ones(_EMBD)
