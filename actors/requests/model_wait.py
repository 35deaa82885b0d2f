"""Requests that wait for their model to come back, and what ends the wait: part of inflight.

A model that died is restarted by its supervisor, or loaded again by the registry if that died too.
Inflight hears when it is up; that it never will be, nobody tells, so somebody looks.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from actors import messages as m
from actors.messages.actor_ids import model_actor_id
from actors.requests import request_table as core
from actors.requests.questions import refusal
from actors.requests.request_table import InFlight, why_absent
from supervision import Worker

if TYPE_CHECKING:
    from supervision import Address

LOOK_EVERY_S = 0.25
GONE_S = 0.5  # the news of a supervisor's death and of its children's may come apart
HEAL_TIMEOUT_S = 30.0  # until a model that died is at least being loaded again


class WaitingForModels(Worker):
    """The table of requests, and those in it that no model has. Base of the one actor."""

    _requests: dict[str, InFlight]
    _looking: set[str]

    def _fail_request(
        self, request: m.Complete | m.Ask, reply_to: Address, reason: m.FailReason, detail: str
    ) -> None:
        failed = (
            refusal(request.question, reason, detail)
            if isinstance(request, m.Ask)
            else m.CompletionFailed(request.ref, reason, detail)
        )
        self.tell(reply_to, failed)

    def _fail(self, request_id: str, reason: m.FailReason, detail: str) -> None:
        """End a request that is in no lane."""
        left = self._requests.pop(request_id)
        left.close()
        self._fail_request(left.request, left.reply_to, reason, detail)

    def _waiting_for(self, model: str) -> list[str]:
        found = self._requests.items()
        return [one for one, r in found if r.model == model and r.waits_since is not None]

    def _wait(self, model: str, request_ids: Iterable[str]) -> None:
        models = self.directory.get("models")
        for request_id in request_ids:
            one = self._requests[request_id]
            one.incarnation, one.waits_since = None, time.monotonic()
            one.waits_under = 0 if models is None else models.incarnation
        self._keep_looking(model)

    def _keep_looking(self, model: str) -> None:
        """Nobody tells of a model that is given up, or unloaded, while it is not up."""
        if model not in self._looking and self._waiting_for(model):
            self._looking.add(model)
            self.after(LOOK_EVERY_S, core.LookWaiting(model))

    def _look_waiting(self, model: str) -> None:
        entry, models = self.directory.get(model_actor_id(model)), self.directory.get("models")
        for request_id in self._waiting_for(model):
            one, now = self._requests[request_id], time.monotonic()
            waited_s = now - (one.waits_since or now)
            is_same = models is not None and (models.is_up, models.incarnation) == (
                True,
                one.waits_under,
            )
            if entry is None and is_same and waited_s >= GONE_S:
                reason, detail = why_absent(model, None)
                if one.runs:
                    reason = m.FailReason.MODEL_UNLOADED
                    detail = core.UNLOADED.format(model=model)
                self._fail(request_id, reason, detail)
            elif entry is not None and entry.state == "down":
                self._fail(request_id, *why_absent(model, entry))
            elif waited_s >= HEAL_TIMEOUT_S and (entry is None or entry.state != "starting"):
                why = None if entry is None else entry.last_exit
                detail = core.NOT_BACK.format(
                    model=model, within_s=HEAL_TIMEOUT_S, why=why or "see the log"
                )
                self._fail(request_id, m.FailReason.MODEL_DOWN, detail)
        self._keep_looking(model)
