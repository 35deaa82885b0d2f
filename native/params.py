"""Parameters of models and of samplers, in one module.

See ``native.model_params`` and ``native.sampling_params``.
"""

from native.model_params import KV_TYPES, MAX_SEQUENCES, ModelParams
from native.sampling_params import SamplingParams

__all__ = ["KV_TYPES", "MAX_SEQUENCES", "ModelParams", "SamplingParams"]
