"""Usual names become parameters; what is wrong is named."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from native.sampling_params import MAX_WINDOW, SamplingParams
from runtime.client.sampling_options import sampling_from_options
from runtime.errors import InvalidRequest

pytestmark = pytest.mark.pure

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("options", "params"),
    [
        ({}, SamplingParams()),
        ({"temperature": 0.7, "top_p": None, "top_k": -1}, SamplingParams(temperature=0.7)),
        ({"repeat_penalty": 1.1}, SamplingParams(repetition_penalty=1.1)),
        ({"repeat_last_n": -1}, SamplingParams(repetition_window=MAX_WINDOW)),
        ({"repeat_last_n": 0, "dry_penalty_last_n": 9},
         SamplingParams(repetition_window=0, dry_window=9)),
        ({"typ_p": 0.5, "min_p": 0.1}, SamplingParams(typical_p=0.5, min_p=0.1)),
        ({"dry_sequence_breakers": ["a", "b"]}, SamplingParams(dry_breakers=("a", "b"))),
        ({"logit_bias": {"5": -3, 7: False}}, SamplingParams(logit_bias=((5, -3), (7, -math.inf)))),
        ({"logit_bias": [[5, 1.5]]}, SamplingParams(logit_bias=((5, 1.5),))),
        ({"logit_bias": {" fox": 2, "-": False}},
         SamplingParams(logit_bias=((" fox", 2), ("-", -math.inf)))),
        ({"logit_bias": [["5", 1.5], [5, 2]]}, SamplingParams(logit_bias=(("5", 1.5), (5, 2)))),
        ({"samplers": "edskypmxt"}, SamplingParams()),
        ({"samplers": "kt"}, SamplingParams(samplers=("top_k", "temperature"))),
        ({"samplers": ["top-k", "typ_p", "minp", "Nucleus", "temp"]},
         SamplingParams(samplers=("top_k", "typical_p", "min_p", "top_p", "temperature"))),
        ({"samplers": "dry; top_n_sigma,xtc"},
         SamplingParams(samplers=("dry", "top_n_sigma", "xtc"))),
        ({"samplers": []}, SamplingParams(samplers=())),
        ({"samplers": ""}, SamplingParams(samplers=())),
        ({"top_n_sigma": -1}, SamplingParams()),
        ({"top_n_sigma": 1.5, "min_keep": 3, "ignore_eos": True},
         SamplingParams(top_n_sigma=1.5, min_keep=3, ignore_eos=True)),
        ({"dynatemp_range": 0.5, "dynatemp_exponent": 2},
         SamplingParams(dynatemp_range=0.5, dynatemp_exponent=2)),
        ({"logprobs": True}, SamplingParams(n_logprobs=0)),
        ({"logprobs": True, "top_logprobs": 4}, SamplingParams(n_logprobs=4)),
        ({"logprobs": 3}, SamplingParams(n_logprobs=3)),
        ({"logprobs": False}, SamplingParams()),
        ({"n_probs": 2}, SamplingParams(n_logprobs=2)),
        ({"json_schema": SCHEMA}, SamplingParams(json_schema=json.dumps(SCHEMA))),
        ({"response_format": {"type": "text"}}, SamplingParams()),
        ({"response_format": {"type": "json_object"}},
         SamplingParams(json_schema='{"type": "object"}')),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
         SamplingParams(json_schema=json.dumps(SCHEMA))),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)  # fmt: skip
def test_options_become_parameters(options: dict[str, Any], params: SamplingParams) -> None:
    assert sampling_from_options(**options) == params


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temprature": 1}, "did you mean temperature"),
        ({"zzz": 1}, "known are: temperature, top_k"),
        ({"temperature": "hot"}, "temperature='hot' is not allowed: a number from 0 to 100"),
        ({"repeat_penalty": 1.1, "repetition_penalty": 1.2}, "given twice"),
        ({"repeat_last_n": -2}, "repeat_last_n=-2"),
        ({"dry_penalty_last_n": 1.5}, "dry_penalty_last_n"),
        ({"logit_bias": {"": 1}}, "a text that is not empty"),
        ({"logit_bias": {"-5": 1}}, "logit_bias=-5"),
        ({"logit_bias": {"word": "much"}}, "a token id or a text, and a number"),
        ({"logit_bias": {True: 1}}, "a token id or a text, and a number"),
        ({"samplers": "kq"}, "samplers='kq' is not allowed: a list of penalties"),
        ({"samplers": ["infill"]}, "samplers='infill' is not allowed: some of penalties, dry"),
        ({"samplers": "kk"}, "samplers='top_k' is not allowed"),
        ({"samplers": 7}, "samplers=7"),
        ({"top_n_sigma": -2}, "top_n_sigma=-2"),
        ({"ignore_eos": "yes"}, "ignore_eos='yes'"),
        ({"logit_bias": 7}, "a mapping of tokens"),
        ({"top_logprobs": 3, "logprobs": False}, "needs logprobs=True"),
        ({"top_logprobs": 21}, "n_logprobs=21"),
        ({"grammar": 'root ::= "a"', "json_schema": {}}, "not together with grammar"),
        ({"json_schema": [1]}, "a JSON object"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": "json"}, "response_format"),
        ({"dry_sequence_breakers": ["x" * 41]}, "dry_breakers"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_is_wrong_is_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        sampling_from_options(**options)
    assert says in str(caught.value)


def test_any_seed_is_another_each_time() -> None:
    seeds = {sampling_from_options(seed=-1).seed for _ in range(8)}
    assert len(seeds) == 8
    assert sampling_from_options(seed=5).seed == 5
