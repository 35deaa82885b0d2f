"""What makes two requests the same: what the engine computes from them."""

from __future__ import annotations

import dataclasses

from blake3 import blake3

from actors.messages.completion import Complete
from actors.payload import PayloadGone, read_payload


def digest_of(request: Complete) -> bytes | None:
    """BLAKE3 over model, prompt and sampling; ``None`` when the prompt's holder is gone.

    How much is generated, until when and from which stored rows is left out: it decides how far
    the engine gets with a computation, not which one it is.
    """
    try:
        prompt = request.prompt if isinstance(request.prompt, str) else read_payload(request.prompt)
    except PayloadGone:
        return None
    raw = prompt.encode("utf-8", "replace") if isinstance(prompt, str) else prompt
    how = (
        request.model,
        request.tokens,
        request.parse_special,
        request.chat,
        request.thinking,
        request.tool_calls,
        request.candidates,
    )
    sampling = dataclasses.astuple(request.sampling)
    return blake3(repr((how, sampling, len(raw))).encode() + raw).digest()
