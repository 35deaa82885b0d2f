"""Where a request stands in a trace: the header ``traceparent`` of W3C's Trace Context."""

from __future__ import annotations

import re
from typing import Final

_FORM: Final = re.compile("[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_NONE: Final = {"0" * 32, "0" * 16}
MAX_CHARS: Final = 55


def checked(text: object) -> str:
    """It, where it is one of this form; empty for everything else, as in the standard."""
    if not isinstance(text, str) or len(text) != MAX_CHARS or text.startswith("ff"):
        return ""
    found = _FORM.fullmatch(text)
    return "" if found is None or _NONE & {*found.groups()} else text


def trace_id_of(text: object) -> str:
    """The id of the whole trace, 32 hex digits; empty where ``text`` is no such header."""
    return checked(text)[3:35]
