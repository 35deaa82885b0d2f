"""BERT in numpy, from its paper: what embeddings and scores must be, computed in another way."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tests.support.bert_file import BertShape

Matrix = np.ndarray[Any, np.dtype[np.float64]]


class Bert:
    """The forward pass, in double precision. ``tensors`` have the names of GGUF."""

    def __init__(
        self,
        shape: BertShape,
        tensors: Mapping[str, np.ndarray[Any, Any]],
        gelu: Callable[[Matrix], Matrix] | None = None,
    ) -> None:
        self._shape = shape
        self._tensors = {name: one.astype(np.float64) for name, one in tensors.items()}
        self._gelu = gelu or gelu_tanh

    def rows(self, tokens: Sequence[int]) -> Matrix:
        """The vector of each token: (tokens, n_embd)."""
        weights = self._tensors
        x = weights["token_embd.weight"][list(tokens)] + weights["token_types.weight"][0]
        x = self._norm("token_embd_norm", x + weights["position_embd.weight"][: len(tokens)])
        for layer in range(self._shape.n_layer):
            at = f"blk.{layer}"
            x = self._norm(f"{at}.attn_output_norm", x + self._attention(at, x))
            inner = self._gelu(self._linear(f"{at}.ffn_up", x))
            x = self._norm(f"{at}.layer_output_norm", x + self._linear(f"{at}.ffn_down", inner))
        return x

    def embed(self, tokens: Sequence[int], pooling: str) -> Matrix:
        rows = self.rows(tokens)
        match pooling:
            case "cls":
                return rows[0]
            case "last":
                return rows[-1]
            case "mean":
                return np.asarray(rows.mean(axis=0))
            case _:
                return rows.reshape(-1)

    def scores(self, tokens: Sequence[int]) -> Matrix:
        """Of the head that ranks: a layer with tanh over the first token, then one number each."""
        pooled = np.tanh(self._linear("cls", self.rows(tokens)[:1]))
        return np.asarray(self._linear("cls.output", pooled)[0])

    def _attention(self, at: str, x: Matrix) -> Matrix:
        n_head = self._shape.n_head
        size = self._shape.n_embd // n_head

        def heads(name: str) -> Matrix:
            return self._linear(f"{at}.{name}", x).reshape(len(x), n_head, size).swapaxes(0, 1)

        scores = heads("attn_q") @ heads("attn_k").swapaxes(1, 2) / size**0.5
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        joined = (shares @ heads("attn_v")).swapaxes(0, 1).reshape(len(x), -1)
        return self._linear(f"{at}.attn_output", joined)

    def _linear(self, name: str, x: Matrix) -> Matrix:
        return np.asarray(x @ self._tensors[f"{name}.weight"].T + self._tensors[f"{name}.bias"])

    def _norm(self, name: str, x: Matrix) -> Matrix:
        centred = x - x.mean(axis=-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self._shape.epsilon)
        return np.asarray(
            centred / spread * self._tensors[f"{name}.weight"] + self._tensors[f"{name}.bias"]
        )


def gelu_tanh(x: Matrix) -> Matrix:
    """The approximation that llama.cpp computes."""
    return np.asarray(0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))))


def word_piece_ids(text: str, pieces: Sequence[str]) -> list[int]:
    """Token ids of a text in lower case, by the longest piece first, without those around it."""
    known = {piece: at for at, piece in enumerate(pieces)}
    plain = unicodedata.normalize("NFD", text.lower())
    words, word = [], ""
    for character in plain:
        kind = unicodedata.category(character)
        if kind == "Mn":
            continue
        is_sign = kind[0] == "P" or (character.isascii() and kind[0] == "S")
        if character.isspace() or is_sign:
            words += [word, "" if character.isspace() else character]
            word = ""
        else:
            word += character
    found: list[int] = []
    for one in filter(None, [*words, word]):
        found += _pieces_of(one, known)
    return found


def _pieces_of(word: str, known: Mapping[str, int]) -> list[int]:
    found: list[int] = []
    start = 0
    while start < len(word):
        before = "##" if start else ""
        ends = range(len(word), start, -1)
        end = next((at for at in ends if before + word[start:at] in known), None)
        if end is None:
            return [known["[UNK]"]]
        found.append(known[before + word[start:end]])
        start = end
    return found
