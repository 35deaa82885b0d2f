"""Load options from the command line and from a file: the same names, the same checks."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import click
import pytest

from native.params import ModelParams
from runtime.cli.load_options import load_options, params_from
from runtime.errors import ConfigError
from runtime.settings.config import from_mapping, to_mapping

pytestmark = pytest.mark.pure

GIVEN: dict[str, tuple[list[str], object]] = {
    "n_ctx": (["--n-ctx", "0"], 0),
    "n_batch": (["--n-batch", "64"], 64),
    "n_ubatch": (["--n-ubatch", "32"], 32),
    "n_seq_max": (["--n-seq-max", "2"], 2),
    "n_threads": (["--threads", "3"], 3),
    "n_threads_batch": (["--threads-batch", "4"], 4),
    "n_gpu_layers": (["--n-gpu-layers", "-1"], -1),
    "main_gpu": (["--main-gpu", "1"], 1),
    "split_mode": (["--split-mode", "row"], "row"),
    "tensor_split": (["--tensor-split", "3,1"], (3.0, 1.0)),
    "type_k": (["--type-k", "q8_0"], "q8_0"),
    "type_v": (["--type-v", "q4_0"], "q4_0"),
    "flash_attn": (["--no-flash-attn"], False),
    "use_mmap": (["--no-mmap"], False),
    "use_mlock": (["--mlock"], True),
    "rope_scaling": (["--rope-scaling", "yarn"], "yarn"),
    "rope_freq_base": (["--rope-freq-base", "1e6"], 1e6),
    "rope_freq_scale": (["--rope-freq-scale", "0.5"], 0.5),
    "yarn_ext_factor": (["--yarn-ext-factor", "1"], 1.0),
    "yarn_attn_factor": (["--yarn-attn-factor", "1"], 1.0),
    "yarn_beta_fast": (["--yarn-beta-fast", "32"], 32.0),
    "yarn_beta_slow": (["--yarn-beta-slow", "1"], 1.0),
    "yarn_orig_ctx": (["--yarn-orig-ctx", "4096"], 4096),
    "vocab_only": (["--vocab-only"], True),
    "control_vectors": (["--control-vector", "/v.gguf@-2", "--control-vector", "/w.gguf"], None),
    "control_vector_layers": (
        ["--control-vector-layers", "4", "9", "--control-vector", "/v.gguf"],
        (4, 9),
    ),
    "override_tensors": (
        ["--override-tensor", "exps=CPU", "--override-tensor", "a=b=CUDA0"],
        ("exps=CPU", "a=b=CUDA0"),
    ),
    "n_cpu_moe": (["--n-cpu-moe", "7"], 7),
    "cpu_moe": (["--cpu-moe"], True),
    "override_kv": (["--override-kv", "a.b=int:-3"], ("a.b=int:-3",)),
    "lora": (["--lora", "/a.gguf", "--lora", "/b@home.gguf@0.5"], None),
    "draft_path": (["--draft", "/d.gguf"], "/d.gguf"),
    "embed_tokens": (["--embed-tokens", "512"], 512),
    "pooling": (["--pooling", "cls"], "cls"),
    "check_memory": (["--no-memory-check"], False),
}
SCALED = {
    "lora": (("/a.gguf", 1.0), ("/b@home.gguf", 0.5)),
    "control_vectors": (("/v.gguf", -2.0), ("/w.gguf", 1.0)),
}


def parse(*flags: str) -> ModelParams:
    @click.command()
    @load_options
    def command(**given: object) -> ModelParams:
        return params_from(given, "load")

    return command.main(list(flags), standalone_mode=False)


@pytest.mark.parametrize("option", [one.name for one in fields(ModelParams)])
def test_every_load_option_has_a_flag(option: str) -> None:
    flags, value = GIVEN[option]
    expected = SCALED.get(option, value)
    assert getattr(parse(*flags), option) == expected


def test_without_flags_every_option_has_its_default() -> None:
    assert parse() == ModelParams()


def test_a_wrong_flag_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("--n-ctx", "-3")
    assert caught.value.key == "load.n_ctx"


def test_a_file_takes_every_option_and_the_launcher_gets_it() -> None:
    table = {
        name: value
        for name, (_, value) in GIVEN.items()
        if name not in ("lora", "vocab_only", "flash_attn")
    }
    files = ["adapters/a.gguf", ["/b.gguf", 0.5]]
    table |= {"path": "/m.gguf", "lora": files, "control_vectors": files}
    config = from_mapping({"models": {"a": table}})
    params = config.models["a"].params
    assert params.lora == ((str(Path("adapters/a.gguf").absolute()), 1.0), ("/b.gguf", 0.5))
    assert params.control_vectors == params.lora
    assert from_mapping(to_mapping(config)).models == config.models
