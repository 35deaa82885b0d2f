"""The flags that say how a model is loaded: for ``load``, ``serve --model`` and ``inspect``.

Each is an option of ``native.model_params.ModelParams``, which checks it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from native.model_params import KV_TYPES, POOLINGS, ROPE_SCALINGS, SPLIT_MODES, ModelParams
from runtime.settings.load_options import model_params

_WHOLE = {
    "n_ctx": "context length in tokens; 0: as trained, if it fits",
    "n_batch": "rows of one step",
    "n_ubatch": "rows computed at once",
    "n_seq_max": "sequences at a time",
    "main_gpu": "the GPU, with --split-mode none",
    "yarn_orig_ctx": "context length that the model was trained with, for YaRN",
    "embed_tokens": "longest text that can be embedded",
}
_NUMBERS = {
    "rope_freq_base": "base frequency of positions",
    "rope_freq_scale": "frequency scale of positions",
    "yarn_ext_factor": "YaRN: extrapolation mix",
    "yarn_attn_factor": "YaRN: scale of attention",
    "yarn_beta_fast": "YaRN: low correction",
    "yarn_beta_slow": "YaRN: high correction",
}
_WORDS = {
    "split_mode": (SPLIT_MODES, "how to spread the model over GPUs"),
    "type_k": (KV_TYPES, "type of keys in the KV cache"),
    "type_v": (KV_TYPES, "type of values in the KV cache"),
    "rope_scaling": (ROPE_SCALINGS, "scaling of positions"),
    "pooling": (POOLINGS, "how embeddings are pooled"),
}
_SWITCHES = {
    "--no-flash-attn": ("flash_attn", False, "without flash attention"),
    "--no-mmap": ("use_mmap", False, "read the file instead of mapping it"),
    "--mlock": ("use_mlock", True, "keep the weights in memory, never swapped"),
    "--vocab-only": ("vocab_only", True, "no weights: it only tokenises"),
    "--no-memory-check": ("check_memory", False, "load even what is estimated not to fit"),
}


def add_load_flags(command: argparse.ArgumentParser) -> None:
    """Add every load option to a command."""
    group = command.add_argument_group("how the model is loaded")
    group.add_argument("--threads", dest="n_threads", type=int, metavar="N", help="CPU threads")
    group.add_argument(
        "--threads-batch", dest="n_threads_batch", type=int, metavar="N", help="threads for prompts"
    )
    group.add_argument(
        "--n-gpu-layers", type=int, metavar="N", help="layers on GPUs; negative: all (default)"
    )
    for name, words in _WHOLE.items():
        group.add_argument(_flag(name), dest=name, type=int, metavar="N", help=words)
    for name, words in _NUMBERS.items():
        group.add_argument(_flag(name), dest=name, type=float, metavar="X", help=words)
    for name, (allowed, words) in _WORDS.items():
        group.add_argument(_flag(name), dest=name, choices=allowed, help=words)
    for flag, (name, value, words) in _SWITCHES.items():
        group.add_argument(flag, dest=name, action="store_const", const=value, help=words)
    group.add_argument(
        "--tensor-split", type=_numbers, metavar="A,B,…", help="share of each GPU, e.g. 3,1"
    )
    group.add_argument(
        "--lora", action="append", type=_adapter, metavar="PATH[@SCALE]",
        help="apply this LoRA adapter; repeatable",
    )  # fmt: skip
    group.add_argument(
        "--draft", dest="draft_path", metavar="PATH", help="small model for speculation"
    )


def params_from(arguments: argparse.Namespace, where: str) -> ModelParams:
    """What the flags say, and defaults; a wrong one is a ``ConfigError``."""
    given = vars(arguments)
    names = ModelParams.__dataclass_fields__
    options: dict[str, Any] = {name: given[name] for name in names if given.get(name) is not None}
    return model_params(options, where)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _adapter(text: str) -> Sequence[Any]:
    """``PATH`` or ``PATH@SCALE``; a path may hold an @ of its own."""
    path, separator, scale = text.rpartition("@")
    try:
        return (path, float(scale)) if separator and path else (text, 1.0)
    except ValueError:
        return (text, 1.0)
