"""Requests in flight: the caller and the model of each, and an end for each of them.

Owns: the table of requests and questions (``request_table``, which decides), journals of requests
(``journal``), and the charges against those that crash models (``crash_attribution``). Answers:
``Complete``, ``Ask``, ``Submit``, ``Cancel``, ``HoldModel``. Asks: models, and residency for those
that are not in memory. It lives outside the model processes on
purpose: when one dies, its requests wait here for its next incarnation, and continue in it at their
next token; a question may be asked again. Callers that end are noticed, and their requests are
cancelled.

When this actor itself dies, its callers are notified at once and ask its successor, with what they
have received. Lost with the table is every suspicion: that costs a model one more crash per
poisonous request, which is cheaper than a table that outlives its bugs.
"""

from __future__ import annotations

import contextlib
import resource
import time
import uuid
from collections.abc import Iterable

from actors import messages as m
from actors.messages.actor_ids import RESIDENCY, model_actor_id, model_of
from actors.messages.journal import JournalKeeper, Noted
from actors.requests import effects as fx
from actors.requests.failures import not_loaded
from actors.requests.questions import Question
from actors.requests.request_digest import digest_of, part_digests
from actors.requests.request_table import RequestTable
from cache.answers import Miss, MissReason
from supervision import Address, Entry, Worker


class InflightActor(Worker):
    """The one place that holds every running request. Carries out what the table decides."""

    def init(self, args: object) -> None:
        del args
        self._journals: dict[str, JournalKeeper] = {}
        self._table = RequestTable(
            self.directory,
            accepted=self._accepted,
            digest=digest_of,
            part_digests=part_digests,
        )
        with contextlib.suppress(OSError, ValueError):  # a journal per request: as many as allowed
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    # ── events ──────────────────────────────────────────────────────────────────────────────────

    def handle(self, message: object, sender: Address) -> None:
        match message:
            case m.Complete():
                self._arrived(message, sender)
            case m.Ask() if isinstance(message.question, Question):
                self._arrived(message, sender)
            case m.Submit(request, reply_to):
                self._arrived(request, reply_to, is_direct=True)
            case m.Cancel(request_id, awaits_end):
                now = time.monotonic()
                self._obey(self._table.cancelled(now, request_id, awaits_end=awaits_end))
            case m.RequestEnded(request_id):
                self._obey(self._table.ended(time.monotonic(), request_id))
            case m.CallerGone(caller):
                self._obey(self._table.caller_gone(time.monotonic(), caller))
            case m.ListModelUse(ref):
                self.tell(sender, m.ModelUseListed(ref, self._table.uses()))
            case (
                m.HoldModel()
                | m.ReleaseModel()
                | m.ModelAwaited()
                | m.ModelLoading()
                | m.ModelLoaded()
                | m.ModelNotLoaded()
            ):
                self._model_moves(message)
            case _:
                self.log.warning("dropped an unknown %s", type(message).__name__)

    def _arrived(
        self, request: m.Complete | m.Ask, reply_to: Address, *, is_direct: bool = False
    ) -> None:
        request_id = uuid.uuid4().hex
        self._obey(
            self._table.arrived(
                time.monotonic(), request_id, request, reply_to, is_direct=is_direct
            )
        )

    def _model_moves(self, message: object) -> None:
        """What residency does with a model; the ref of its answers is the model's id."""
        now = time.monotonic()
        match message:
            case m.HoldModel(ref, model, incarnation, if_idle):
                self._obey(self._table.held(ref, model, incarnation, if_idle=if_idle))
            case m.ReleaseModel(model):
                self._obey(self._table.released(now, model))
            case m.ModelAwaited(model):
                self._obey(self._table.awaited(model))
            case m.ModelLoading(model, share):
                self._obey(self._table.loading(model, share))
            case m.ModelNotLoaded(model):
                self._obey(self._table.not_coming(model, not_loaded(message)))
            case _:
                pass  # it is loaded: the directory has it

    def directory_changed(self, changed: tuple[Entry, ...]) -> None:
        self._obey(self._table.directory_changed(time.monotonic(), changed))

    def undelivered(self, target: Address | str, message: object) -> None:
        if isinstance(target, Address):
            self._obey(self._table.caller_gone(time.monotonic(), target))
        else:
            super().undelivered(target, message)

    def handle_timer(self, payload: object) -> None:
        if isinstance(payload, fx.Timer):
            self._obey(self._table.timer(time.monotonic(), payload))
        else:
            self.log.warning("an unknown timer fired: %r", payload)

    # ── effects ─────────────────────────────────────────────────────────────────────────────────

    def _obey(self, effects: Iterable[fx.Effect]) -> None:
        for effect in effects:
            match effect:
                case fx.Start() | fx.Stop():
                    self._to_model(effect)
                case fx.Reply() | fx.ReplyCancelled() | fx.Ping():
                    self._to_caller(effect)
                case fx.Forget(request_id):
                    journal = self._journals.pop(request_id, None)
                    if journal is not None:
                        journal.close()
                case fx.After(seconds, timer):
                    self.after(seconds, timer)
                case fx.Need(model, since):
                    self.tell(RESIDENCY, m.NeedModel(model, model, since))
                case fx.Held(ref, model, is_held):
                    self.tell(RESIDENCY, m.ModelHeld(ref, model, is_held))
                case fx.Log(text, is_warning):
                    (self.log.warning if is_warning else self.log.info)("%s", text)

    def _to_model(self, effect: fx.Start | fx.Stop) -> None:
        if isinstance(effect, fx.Stop):
            models = (
                [one for one in self.directory if model_of(one) is not None]
                if effect.model is None
                else [model_actor_id(effect.model)]
            )
            for model in models:
                self.tell(model, m.CancelRun(effect.request_id, effect.awaits_end))
        elif isinstance(effect.request, m.Ask):
            answer = m.Answer(effect.request_id, effect.reply_to, effect.request.question)
            self.tell(model_actor_id(effect.model), answer)
        else:
            journal = self._journal_path(effect.request_id)
            run = m.Run(effect.request_id, effect.reply_to, effect.request, journal)
            self.tell(model_actor_id(effect.model), run)

    def _to_caller(self, effect: fx.Reply | fx.ReplyCancelled | fx.Ping) -> None:
        match effect:
            case fx.Reply(to, answer):
                self.tell(to, answer)
            case fx.ReplyCancelled(to):
                self.tell(to, self._cancelled(effect))
            case fx.Ping(to, ref):
                if not self.backlog(to):
                    self.tell(to, m.StillRunning(ref))

    def _journal_path(self, request_id: str) -> str | None:
        """Path of the request's journal; None when this process may open no more files."""
        journal = self._journals.get(request_id)
        if journal is None:
            try:
                journal = self._journals[request_id] = JournalKeeper()
            except OSError:
                return None
        return journal.path

    def _accepted(self, request_id: str) -> int:
        journal = self._journals.get(request_id)
        return 0 if journal is None else journal.n_accepted()

    def _cancelled(self, effect: fx.ReplyCancelled) -> m.Completed:
        """The end of a request that was cancelled while no model had it."""
        journal = self._journals.get(effect.request_id)
        noted = Noted() if journal is None else journal.read()
        return m.Completed(
            ref=effect.ref,
            request_id=effect.request_id,
            finish_reason=m.FinishReason.CANCELLED,
            finish_key=None,
            stop_sequence=None,
            usage=m.Usage(len(noted.prompt), 0, len(noted.accepted)),
            cache=m.CacheReport(m.HitKind.COLD, "none", 0.0, Miss(MissReason.NOT_STARTED)),
            timings=m.Timings(0.0, 0.0, 0.0, 0.0, 0.0),
        )

    def status(self) -> dict[str, object]:
        return self._table.status()
