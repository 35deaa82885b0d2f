"""Templates and tool schemas made to hang or crash what reads them: a child process ends by itself.

Each case is refused with a named error or read; within seconds, and without a crash.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.support import hostile_templates
from tests.support.hostile_templates import CASES

pytestmark = pytest.mark.fault

DEADLINE_S: Final = 120.0
"""On a busy machine; alone no case takes more than five seconds of a processor."""
MAX_MEMORY: Final = 3 << 30


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_template_is_refused_or_read(name: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", hostile_templates.__name__, name, str(MAX_MEMORY)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert ended.returncode == 0, (ended.returncode, ended.stderr[-2000:])
    outcome = ended.stdout.strip()
    expected = CASES[name].refused
    if expected is None:
        assert outcome == "read", outcome
    else:
        assert outcome.startswith("refused: "), outcome
        assert expected in outcome
