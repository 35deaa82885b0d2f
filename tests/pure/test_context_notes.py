"""When a context length deserves a note."""

from __future__ import annotations

from typing import Any

import pytest

from native.context_notes import context_notes
from native.params import ModelParams

pytestmark = pytest.mark.pure


@pytest.mark.parametrize(
    ("options", "n_ctx", "trained", "words"),
    [
        ({"n_ctx": 0}, 8192, 8192, None),
        ({"n_ctx": 8192}, 8192, 8192, None),
        ({"n_ctx": 1000}, 1024, 1000, None),
        ({"n_ctx": 8193}, 8448, 8192, "8193 is more than the 8192 tokens"),
        ({"n_ctx": 9000}, 9216, 0, None),
        ({"n_ctx": 9000, "rope_scaling": "none"}, 9216, 8192, "is more than"),
        ({"n_ctx": 9000, "rope_scaling": "yarn"}, 9216, 8192, None),
        ({"n_ctx": 9000, "rope_freq_scale": 0.5}, 9216, 8192, None),
        ({"n_ctx": 9000, "rope_freq_base": 1e6}, 9216, 8192, None),
        ({"n_ctx": 4096}, 1024, 1024, "4096 is lowered to 1024"),
    ],
)
def test_notes(options: dict[str, Any], n_ctx: int, trained: int, words: str | None) -> None:
    notes = context_notes(ModelParams(**options), n_ctx, trained)
    assert len(notes) == (words is not None)
    if words is not None:
        assert words in notes[0]
