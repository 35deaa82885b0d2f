"""The examples run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.nodes import ROOT

pytestmark = pytest.mark.system

EXPECTED = {
    "01_hello.py": ("first: Once upon a time", "(exact)"),
    "02_stream.py": ("tokens per second",),
    "03_conversation.py": ("tokens reused",),
    "04_raw_messages.py": ("accepted as", "prompt_tokens"),
    "05_kill_and_recover.py": ("a pause of", "killed the cache index", "same text: True"),
    "06_supervision_tree.py": (
        "apples broke: abnormal: TypeError",
        "apples, anew: Sum",
        "plums went with pears: Down",
        "basket → plums   up incarnation 2",
    ),
    "07_chat.py": ("prefilled 1", "tokens warm] Thank you!"),
    "08_structured_output.py": ("an object: {'animal': ", "one of two texts: "),
    "09_many_at_once.py": ("a dragon", "cancelled: True", "nothing runs any more"),
    "10_crash_resume.py": ("killing pid", "continues after", "every text is whole: True"),
    "11_speculation.py": ("guesses were right", "same text: True", "accepts 2"),
    "12_embeddings.py": ("6 vectors of 192 numbers", "6 tokens, 6 vectors: True"),
    "13_plain_thespian_actors.py": (
        "apples broke: abnormal: TypeError",
        "apples, restarted: Sum",
        "the clock runs",
        "whose actor class is Counter",
        "monitor: Down",
        "seconds, restarted: True",
    ),
    "14_actor_system.py": (
        "ask: Sum(ref='first', total=2)",
        "listen: Sum(ref='second', total=5)",
        "broken: None",
        "restarted: Sum(ref='fourth', total=1)",
        "private: Sum(ref='fifth', total=2)",
        "createActor is not offered by a supervised node: a supervisor starts its children",
    ),
    "15_tools.py": (
        'weather {"town": "Oslo"}: snow, -3 degrees',
        'add {"a": 17, "b": 25}: 42',
        "What is 17 plus 25? 17 plus 25 is 42.",
    ),
}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_example(name: str, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name)],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=tmp_path,
        env=os.environ
        | {"TMPDIR": str(tmp_path), "LLAMA_ACTORS_RUNTIME_DIR": str(tmp_path / "run")},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    for text in EXPECTED[name]:
        assert text in ran.stdout, ran.stdout
    assert "same text: False" not in ran.stdout
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left == [], left
