"""How a model is loaded, as options: for ``load``, ``serve --model`` and ``inspect``.

Each is a field of ``native.model_params.ModelParams``, which checks it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Final

import click

from actors.messages.exact import EXACT_NAMES, Exact
from native.model_params import KV_TYPES, POOLINGS, ROPE_SCALINGS, SPLIT_MODES, ModelParams
from runtime.cli.options import flag_of, section_option, with_options
from runtime.settings.load_options import WORDS, model_params

SECTION: Final = "How the model is loaded"
_WHOLE: Final = (
    "n_ctx", "n_batch", "n_ubatch", "n_seq_max", "main_gpu", "yarn_orig_ctx", "embed_tokens",
    "n_cpu_moe",
)  # fmt: skip
_NUMBERS: Final = (
    "rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast",
    "yarn_beta_slow",
)  # fmt: skip
_CHOICES: Final = {
    "split_mode": SPLIT_MODES,
    "type_k": KV_TYPES,
    "type_v": KV_TYPES,
    "rope_scaling": ROPE_SCALINGS,
    "pooling": POOLINGS,
}
_SWITCHES: Final = {
    "no_flash_attn": ("flash_attn", False, "without flash attention"),
    "no_mmap": ("use_mmap", False, "read the file instead of mapping it"),
    "mlock": ("use_mlock", True, WORDS["use_mlock"]),
    "vocab_only": ("vocab_only", True, WORDS["vocab_only"]),
    "cpu_moe": ("cpu_moe", True, WORDS["cpu_moe"]),
    "no_memory_check": ("check_memory", False, "load even what is estimated not to fit"),
}
_FILES: Final = ("lora", "control_vectors")


def _shares(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not a list of numbers; write for instance 3,1"
        ) from None


_option = functools.partial(section_option, SECTION)


def _number(name: str, kind: type, flag: str = "") -> Callable[..., Any]:
    metavar = "N" if kind is int else "X"
    return _option(flag or flag_of(name), name, type=kind, metavar=metavar, help=WORDS[name])


load_options: Final = with_options(
    [
        _number("n_threads", int, "--threads"),
        _number("n_threads_batch", int, "--threads-batch"),
        _number("n_gpu_layers", int),
        *(_number(name, int) for name in _WHOLE),
        *(_number(name, float) for name in _NUMBERS),
        *(_option(flag_of(name), type=click.Choice(allowed), help=WORDS[name])
          for name, allowed in _CHOICES.items()),
        *(_option(flag_of(name), is_flag=True, help=words)
          for name, (_, _, words) in _SWITCHES.items()),
        _option("--tensor-split", type=_shares, metavar="A,B,…", help=WORDS["tensor_split"]),
        _option("--lora", multiple=True, metavar="PATH[@SCALE]",
                help="apply this LoRA adapter; repeatable"),
        _option("--control-vector", "control_vectors", multiple=True, metavar="PATH[@SCALE]",
                help="apply this control vector; repeatable"),
        _option("--control-vector-layers", nargs=2, type=int, metavar="FIRST LAST",
                help=WORDS["control_vector_layers"]),
        _option("--override-tensor", "override_tensors", multiple=True, metavar="PATTERN=BUFFER",
                help=WORDS["override_tensors"] + "; repeatable"),
        _option("--override-kv", multiple=True, metavar="KEY=TYPE:VALUE",
                help=WORDS["override_kv"] + "; repeatable"),
        _option("--draft", "draft_path", metavar="PATH", help=WORDS["draft_path"]),
    ]
)  # fmt: skip
"""Every load option; ``params_from`` reads them."""


exact_option: Final = click.option(
    "--exact",
    type=click.Choice(EXACT_NAMES),
    default=Exact.REPEAT.value,
    help="what gives the same bits, unless a request names another level; always: none may "
    "(default: repeat)",
)


def params_from(given: Mapping[str, Any], where: str) -> ModelParams:
    """The options that were given, and defaults; a wrong one is a ``ConfigError``."""
    options: dict[str, Any] = {
        name: given[name]
        for name in ModelParams.__dataclass_fields__
        if given.get(name) not in (None, ()) and name not in (*_FILES, "vocab_only", "cpu_moe")
    }
    options |= {name: value for flag, (name, value, _) in _SWITCHES.items() if given.get(flag)}
    options |= {name: list(map(_adapter, given[name])) for name in _FILES if given.get(name)}
    return model_params(options, where)


def _adapter(text: str) -> tuple[str, float]:
    """``PATH`` or ``PATH@SCALE``; a path may hold an @ of its own."""
    path, separator, scale = text.rpartition("@")
    try:
        return (path, float(scale)) if separator and path else (text, 1.0)
    except ValueError:
        return (text, 1.0)
