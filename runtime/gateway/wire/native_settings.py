"""What a reply is generated with, as llama-server lists it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from native.sampling_params import SamplingParams
from runtime.client.sampling_options import sampling_from_options
from runtime.gateway.wire.sampling import Options

_NOT_SAMPLING: Final = frozenset(
    {"stop", "session", "parent_key", "timeout_s", "speculation", "exact", "priority", "cache_salt"}
)
_SAMPLING: Final = (
    *(one for one in Options.__struct_fields__ if one not in _NOT_SAMPLING), "n_logprobs",
)  # fmt: skip
_SAME: Final = {
    "temperature": "temperature", "dynatemp_range": "dynatemp_range",
    "dynatemp_exponent": "dynatemp_exponent", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
    "top_n_sigma": "top_n_sigma", "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold", "typical_p": "typical_p",
    "repeat_last_n": "repetition_window", "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty", "frequency_penalty": "frequency_penalty",
    "dry_multiplier": "dry_multiplier", "dry_base": "dry_base",
    "dry_allowed_length": "dry_allowed_length", "dry_penalty_last_n": "dry_window",
    "mirostat": "mirostat", "mirostat_tau": "mirostat_tau", "mirostat_eta": "mirostat_eta",
    "ignore_eos": "ignore_eos", "min_keep": "min_keep",
}  # fmt: skip
"""llama-server's names, and those of ``SamplingParams``."""
_SAMPLER_NAMES: Final = {"typical_p": "typ_p"}


def sampling_of(options: Mapping[str, Any]) -> SamplingParams:
    """The parameters that these options of a request mean; InvalidRequest."""
    given = {name: options[name] for name in _SAMPLING if options.get(name) is not None}
    return sampling_from_options(**given)


def generation_settings(options: Mapping[str, Any], *, is_stream: bool = False) -> dict[str, Any]:
    """The object of an answer and of ``/props``. Options that only llama-server has are off."""
    sampling = sampling_of(options)
    n_predict = options.get("max_tokens")
    stops = options.get("stop") or []
    return {
        "seed": options.get("seed", sampling.seed),
        **{name: getattr(sampling, field) for name, field in _SAME.items()},
        "dry_sequence_breakers": list(sampling.dry_breakers),
        "adaptive_target": -1.0,
        "adaptive_decay": 0.9,
        "stop": [stops] if isinstance(stops, str) else list(stops),
        "max_tokens": -1 if n_predict is None else n_predict,
        "n_predict": -1 if n_predict is None else n_predict,
        "n_keep": 0,
        "n_discard": 0,
        "stream": is_stream,
        "logit_bias": [
            {"token": token, "bias": None if bias == -math.inf else bias}
            for token, bias in sampling.logit_bias
        ],
        "n_probs": sampling.n_logprobs or 0,
        "grammar": sampling.grammar or "",
        "grammar_lazy": False,
        "grammar_triggers": [],
        "preserved_tokens": [],
        "chat_format": "Content-only",
        "reasoning_format": "none",
        "reasoning_in_content": False,
        "generation_prompt": "",
        "samplers": [_SAMPLER_NAMES.get(one, one) for one in sampling.samplers],
        "speculative.types": options.get("speculation") or "none",
        "timings_per_token": False,
        "post_sampling_probs": False,
        "backend_sampling": False,
        "lora": [],
    }
