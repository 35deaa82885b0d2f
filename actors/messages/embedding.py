"""Embeddings, ranking and GPU memory: between callers and ``model:<id>``.

An ``Embed`` is answered by ``EmbeddingPage`` as often as needed, none above 64 KiB, and at the end
by one ``Embedded`` or ``EmbedFailed``. The data of the pages, joined in order, is one run of
float32 (little endian): for each input, as many rows of ``n_embd`` numbers as ``rows`` states.
"""

from __future__ import annotations

from actors.messages.finish_reasons import FailReason, FailureFacts
from actors.messages.payload import Payload
from supervision.frozen import frozen


@frozen
class Embed:
    """Caller → model: the vectors of these texts."""

    ref: str
    inputs: Payload
    """JSON: a list of texts, or of lists of token ids; mixed if you like."""
    pooling: str = "model"
    """``none | mean | cls | last``, or ``model``: as it was loaded, or as its file states."""
    normalise: bool = True
    """Make each vector one unit long."""


@frozen
class EmbeddingPage:
    """Model → caller: the next numbers."""

    ref: str
    data: bytes


@frozen
class Embedded:
    """Model → caller: that was all. ``rows`` has one number for each input, 1 when pooled."""

    ref: str
    n_embd: int
    rows: tuple[int, ...]
    n_tokens: int
    """Of all inputs together."""


@frozen
class Rerank:
    """Caller → model: how well does each of these texts fit a query? ``Reranked``."""

    ref: str
    texts: Payload
    """JSON: ``{"query": "…", "documents": ["…", …]}``."""


@frozen
class Reranked:
    """Model → caller: a score of each document, in their order; higher is better."""

    ref: str
    scores: bytes
    """float32, little-endian; on the model's own scale."""
    n_tokens: int
    """Of all documents together, each with the query."""


@frozen
class EmbedFailed:
    """Model → caller: no result; pages that came before are of no use. ``detail`` is what to do."""

    ref: str
    reason: FailReason
    detail: str
    facts: FailureFacts | None = None


@frozen
class ReportVram:
    """Caller → model: how much GPU memory is there? ``VramReported`` or ``NoVram``."""

    ref: str


@frozen
class VramReported:
    """Model → caller: bytes, summed over all GPUs, and each of them: name, free, total."""

    ref: str
    free: int
    total: int
    gpus: tuple[tuple[str, int, int], ...]


@frozen
class NoVram:
    """Model → caller: no GPU, or a build of llama.cpp without one."""

    ref: str
    reason: FailReason
    detail: str
