"""What a caller may ask of a model and of a sampler, under one name.

See ``native.model_params`` and ``native.sampling_params``.
"""

from native.model_params import KV_TYPES as KV_TYPES
from native.model_params import MAX_SEQUENCES as MAX_SEQUENCES
from native.model_params import ModelParams as ModelParams
from native.sampling_params import SamplingParams as SamplingParams
