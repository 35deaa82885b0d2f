"""Lines of JSON, as Ollama's clients read them: one object a line, and never an empty line."""

from __future__ import annotations

from typing import Any, Final

from runtime.gateway.wire.bodies import encode

CONTENT_TYPE: Final = "application/x-ndjson"
_BREAKS: Final = tuple((one.encode(), b"\\u%04x" % ord(one)) for one in "\x85\u2028\u2029")
"""Characters at which some clients end a line, though JSON may contain them, and their escapes."""


def line(value: Any) -> bytes:
    """One object as a line."""
    text = encode(value)
    for found, escape in _BREAKS:
        text = text.replace(found, escape)
    return text + b"\n"
