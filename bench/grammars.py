"""Schemas of tools: what they cost until the first token, for each token, and other requests.

On the vocabulary of the published model (262,144 tokens) where it is here. ``llguidance``, an
engine for the same purpose, is measured beside it where it is installed: it computes the mask of
the whole vocabulary for each token, while here the chosen token is checked, and a mask computed
only if the check fails.
"""

from __future__ import annotations

import importlib
import itertools
import json
import random
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from bench.report import Figure, figure
from bench.stats import paired_differences, summarise
from bench.subjects import MODEL_ID, Subject, load, node_for_measuring, published, subjects
from bench.tool_sets import Schema, call_schema, nested_schema, random_value, tool_set
from native import load_backend
from native.backend import Backend
from native.params import SamplingParams
from native.schema.convert import convert
from runtime import Node, TokenEvent
from runtime.cli.progress import ProgressLine
from runtime.client.grammar import GrammarSource

NAME = "grammars"
_SAMPLING = SamplingParams(temperature=1.0, top_k=40)
_TRIES = 3
"""Of each question; the fastest counts, so that a pause of the machine does not."""


def main(quick: bool, model: Path | None = None) -> list[Figure]:
    """Measure one subject."""
    subject = (([] if quick or model else published()) or subjects(quick=quick, model=model))[0]
    n_bytes, runs = (8_000, 2) if quick else (80_000, 15)
    cases = {
        "5 tools": call_schema(tool_set(n_tools=5)),
        f"{n_bytes // 1000} KB of tools": call_schema(tool_set(n_bytes=n_bytes)),
        "objects 20 deep": nested_schema(20),
    }
    figures: list[Figure] = []
    with ProgressLine(f"{NAME} {subject.name}") as progress:
        backend = load_backend("llama", subject.path, replace(subject.params, n_ctx=512))
        try:
            peer = _Peer.of(backend)
            for number, (name, schema) in enumerate(cases.items()):
                progress.share(0.6 * number / len(cases))
                figures += _alone(backend, peer, f"{subject.name}, {name}", schema, quick=quick)
        finally:
            backend.close()
        figures += _on_a_node(subject, list(cases.values())[1], runs, n_bytes)
    return figures


# --- one grammar, without a node ------------------------------------------------------------------


def _alone(
    backend: Backend, peer: _Peer | None, variant: str, schema: Schema, *, quick: bool
) -> list[Figure]:
    text = json.dumps(schema)
    rules, convert_ms = _timed(lambda: convert(text))
    params = replace(_SAMPLING, grammar=rules)
    _, compile_ms = _timed(lambda: backend.compile_grammar(params))
    _, begin_ms = _timed(lambda: backend.new_sampler(params))
    rng = random.Random(1)
    documents = [
        backend.tokenize(json.dumps(random_value(schema, rng)), add_special=False)
        for _ in range(1 if quick else 4)
    ]
    checks, masks = _per_token(backend, params, documents)
    found = [
        figure(NAME, variant, "convert_ms", "ms", summarise([convert_ms]), f"{len(text)} bytes"),
        figure(NAME, variant, "compile_ms", "ms", summarise([compile_ms])),
        figure(NAME, variant, "begin_ms", "ms", summarise([begin_ms]), "compiled before"),
        figure(NAME, variant, "check_us", "us", summarise(checks), "a token; and its acceptance"),
        figure(NAME, variant, "mask_us", "us", summarise(masks), "where the choice is refused"),
    ]
    return found + (peer.figures(variant, text, documents) if peer else [])


def _per_token(
    backend: Backend, params: SamplingParams, documents: Sequence[Sequence[int]]
) -> tuple[list[float], list[float]]:
    """Microseconds of a token that is allowed, and of masks, beyond those of a plain choice."""
    n_vocab = backend.info.n_vocab
    rng = random.Random(2)
    logits = array("f", (rng.random() for _ in range(n_vocab)))
    plain = backend.new_sampler(_SAMPLING)
    base = median(_fastest(lambda: backend.sample_from(logits, plain, 0)) for _ in range(20))
    checks: list[float] = []
    masks: list[float] = []
    for tokens in documents:
        sampler = backend.new_sampler(params)
        for token in tokens:
            usual, logits[token] = logits[token], 50.0
            check = _fastest(lambda s=sampler: backend.sample_from(logits, s, 0)) - base  # type: ignore[misc]
            logits[token] = usual
            both = _fastest(lambda s=sampler: backend.sample_from(logits, s, 0))  # type: ignore[misc]
            masks.append(max(both - 2 * base, 0.0))
            began = time.perf_counter()
            sampler.accept(token)
            checks.append(max(check, 0.0) + 1e6 * (time.perf_counter() - began))
    return checks, masks


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """The result, and the milliseconds."""
    began = time.perf_counter()
    result = work()
    return result, 1e3 * (time.perf_counter() - began)


def _fastest(work: Callable[[], object]) -> float:
    """Microseconds."""
    return min(1e3 * _timed(work)[1] for _ in range(_TRIES))


class _Peer:
    """llguidance, with the vocabulary of a model."""

    def __init__(self, library: Any, backend: Backend) -> None:
        self._library = library
        pieces = [backend.piece(token) for token in range(backend.info.n_vocab)]

        class Words:
            eos_token_id = min(backend.info.eog_tokens)
            bos_token_id = None
            tokens = [piece or b"\xff<%d>" % token for token, piece in enumerate(pieces)]  # noqa: RUF012
            special_token_ids = [token for token, piece in enumerate(pieces) if not piece]  # noqa: RUF012

            def __call__(self, text: str) -> list[int]:
                return backend.tokenize(text, add_special=False)

        self._tokenizer, self._begin_ms = _timed(
            lambda: library.LLTokenizer(library.TokenizerWrapper(Words()), n_vocab=len(pieces))
        )

    @classmethod
    def of(cls, backend: Backend) -> _Peer | None:
        try:
            return cls(importlib.import_module("llguidance"), backend)
        except ImportError:
            return None

    def figures(self, variant: str, text: str, documents: Sequence[Sequence[int]]) -> list[Figure]:
        library = self._library
        grammar = library.LLMatcher.grammar_from_json_schema(text)
        first, compile_ms = _timed(lambda: library.LLMatcher(self._tokenizer, grammar))
        if first.is_error():
            raise RuntimeError(f"llguidance refuses {variant}: {first.get_error()}")
        masks: list[float] = []
        for tokens in documents:
            matcher = library.LLMatcher(self._tokenizer, grammar)
            for token in tokens:
                masks.append(1e3 * _timed(matcher.compute_bitmask)[1])
                if not matcher.consume_token(token):
                    break
        return [
            figure(NAME, variant, "llguidance_compile_ms", "ms", summarise([compile_ms])),
            figure(NAME, variant, "llguidance_mask_us", "us", summarise(masks), "each token"),
        ]


# --- on a node ------------------------------------------------------------------------------------


def _on_a_node(subject: Subject, schema: Schema, runs: int, n_bytes: int) -> list[Figure]:
    variant = f"{subject.name}, {n_bytes // 1000} KB of tools, on a node"
    with node_for_measuring() as node:
        load(node, subject)
        how: dict[str, Any] = {"max_tokens": 1, "seed": 1}
        node.complete(MODEL_ID, "As JSON:", **how)
        _, new_ms = _timed(lambda: node.complete(MODEL_ID, "As JSON:", json_schema=schema, **how))
        bound, free = [], []
        for _ in range(runs):
            free.append(_timed(lambda: node.complete(MODEL_ID, "As JSON:", **how))[1])
            bound.append(
                _timed(lambda: node.complete(MODEL_ID, "As JSON:", json_schema=schema, **how))[1]
            )
        later = summarise(paired_differences(bound, free))
        quiet, beside = _gaps(node, None), []
        for number in range(max(runs // 5, 1)):
            beside.append(_gaps(node, _renamed(schema, number)))
    return [
        figure(NAME, variant, "new_ms", "ms", summarise([new_ms]), "until the first token"),
        figure(NAME, variant, "known_later_ms", "ms", later, "than without; goal 1"),
        figure(NAME, variant, "gap_quiet_ms", "ms", summarise([quiet])),
        figure(NAME, variant, "gap_beside_ms", "ms", summarise(beside), "while a new one is read"),
    ]


def _renamed(schema: Schema, number: int) -> Schema:
    """Another schema of the same size, which was not seen before."""
    return {**schema, "title": f"number {number}", "$defs": {f"d{number}": {}}, "anyOf": [
        *schema["anyOf"], {"const": number}
    ]}  # fmt: skip


def _gaps(node: Node, schema: Schema | None) -> float:
    """The longest time between two tokens of a stream, while a request with this schema begins."""
    if schema is not None:  # what it costs this process is not measured
        GrammarSource("json_schema", json.dumps(schema)).rules()
    times: list[float] = []
    other: threading.Thread | None = None
    for event in node.stream(MODEL_ID, "Once upon a time", max_tokens=200):
        if isinstance(event, TokenEvent):
            times.append(time.perf_counter())
            if schema is not None and len(times) == 20:
                other = threading.Thread(
                    target=lambda: node.complete(
                        MODEL_ID, "As JSON:", json_schema=schema, max_tokens=1
                    )
                )
                other.start()
    if other is not None:
        other.join()
    return max((1e3 * (b - a) for a, b in itertools.pairwise(times)), default=0.0)
