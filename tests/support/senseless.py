"""Invalid values of every kind, and every public method with valid arguments."""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import fractions
import itertools
import math
from pathlib import Path
from typing import Any, Final

import numpy

from runtime import AsyncNode, Node
from runtime.client.client import Client
from supervision.messages import ReportStatus

TALK: Final = [{"role": "user", "content": "Hi"}]
KEY: Final = "ab" * 32


class _Hostile:
    """An object whose every special method raises."""

    def __len__(self) -> int:
        raise RuntimeError("no length")

    def __iter__(self) -> Any:
        raise RuntimeError("no elements")

    def __repr__(self) -> str:
        raise RuntimeError("no text")

    def __bool__(self) -> bool:
        raise RuntimeError("no truth")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    __hash__ = None  # type: ignore[assignment]


def _deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(5000):
        value = [value]
    return value


SENSELESS: Final[dict[str, Any]] = {
    "~nobodyhere": "~nobodyhere/x.gguf",
    "None": None,
    "True": True,
    "0": 0,
    "-1": -1,
    "5": 5,
    "10**30": 10**30,
    "2.5": 2.5,
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "1e300": 1e300,
    "1j": 1j,
    "Decimal": decimal.Decimal("2.5"),
    "Decimal nan": decimal.Decimal("sNaN"),
    "Fraction": fractions.Fraction(1, 3),
    "empty": "",
    "'5'": "5",
    "word": "word",
    "NUL": "a\0b",
    "long": "x" * 100_000,
    "surrogate": "a\ud83db",
    "escaped byte": "a\udcffb",
    "bytes": b"Once",
    "no UTF-8": b"\xff\xfe",
    "no bytes": b"",
    "bytearray": bytearray(b"ab"),
    "memoryview": memoryview(b"ab"),
    "[]": [],
    "[None]": [None],
    "['a']": ["a"],
    "[1.5]": [1.5],
    "[True]": [True],
    "[-1]": [-1],
    "[2**40]": [2**40],
    "[[1]]": [[1]],
    "[{}]": [{}],
    "[1, 'a']": [1, "a"],
    "deep": _deep(),
    "{}": {},
    "{1: 2}": {1: 2},
    "{'a': {1}}": {"a": {1}},
    "{(): 0}": {(): 0},
    "set": {1},
    "range": range(1, 4),
    "endless": range(10**15),
    "count": itertools.count(),
    "generator": (one for one in (1, 2)),
    "array": array.array("i", [1, 2]),
    "deque": collections.deque([1, 2]),
    "numpy 0-d": numpy.array(3),
    "numpy ids": numpy.array([1, 2, 3]),
    "numpy 2-d": numpy.array([[1, 2], [3, 4]]),
    "numpy floats": numpy.array([1.5, 2.5]),
    "numpy texts": numpy.array(["a", "b"]),
    "numpy objects": numpy.array([None, "b"]),
    "numpy int": numpy.int64(2),
    "numpy float": numpy.float32(0.5),
    "numpy bool": numpy.bool_(True),
    "object": object(),
    "class": int,
    "function": len,
    "module": math,
    "exception": ValueError("x"),
    "date": datetime.date(2020, 1, 1),
    "Path": Path("/nowhere/x.gguf"),
    "hostile": _Hostile(),
}

_OPTIONS: Final[dict[str, Any]] = {
    "max_tokens": 1,
    "stop": "x",
    "parent_key": KEY,
    "parse_special": False,
    "timeout_s": 20,
    "session": "s",
    "continues": False,
    "speculation": "off",
    "exact": "repeat",
    "thinking": False,
    "thinking_budget_tokens": 3,
    "tool_calls": False,
    "resumed_events": False,
    "salt": b"s",
    "queue_events": False,
    "drop_live": False,
    "echo": False,
    "samplers": "kt",
    "top_n_sigma": 1.0,
    "dynatemp_range": 0.5,
    "dynatemp_exponent": 1.0,
    "min_keep": 1,
    "ignore_eos": False,
    "sampling": None,
    "temperature": 0.5,
    "top_k": 3,
    "top_p": 0.9,
    "seed": 1,
    "repeat_last_n": 5,
    "dry_sequence_breakers": ["a"],
    "logit_bias": {5: -1.0},
    "grammar": None,
    "json_schema": None,
    "response_format": None,
    "logprobs": None,
    "top_logprobs": None,
    "mirostat": 0,
    "no_such_option": None,
}
_CHAT: Final[dict[str, Any]] = {
    "tools": None,
    "documents": None,
    "template_kwargs": None,
    "chat_template_kwargs": None,
    "enable_thinking": None,
    "reasoning_effort": None,
    "continue_final_message": None,
    "max_tokens": 1,
    "timeout_s": 20,
}

MODEL_METHODS: Final[dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "complete": ({"model": "stub", "prompt": "a"}, _OPTIONS),
    "stream": ({"model": "stub", "prompt": "a"}, {"max_tokens": 1, "stop": None}),
    "complete_many": (
        {"model": "stub", "prompts": ["a", [65]]},
        {"n": 2, "max_tokens": 1, "timeout_s": 20, "seed": 1, "echo": True, "session": None},
    ),
    "chat": ({"model": "stub", "messages": TALK}, _CHAT),
    "chat_many": ({"model": "stub", "messages": TALK}, {"n": 2, "max_tokens": 1, "tools": None}),
    "stream_chat": ({"model": "stub", "messages": TALK}, {"max_tokens": 1, "tools": None}),
    "infill": (
        {"model": "stub", "prefix": "a", "suffix": "b"},
        {
            "extra": {"c.py": "d"},
            "repository": "r",
            "file": "f",
            "suffix_first": False,
            "max_tokens": 1,
        },
    ),
    "stream_infill": (
        {"model": "stub", "prefix": "a", "suffix": "b"},
        {"extra": None, "max_tokens": 1},
    ),
    "prefill_only": ({"model": "stub", "prompt": "a"}, {"timeout_s": 20}),
    "continue_session": ({"model": "stub", "session": "s", "more": "b"}, {"max_tokens": 1}),
}
"""Those that generate: positional arguments, and keywords."""
NODE_METHODS: Final[dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    **MODEL_METHODS,
    "tokenize": ({"model": "stub", "text": "a"}, {"add_special": True, "parse_special": False}),
    "detokenize": ({"model": "stub", "tokens": [65]}, {"special": False}),
    "detokenize_bytes": ({"model": "stub", "tokens": [65]}, {"special": False}),
    "token_pieces": ({"model": "stub", "tokens": [65]}, {}),
    "apply_chat_template": (
        {"model": "stub", "messages": TALK},
        {**dict.fromkeys(tuple(_CHAT)[:4]), "add_generation_prompt": None},
    ),
    "verify_thinking": ({"model": "stub", "content": b"a", "signature": b"b"}, {}),
    "embed": (
        {"model": "stub", "inputs": "a"},
        {"pooling": "mean", "normalise": True, "timeout_s": 20},
    ),
    "rerank": (
        {"model": "stub", "query": "a", "documents": ["b", "c"]},
        {"top_n": 1, "timeout_s": 20},
    ),
    "draft_tokens": ({"model": "stub", "prefix": "a", "most": 1}, {"timeout_s": 20}),
    "verify": (
        {"model": "stub", "prefix": [65], "candidates": [66]},
        {"k": 1, "timeout_s": 20},
    ),
    "end_session": ({"model": "stub", "session": "s"}, {"salt": b"s"}),
    "list_sessions": ({"model": "stub"}, {}),
    "evict": ({"model": "stub"}, {}),
    "match_prefix": (
        {"model": "stub", "prompt": "a"},
        {"parse_special": False, "salt": None},
    ),
    "list_cached_prefixes": ({"model": "stub", "prompt": "a"}, {}),
    "load_adapter": ({"model": "stub", "path": "/nowhere/a.gguf"}, {"scale": 1.0}),
    "unload_adapter": ({"model": "stub", "adapter": 1}, {}),
    "set_adapter_scale": ({"model": "stub", "adapter": 1, "scale": 1.0}, {}),
    "list_adapters": ({"model": "stub"}, {}),
    "vram_info": ({"model": "stub"}, {}),
    "model_info": ({"model": "stub"}, {}),
    "phase": ({"model": "stub"}, {}),
    "pending_len": ({"model": "stub"}, {}),
    "known_models": ({}, {}),
    "set_keep_alive": ({"model": "stub", "seconds": -1.0}, {}),
    "queue_depth": ({"model": "stub"}, {}),
    "last_cache_hit": ({"model": "stub"}, {}),
    "load": (
        {"model": "stub", "path": "/nowhere/x.gguf"},
        {
            "progress": None,
            "backend": "llama",
            "thinking_markers": None,
            "tool_call_markers": None,
            "n_ctx": 512,
            "n_threads": 1,
            "n_gpu_layers": 0,
            "tensor_split": None,
            "type_k": "f16",
            "flash_attn": True,
            "rope_scaling": "model",
            "rope_freq_base": None,
            "lora": [],
            "control_vectors": [],
            "control_vector_layers": None,
            "override_tensors": [],
            "n_cpu_moe": 0,
            "cpu_moe": False,
            "override_kv": [],
            "draft_path": None,
            "pooling": "model",
            "check_memory": True,
            "exact": "repeat",
        },
    ),
    "unload": ({"model": "nowhere"}, {"drain_s": 0.0}),
    "models": ({}, {}),
    "status": ({}, {}),
    "tree": ({}, {"vitals": False}),
    "ready": ({"model": "nowhere"}, {}),
    "directory": ({}, {}),
    "reports": ({}, {}),
    "report_of": ({"actor": "nowhere"}, {}),
    "ask": ({"target": "registry", "message": ReportStatus("a")}, {}),
}
"""Of ``Node`` and ``AsyncNode``."""
NOT_CALLED: Final = {"start", "attach", "stop", "close"}
"""They begin and end a node; tried by themselves."""


def public_methods(cls: type) -> set[str]:
    """Names of what users call."""
    found = {name for name in dir(cls) if not name.startswith("_")}
    return {name for name in found if callable(getattr(cls, name))}


def covered() -> dict[type, set[str]]:
    """Every public method of each class, and none that the tables lack."""
    return {
        Node: set(NODE_METHODS) | NOT_CALLED,
        AsyncNode: set(NODE_METHODS) | NOT_CALLED,
        Client: set(NODE_METHODS),
    }
