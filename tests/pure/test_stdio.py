"""What an output encoding lacks is written as JSON does."""

from __future__ import annotations

import codecs
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervision import stdio

pytestmark = pytest.mark.pure

codecs.register_error(stdio.ESCAPE, stdio._escape)


@given(st.text(), st.sampled_from(["ascii", "latin-1", "utf-8"]))
def test_json_stays_the_same_json_in_any_encoding(text: str, encoding: str) -> None:
    printed = json.dumps(text, ensure_ascii=False).encode(encoding, stdio.ESCAPE)
    assert json.loads(printed.decode(encoding)) == text


def test_a_decoder_keeps_its_error() -> None:
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("utf-8", stdio.ESCAPE)
