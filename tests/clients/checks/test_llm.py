"""The command ``llm``, with the server as one of its extra OpenAI models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from served import MODEL, QUESTION, URL


@pytest.fixture
def llm(tmp_path):
    # JSON is YAML.
    model = {"model_id": "served", "model_name": MODEL, "api_base": f"{URL}/v1"}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([model]))

    def run(*words: str) -> str:
        ran = subprocess.run(
            [str(Path(sys.executable).with_name("llm")), *words],
            env=os.environ | {"LLM_USER_PATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    return run


def test_a_prompt_is_answered_with_and_without_streaming(llm):
    words = ("-m", "served", "-o", "temperature", "0", "-o", "max_tokens", "16", QUESTION)
    streamed = llm(*words)
    assert streamed.strip()
    assert llm(*words, "--no-stream") == streamed


def test_the_log_has_the_usage(llm):
    llm("-m", "served", "-o", "max_tokens", "8", QUESTION)
    (entry,) = json.loads(llm("logs", "--json"))
    assert entry["input_tokens"] > 0
    assert 0 < entry["output_tokens"] <= 8


def test_a_conversation_goes_on(llm):
    llm("-m", "served", "-o", "max_tokens", "8", QUESTION)
    assert llm("-c", "-o", "max_tokens", "8", "And then?").strip()
