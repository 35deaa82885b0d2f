"""Verifying tokens that another model drafted, and drafting tokens for another model.

With these two a small model on one node drafts for a big one on another.
"""

from __future__ import annotations

from actors.messages.completion import Complete
from actors.messages.finish_reasons import FinishReason
from actors.messages.payload import Payload
from actors.messages.prompts import TokenPrompt
from supervision.frozen import frozen

CANDIDATES_LIMIT = 1024
"""Of one ``Verify``; so many in a row are never all right."""


@frozen
class Verify:
    """Caller → model: which of these candidates would you generate after this prefix, greedily?

    Runs like any other request: queued, with the longest prefix that is live or stored, in one
    batch with others. Answered by ``Accepted`` and then one ``Verified``, or ``CompletionFailed``.
    A context is left as if the accepted tokens had been generated.
    """

    ref: str
    model: str
    prefix: Payload
    """u32-le token ids, at least one."""
    candidates: bytes
    """u32-le token ids, ``CANDIDATES_LIMIT`` at most."""
    k: int | None = None
    """Only the first so many candidates count, at least 1; all of them if ``None``."""
    timeout_s: float | None = None

    def as_complete(self) -> Complete:
        """The request that does it: one whose reply is candidates only."""
        n = max(1, len(self.candidates) // 4) if self.k is None else self.k
        return Complete(
            self.ref,
            self.model,
            TokenPrompt(self.prefix),
            max_tokens=n + 1,
            candidates=self.candidates,
            timeout_s=self.timeout_s,
        )


@frozen
class Verified:
    """Model → caller: the first ``accepted`` candidates are right.

    ``next_token`` is what the model generates after them: where it differs from the next candidate,
    or after the last one. ``None`` is the end of the text, so a candidate that ends it is never
    accepted; with ``finish_reason`` ``cancelled``, the candidates were not all verified.
    """

    ref: str
    accepted: int
    next_token: int | None
    finish_reason: FinishReason
    cached_tokens: int = 0
    """Of the prefix, what was not computed for this."""


def draft_tokens(
    ref: str, model: str, prefix: Payload, most: int, timeout_s: float | None = None
) -> Complete:
    """Ask a model for at most ``most`` tokens that it would generate after ``prefix``, greedily.

    ``prefix`` are u32-le token ids; the tokens come as ``TokensDelivered``.
    """
    return Complete(ref, model, TokenPrompt(prefix), max_tokens=most, timeout_s=timeout_s)
