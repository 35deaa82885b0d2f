"""Load options: what each means, and values by name, checked, with whole paths.

The reference of the configuration and the help of the command line show the same words.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from native.errors import InvalidParam
from native.model_params import Adapter
from native.params import ModelParams
from runtime.errors import ConfigError
from runtime.settings.user_paths import user_path

WORDS: Final[Mapping[str, str]] = {
    "n_ctx": "context length in tokens; 0: as trained, if it fits",
    "n_batch": "rows of one step",
    "n_ubatch": "rows computed at once",
    "n_seq_max": "sequences at a time",
    "n_threads": "CPU threads; default: the physical cores that this process may use",
    "n_threads_batch": "threads for prompts; default: the same",
    "n_gpu_layers": "layers on GPUs; negative: all (default)",
    "main_gpu": "the GPU, with split_mode none",
    "split_mode": "how to spread the model over GPUs",
    "tensor_split": "share of each GPU, e.g. 3,1; default: by free memory",
    "type_k": "type of keys in the KV cache",
    "type_v": "type of values in the KV cache",
    "flash_attn": "flash attention",
    "use_mmap": "map the file instead of reading it",
    "use_mlock": "lock the weights in memory, so that they are never swapped",
    "rope_scaling": "scaling of positions",
    "rope_freq_base": "base frequency of positions",
    "rope_freq_scale": "frequency scale of positions",
    "yarn_ext_factor": "YaRN: extrapolation mix",
    "yarn_attn_factor": "YaRN: scale of attention",
    "yarn_beta_fast": "YaRN: low correction",
    "yarn_beta_slow": "YaRN: high correction",
    "yarn_orig_ctx": "context length that the model was trained with, for YaRN",
    "vocab_only": "no weights: the model only tokenises",
    "lora": "LoRA adapters to apply: paths, or pairs of path and scale",
    "control_vectors": "control vectors to apply: paths, or pairs of path and scale",
    "control_vector_layers": "first and last layer that they change, from 1; default: all",
    "override_tensors": "where tensors lie: PATTERN=BUFFER, e.g. ffn_.*_exps=CPU; the first "
    "pattern that fits counts",
    "n_cpu_moe": "keep the expert weights of so many first layers on the CPU",
    "cpu_moe": "keep all expert weights on the CPU",
    "override_kv": "values in place of the file's own: KEY=TYPE:VALUE, TYPE int, float, bool or "
    "str",
    "draft_path": "small model of the same vocabulary, for speculation",
    "embed_tokens": "longest text that can be embedded",
    "pooling": "how the vectors of a text's tokens become one",
    "check_memory": "refuse to load what is estimated not to fit",
}


def model_params(options: Mapping[str, Any], where: str = "model") -> ModelParams:
    """Options by name, and defaults; a wrong value is a ``ConfigError`` that names the option."""
    try:
        params = ModelParams(**options)
    except InvalidParam as error:
        raise ConfigError(f"{where}.{error.name}", str(error)) from error
    draft = params.draft_path
    return dataclasses.replace(
        params,
        lora=_whole_paths(params.lora, f"{where}.lora"),
        control_vectors=_whole_paths(params.control_vectors, f"{where}.control_vectors"),
        draft_path=None if draft is None else str(user_path(draft, f"{where}.draft_path")),
    )


def _whole_paths(given: tuple[Adapter, ...], where: str) -> tuple[Adapter, ...]:
    return tuple((str(user_path(path, where)), scale) for path, scale in given)
