"""Why a request is refused, by name.

::

    RequestRefused              this request cannot be done                   .reason .facts
    ├── InvalidRequest          its caller must change it
    │   ├── BadChat             it is no conversation                         (text.chat_messages)
    │   ├── TemplateFailed      the chat template refused it, or is broken    (text.chat_template)
    │   │   └── TemplateStopped the template used more than it may            (text.chat_template)
    │   ├── BadBudget           the thinking budget makes no sense            (text.reply_events)
    │   └── BadCandidates       what is to be judged makes no sense           (engine)
    └── UnsupportedRequest      this model cannot do it
        ├── NotShown            the template leaves out what was sent         (text.chat_shown)
        └── NoMarkers           the model has no markers for what was asked   (text.reply_events)

Inside a process these are raised. Between processes travels what ``actors.messages.refusal`` makes
of them and of the errors of other packages: a ``FailReason``, a sentence for the caller, and where
there are some, ``FailureFacts``.
"""

from __future__ import annotations

from actors.messages.finish_reasons import FailReason, FailureFacts


class RequestRefused(Exception):
    """This request cannot be done, through its caller's fault or the state of the model.

    ``reason`` and ``facts`` are for programs, the text for people.
    """

    def __init__(self, reason: FailReason, detail: str, facts: FailureFacts | None = None) -> None:
        super().__init__(detail)
        self.reason = reason
        self.facts = facts


class InvalidRequest(RequestRefused):
    """The request makes no sense; its caller must change it."""

    def __init__(self, detail: str) -> None:
        super().__init__(FailReason.INVALID_REQUEST, detail)


class UnsupportedRequest(RequestRefused):
    """The request makes sense, and this model cannot do it."""

    def __init__(self, detail: str) -> None:
        super().__init__(FailReason.NOT_SUPPORTED, detail)
