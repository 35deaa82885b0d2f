"""``inspect MODEL.gguf``: the header and the memory a model needs, without native code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtime.cli.main import main

pytestmark = pytest.mark.system


def inspect(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["inspect", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_model_is_explained(tiny_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = inspect(capsys, str(tiny_gguf))
    assert code == 0
    assert "2 layers of 128" in out
    assert "n_ctx 4096" in out


def test_options_change_what_it_will_take(
    tiny_gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = json.loads(inspect(capsys, str(tiny_gguf), "--json", "--n-ctx", "512")[1])
    big = json.loads(inspect(capsys, str(tiny_gguf), "--json", "--n-ctx", "1024")[1])
    assert big["kv"] == 2 * small["kv"] > 0
    quantised = json.loads(
        inspect(capsys, str(tiny_gguf), "--json", "--n-ctx", "1024", "--type-k", "q8_0")[1]
    )
    assert quantised["kv"] < big["kv"]
    trained = json.loads(inspect(capsys, str(tiny_gguf), "--json", "--n-ctx", "0")[1])
    assert trained["n_ctx"] == 8192


def test_a_model_that_cannot_fit_is_refused_with_exit_code_1(
    tiny_gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    huge = ["--n-ctx", "16000000", "--n-ubatch", "8192", "--n-batch", "8192"]
    code, out, _ = inspect(capsys, str(tiny_gguf), *huge)
    assert code == 1
    assert "REFUSED" in out
    assert inspect(capsys, str(tiny_gguf), *huge, "--no-memory-check")[0] == 0


def test_damaged_files_and_wrong_options_are_named(
    tiny_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_gguf.read_bytes()[:5000])
    code, _, err = inspect(capsys, str(cut))
    assert code == 1
    assert "cut short" in err or "announces" in err
    code, _, err = inspect(capsys, str(tiny_gguf), "--n-ctx", "-4")
    assert code == 2
    assert "n_ctx" in err


def test_a_context_beyond_the_training_gets_a_note(
    tiny_gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = inspect(capsys, str(tiny_gguf), "--n-ctx", "16384")
    assert code == 0
    assert "note        n_ctx 16384 is more than the 8192 tokens that the model was trained" in out
    for options in (["--n-ctx", "8192"], ["--n-ctx", "16384", "--rope-scaling", "yarn"]):
        plain = json.loads(inspect(capsys, str(tiny_gguf), "--json", *options)[1])
        assert plain["notes"] == []
