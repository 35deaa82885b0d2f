"""How a model is loaded, as options: for ``load``, ``serve --model`` and ``inspect``.

Each is a field of ``native.model_params.ModelParams``, which checks it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Final

import click

from native.model_params import KV_TYPES, POOLINGS, ROPE_SCALINGS, SPLIT_MODES, ModelParams
from runtime.cli.options import flag_of, section_option, with_options
from runtime.settings.load_options import model_params

SECTION: Final = "How the model is loaded"
_WHOLE: Final = {
    "n_ctx": "context length in tokens; 0: as trained, if it fits",
    "n_batch": "rows of one step",
    "n_ubatch": "rows computed at once",
    "n_seq_max": "sequences at a time",
    "main_gpu": "the GPU, with --split-mode none",
    "yarn_orig_ctx": "context length that the model was trained with, for YaRN",
    "embed_tokens": "longest text that can be embedded",
}
_NUMBERS: Final = {
    "rope_freq_base": "base frequency of positions",
    "rope_freq_scale": "frequency scale of positions",
    "yarn_ext_factor": "YaRN: extrapolation mix",
    "yarn_attn_factor": "YaRN: scale of attention",
    "yarn_beta_fast": "YaRN: low correction",
    "yarn_beta_slow": "YaRN: high correction",
}
_CHOICES: Final = {
    "split_mode": (SPLIT_MODES, "how to spread the model over GPUs"),
    "type_k": (KV_TYPES, "type of keys in the KV cache"),
    "type_v": (KV_TYPES, "type of values in the KV cache"),
    "rope_scaling": (ROPE_SCALINGS, "scaling of positions"),
    "pooling": (POOLINGS, "how embeddings are pooled"),
}
_SWITCHES: Final = {
    "no_flash_attn": ("flash_attn", False, "without flash attention"),
    "no_mmap": ("use_mmap", False, "read the file instead of mapping it"),
    "mlock": ("use_mlock", True, "lock the weights in memory, so that they are never swapped"),
    "vocab_only": ("vocab_only", True, "no weights: the model only tokenises"),
    "no_memory_check": ("check_memory", False, "load even what is estimated not to fit"),
}


def _shares(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not a list of numbers; write for instance 3,1"
        ) from None


_option = functools.partial(section_option, SECTION)

load_options: Final = with_options(
    [
        _option("--threads", "n_threads", type=int, metavar="N", help="CPU threads"),
        _option("--threads-batch", "n_threads_batch", type=int, metavar="N",
                help="threads for prompts"),
        _option("--n-gpu-layers", type=int, metavar="N",
                help="layers on GPUs; negative: all (default)"),
        *(_option(flag_of(name), type=int, metavar="N", help=words)
          for name, words in _WHOLE.items()),
        *(_option(flag_of(name), type=float, metavar="X", help=words)
          for name, words in _NUMBERS.items()),
        *(_option(flag_of(name), type=click.Choice(allowed), help=words)
          for name, (allowed, words) in _CHOICES.items()),
        *(_option(flag_of(name), is_flag=True, help=words)
          for name, (_, _, words) in _SWITCHES.items()),
        _option("--tensor-split", type=_shares, metavar="A,B,…",
                help="share of each GPU, e.g. 3,1"),
        _option("--lora", multiple=True, metavar="PATH[@SCALE]",
                help="apply this LoRA adapter; repeatable"),
        _option("--draft", "draft_path", metavar="PATH", help="small model for speculation"),
    ]
)  # fmt: skip
"""Every load option; ``params_from`` reads them."""


def params_from(given: Mapping[str, Any], where: str) -> ModelParams:
    """The options that were given, and defaults; a wrong one is a ``ConfigError``."""
    options: dict[str, Any] = {
        name: given[name]
        for name in ModelParams.__dataclass_fields__
        if given.get(name) is not None and name not in ("lora", "vocab_only")
    }
    options |= {name: value for flag, (name, value, _) in _SWITCHES.items() if given.get(flag)}
    if given.get("lora"):
        options["lora"] = [_adapter(text) for text in given["lora"]]
    return model_params(options, where)


def _adapter(text: str) -> tuple[str, float]:
    """``PATH`` or ``PATH@SCALE``; a path may hold an @ of its own."""
    path, separator, scale = text.rpartition("@")
    try:
        return (path, float(scale)) if separator and path else (text, 1.0)
    except ValueError:
        return (text, 1.0)
