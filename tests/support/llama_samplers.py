"""llama.cpp's own samplers, called from Python: the judge of ours.

The declarations are those of its public header, ``llama.h``.
"""

from __future__ import annotations

import ctypes
import math
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from native.sampling_params import SamplingParams

_ANY_SEED = 1


class _Token(ctypes.Structure):
    _fields_ = (("id", ctypes.c_int32), ("logit", ctypes.c_float), ("p", ctypes.c_float))


class _Tokens(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.POINTER(_Token)),
        ("size", ctypes.c_size_t),
        ("selected", ctypes.c_int64),
        ("sorted", ctypes.c_bool),
    )


class _ChainParams(ctypes.Structure):
    _fields_ = (("no_perf", ctypes.c_bool),)


class LlamaSamplers:
    """The samplers of the installed libllama."""

    def __init__(self) -> None:
        from native import _llama  # here: it loads the library

        folder = Path(_llama.__file__).parent
        found = next(folder.glob("libllama.*"), None)
        if found is None:
            raise FileNotFoundError(f"no libllama lies in {folder}")
        lib = ctypes.CDLL(str(found))
        real, size, whole = ctypes.c_float, ctypes.c_size_t, ctypes.c_int32
        arguments: dict[str, tuple[Any, ...]] = {
            "top_k": (whole,),
            "top_p": (real, size),
            "min_p": (real, size),
            "typical": (real, size),
            "temp_ext": (real, real, real),
            "xtc": (real, real, size, ctypes.c_uint32),
            "top_n_sigma": (real,),
            "penalties": (whole, whole, real, real, real),
        }
        for name, types in arguments.items():
            call = getattr(lib, f"llama_sampler_init_{name}")
            call.argtypes, call.restype = types, ctypes.c_void_p
        lib.llama_sampler_chain_init.argtypes = (_ChainParams,)
        lib.llama_sampler_chain_init.restype = ctypes.c_void_p
        lib.llama_sampler_chain_add.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
        lib.llama_sampler_accept.argtypes = (ctypes.c_void_p, whole)
        lib.llama_sampler_apply.argtypes = (ctypes.c_void_p, ctypes.POINTER(_Tokens))
        lib.llama_sampler_free.argtypes = (ctypes.c_void_p,)
        self._lib = lib

    def shares(
        self, params: SamplingParams, history: Sequence[int], logits: array[float]
    ) -> dict[int, float]:
        """The probability of each token that may be drawn; without DRY, bias and grammar."""
        lib = self._lib
        chain = lib.llama_sampler_chain_init(_ChainParams(True))
        try:
            for name in params.samplers:
                one = self._made(name, params, len(logits))
                lib.llama_sampler_chain_add(chain, one)
            for token in history:
                lib.llama_sampler_accept(chain, token)
            rows = (_Token * len(logits))(*((at, one, 0.0) for at, one in enumerate(logits)))
            tokens = _Tokens(rows, len(logits), -1, False)
            lib.llama_sampler_apply(chain, ctypes.byref(tokens))
            left = [(tokens.data[at].id, tokens.data[at].logit) for at in range(tokens.size)]
        finally:
            lib.llama_sampler_free(chain)
        return shares_of(left)

    def _made(self, name: str, p: SamplingParams, n_vocab: int) -> Any:
        lib = self._lib
        match name:
            case "penalties":
                numbers = (p.repetition_penalty, p.frequency_penalty, p.presence_penalty)
                return lib.llama_sampler_init_penalties(n_vocab, p.repetition_window, *numbers)
            case "top_n_sigma":
                return lib.llama_sampler_init_top_n_sigma(p.top_n_sigma)
            case "top_k":
                return lib.llama_sampler_init_top_k(p.top_k)
            case "typical_p":
                return lib.llama_sampler_init_typical(p.typical_p, p.min_keep)
            case "top_p":
                return lib.llama_sampler_init_top_p(p.top_p, p.min_keep)
            case "min_p":
                return lib.llama_sampler_init_min_p(p.min_p, p.min_keep)
            case "xtc":
                numbers = (p.xtc_probability, p.xtc_threshold)
                return lib.llama_sampler_init_xtc(*numbers, p.min_keep, _ANY_SEED)
            case "temperature":
                numbers = (p.temperature, p.dynatemp_range, p.dynatemp_exponent)
                return lib.llama_sampler_init_temp_ext(*numbers)
        raise ValueError(f"{name} is not compared")


def shares_of(left: Sequence[tuple[int, float]], temperature: float = 1.0) -> dict[int, float]:
    """Probabilities of tokens by their logits."""
    highest = max(logit for _, logit in left)
    weights = {token: math.exp((logit - highest) / temperature) for token, logit in left}
    total = sum(weights.values())
    return {token: weight / total for token, weight in weights.items() if weight > 0}
