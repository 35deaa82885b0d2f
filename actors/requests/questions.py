"""Facts about questions for inflight and models: which answer ends one, how one is refused.

Values only.
"""

from __future__ import annotations

from typing import Final

from actors import messages as m
from actors.messages.questions import (
    AdapterQuestion,
    CacheQuestion,
    EmbedderQuestion,
    Question,
    TextQuestion,
)

__all__ = [
    "AdapterQuestion",
    "CacheQuestion",
    "EmbedderQuestion",
    "Question",
    "TextQuestion",
    "is_end",
    "is_repeatable",
    "refusal",
]

_ENDS: Final = (
    m.TextRefused, m.ThinkingVerified, m.Embedded, m.EmbedFailed, m.VramReported, m.NoVram,
    m.AdaptersChanged, m.AdaptersListed, m.AdapterNotChanged, m.SessionEnded, m.LiveEvicted,
    m.SessionsListed, m.PrefixMatched, m.Reranked,
)  # fmt: skip
_PAGES: Final = (m.Tokenized, m.Detokenized, m.ChatTemplateApplied)


def is_end(answer: object) -> bool:
    """Whether nothing follows this answer."""
    return isinstance(answer, _ENDS) or (isinstance(answer, _PAGES) and answer.last)


def is_repeatable(question: Question) -> bool:
    """Whether asking again, when it may have been done already, changes nothing more."""
    return not isinstance(question, m.LoadAdapter | m.UnloadAdapter | m.SetAdapterScale)


def refusal(
    question: Question, reason: m.FailReason, detail: str, facts: m.FailureFacts | None = None
) -> object:
    """The answer that stands for a failure, in the asker's kind of message."""
    match question:
        case m.Embed(ref) | m.Rerank(ref):
            return m.EmbedFailed(ref, reason, detail, facts)
        case m.ReportVram(ref):
            return m.NoVram(ref, reason, detail)
        case m.LoadAdapter() | m.UnloadAdapter() | m.SetAdapterScale() | m.ListAdapters():
            return m.AdapterNotChanged(question.ref, reason, "", detail)
        case _:
            return m.TextRefused(question.ref, reason, detail, facts)
