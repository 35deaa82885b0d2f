"""Questions to a model, sent through inflight, which records what ran when a process died.

What is asked is a message of its own (``Tokenize``, ``Embed``, ``MatchPrefix`` and so on); its
answers go from the model straight to the asker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from actors.messages.adapters import ListAdapters, LoadAdapter, SetAdapterScale, UnloadAdapter
from actors.messages.control import EndSession, EvictLive, ListSessions, MatchPrefix
from actors.messages.embedding import Embed, ReportVram, Rerank
from actors.messages.text import ApplyChatTemplate, Detokenize, Tokenize, VerifyThinking
from supervision.frozen import frozen

if TYPE_CHECKING:
    from supervision import Address

TextQuestion = Tokenize | Detokenize | ApplyChatTemplate | VerifyThinking
EmbedderQuestion = Embed | Rerank | ReportVram
AdapterQuestion = LoadAdapter | UnloadAdapter | SetAdapterScale | ListAdapters
CacheQuestion = EndSession | ListSessions | EvictLive | MatchPrefix
Question = TextQuestion | EmbedderQuestion | AdapterQuestion | CacheQuestion


@frozen
class Ask:
    """Caller → inflight: have this model answer this question.

    Answered as the question itself states. While the model is being restarted or a suspect of a
    crash runs alone, ``StillRunning`` is sent every few seconds.
    """

    model: str
    question: Question

    @property
    def ref(self) -> str:
        return self.question.ref


@frozen
class Answer:
    """Inflight → model: answer this question to ``reply_to``, then send ``RequestEnded``."""

    request_id: str
    reply_to: Address
    question: Question
