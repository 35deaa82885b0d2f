"""One loaded model: the mailbox of the process that is allowed to load libllama.

Owns: the weights, the context, its requests. Answers: ``Run``, ``Answer``, ``CancelRun``, and what
is sent straight to it, which inflight registers first. Asks: cache_meta, inflight. Dies when
llama.cpp does; nothing published is lost then, because rows are in the arena and in files, and
inflight answers the callers.

The mailbox decides nothing: it carries messages between the tree and the engine thread, and stays
responsive while llama.cpp computes.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from actors import messages as m
from actors.engine.commands import Asked, CacheGone, Close
from actors.engine.draft_model import DraftModel, load_draft_model
from actors.engine.engine import ModelEngine, build_engine
from actors.kv.open_store import open_store
from actors.kv.store import KvStore
from actors.messages.actor_ids import holder_name
from actors.model.args import LoadError, ModelArgs
from actors.model.cache_stats import CacheStats
from actors.model.embedding_service import EmbeddingService
from actors.model.grammar_service import GrammarService
from actors.model.loading import LoadedModel, load
from actors.model.text_service import TextService
from actors.requests.questions import EmbedderQuestion, Question, TextQuestion, is_end, refusal
from actors.text.reply_events import ReplyRules
from cache.keys import BLOCK_TOKENS, namespace_key
from native.errors import NativeError
from supervision import Address, EngineWorker, ExitReason

if TYPE_CHECKING:
    from native.backend import Backend
    from supervision import Entry

STEP_LOOKS = 5  # per budget: that much later than it at most
_LOOK_AT_STEP = "look at step"
PROGRESS_STEP = 0.02  # of the load, so that progress costs fifty messages at most


@dataclass(frozen=True, slots=True)
class _Loaded:
    model: LoadedModel


@dataclass(frozen=True, slots=True)
class _Progress:
    share: float


@dataclass(frozen=True, slots=True)
class _NotLoaded:
    error: LoadError


class ModelActor(EngineWorker):
    """Carries messages between the tree and the engine of one model."""

    def init(self, args: object) -> None:
        if not isinstance(args, ModelArgs):
            raise TypeError(f"a model is started with ModelArgs, not {args!r}")
        self._load_args = args
        self._loaded: LoadedModel | None = None
        self._embeds: EmbeddingService | None = None
        self._engine: ModelEngine | None = None
        self._texts: TextService | None = None
        self._grammars: GrammarService | None = None
        self._asked: dict[tuple[Address, str], deque[str]] = {}
        self._callers: dict[str, tuple[Address, str]] = {}
        """Of each request that runs here: who gets its reply, and under which ``ref``."""
        self._unconfirmed: dict[tuple[Address, str], str | None] = {}
        """Ends of replies on their way to these callers, and the requests' ids."""
        self._progress = 0.0
        self._cache_stats = CacheStats()
        self._closed = threading.Event()
        self._cache_incarnation = self._cache_meta_incarnation()
        self.defer_ready()
        self.start_engine(self._serve)

    # ── engine thread ───────────────────────────────────────────────────────────────────────────

    def _serve(self) -> None:
        args = self._load_args
        try:
            backend, loaded = load(args, self._loading)
            draft_model = self._draft_model(backend)
        except NativeError as error:
            self.post(_NotLoaded(LoadError(type(error).__name__, str(error))))
            return
        rules = ReplyRules.of(backend, args.markers, args.signing_key)
        self._engine = build_engine(
            backend,
            self._store(backend),
            self.commands,
            self._send,
            max_queue=args.max_queue,
            live=args.save.live,
            guard=self.engine_step,
            draft_model=draft_model,
            rules=rules,
            exact=args.exact,
        )
        self._texts = TextService(
            backend,
            rules,
            send=self._send,
            run=self._queue,
            replays=self._engine.replays,
        )
        self._embeds = EmbeddingService(backend, self._send)
        self._grammars = GrammarService(backend, send=self._send, run=self._forward)
        self.post(_Loaded(loaded))
        try:
            self._engine.run()
        finally:
            self._closed.set()

    def _loading(self, share: float) -> None:
        if share - self._progress >= PROGRESS_STEP:
            self._progress = share
            self.post(_Progress(share))

    def _draft_model(self, target: Backend) -> DraftModel | None:
        """The small model that guesses for this one, if one was named."""
        args = self._load_args
        if args.params.draft_path is None:
            return None
        return load_draft_model(args.backend, args.params, target, self.engine_step)

    def _store(self, backend: Backend) -> KvStore:
        args = self._load_args
        root = namespace_key(
            [
                *backend.info.kv_identity,
                ("fingerprint", backend.info.fingerprint),
                ("block_tokens", BLOCK_TOKENS),
                ("salt", args.cache_salt),
            ]
        )
        return open_store(
            backend,
            root=root,
            holder=holder_name(self.id, self.incarnation),
            label=args.model,
            arena_path=args.arena_path,
            tier_dirs=dict(args.tier_dirs),
            granted_by=lambda: self._cache_incarnation,
            policy=args.save,
        )

    def _send(self, target: object, message: object) -> None:
        self.post((target, message))

    # ── mailbox ─────────────────────────────────────────────────────────────────────────────────

    def handle_events(self, events: list[object]) -> None:
        for event in events:
            match event:
                case _Loaded(model):
                    self._loaded = model
                    self._cache_stats.kv_bytes_per_token = model.info.kv_bytes_per_token
                    for note in model.notes:
                        self.log.warning("%s", note)
                    if model.info.can_generate and model.info.memory == "none":
                        self.log.warning("nothing is cached: %s", model.info.memory_because)
                    self.ready()
                    self.after(self._load_args.step_budget_s / STEP_LOOKS, _LOOK_AT_STEP)
                case _Progress(share):
                    self.progress(share)
                case _NotLoaded(error):
                    self.fail(error.detail, error)
                case (Address() | str() as target, message):
                    self._send_on(target, message)
                case _:
                    raise TypeError(f"the engine posted {event!r}: a bug in it")

    def _send_on(self, target: Address | str, message: object) -> None:
        """Send what the engine or a service has posted."""
        if isinstance(message, m.Completed):
            self._cache_stats.note(message)
        elif isinstance(message, m.AdaptersChanged):
            in_use = tuple((one.path, one.scale) for one in message.adapters)
            self.tell("registry", m.AdaptersInUse(self._load_args.model, in_use))
        if isinstance(target, Address):
            self._reply(target, message)
        elif isinstance(message, m.RequestEnded):
            self._run_ended(message)
        elif not self.tell(target, message) and target == "cache_meta":
            self.commands.put(CacheGone())

    def handle(self, message: object, sender: Address) -> None:
        if isinstance(message, m.Run):
            self._callers[message.request_id] = (message.reply_to, message.request.ref)
        match message:
            case m.Complete():
                if not self.tell("inflight", m.Submit(message, sender)):
                    self._run_unregistered(message, sender)
            case m.Verify():
                self.handle(message.as_complete(), sender)
            case m.CancelRun():
                self._cancel(message)
            case m.Answer(request_id, reply_to, question):
                self._asked.setdefault((reply_to, question.ref), deque()).append(request_id)
                self._put(question, reply_to)
            case question if isinstance(question, Question):
                ask = m.Ask(self._load_args.model, question)
                if not self.tell("inflight", m.Submit(ask, sender)):
                    self._put(question, sender)
            case m.Run() if self._grammars is not None:
                self._grammars.take(message)
            case m.Drain():
                self.commands.put(Asked(message, sender))
            case (
                m.Run()
                | m.PrefixResolved()
                | m.TextResolved()
                | m.RowsReserved()
                | m.WriteTails()
                | m.ForgetLive()
            ):
                self.commands.put(message)
            case _:
                self.log.warning("dropped an unknown %s", type(message).__name__)

    def _forward(self, message: m.Run | m.CancelRun) -> None:
        """Pass a request on whose grammar is compiled, or the cancel of one. From any thread."""
        match message:
            case m.CancelRun():
                self._cancel_prepared(message)
            case m.Run() if self._texts is not None and self._texts.prepares(message):
                self._texts.prepare(message)
            case _:
                self._queue(message)

    def _queue(self, message: object) -> None:
        """Hand a request to the engine, or the cancel of one. From any thread."""
        self.commands.put(message)
        is_urgent = (
            isinstance(message, m.Run) and message.request.priority is m.Priority.INTERACTIVE
        )
        if is_urgent and self._engine is not None:
            self._engine.give_way()

    def _put(self, question: Question, reply_to: Address) -> None:
        """Hand a question to what answers it; the answers come back as events."""
        if self._texts is None or self._embeds is None:
            detail = f"model {self._load_args.model!r} is being loaded; try again in a moment"
            self._reply(reply_to, refusal(question, m.FailReason.MODEL_DOWN, detail))
        elif isinstance(question, TextQuestion):
            self._texts.ask(question, reply_to)
        elif isinstance(question, EmbedderQuestion):
            self._embeds.ask(question, reply_to)
        else:
            self.commands.put(Asked(question, reply_to))

    def _reply(self, target: Address, message: object) -> None:
        """Send an answer. Inflight learns of the last one when its caller has it.

        Were it to learn of it earlier, a crash of this process could take the answer along, and
        the request would have no end: neither here nor with inflight.
        """
        ended = isinstance(message, m.Completed | m.CompletionFailed)
        if not ended and not is_end(message):
            self.tell(target, message)
            return
        asked = target, str(getattr(message, "ref", ""))
        if ended:
            self._unconfirmed[asked] = None
            self.tell(target, message, then=partial(self._confirmed, asked))
            return
        request_ids = self._asked.get(asked)
        request_id = request_ids.popleft() if request_ids else None
        if not request_ids:
            self._asked.pop(asked, None)
        if request_id is None:
            self.tell(target, message)
        else:
            self.tell(target, message, then=partial(self._ended, request_id))

    def _confirmed(self, asked: tuple[Address, str]) -> None:
        """The caller has the end of a reply, or is gone itself."""
        request_id = self._unconfirmed.pop(asked, None)
        if request_id is not None:
            self._ended(request_id)

    def _run_ended(self, ended: m.RequestEnded) -> None:
        """The engine has done with a request, whose caller may not have its end yet."""
        caller = self._callers.pop(ended.request_id, None)
        if caller is not None and caller in self._unconfirmed:
            self._unconfirmed[caller] = ended.request_id
        else:
            self._ended(ended.request_id)

    def _left(self, request_id: str) -> None:
        """The caller of a request reads no more, so its end is not confirmed."""
        self._callers.pop(request_id, None)
        asked = next((one for one, ended in self._unconfirmed.items() if ended == request_id), None)
        if asked is not None:
            self._confirmed(asked)

    def _ended(self, request_id: str) -> None:
        self.tell("inflight", m.RequestEnded(request_id))

    def _cancel(self, cancel: m.CancelRun) -> None:
        if not cancel.awaits_end:
            self._left(cancel.request_id)
        if self._grammars is not None and self._grammars.cancel(cancel):
            return  # it follows its request
        self._cancel_prepared(cancel)

    def _cancel_prepared(self, cancel: m.CancelRun) -> None:
        if self._texts is not None and self._texts.cancel(cancel.request_id):
            return  # it follows its request to the engine
        self.commands.put(cancel)
        if self._engine is not None:
            self._engine.interrupt(cancel.request_id)

    def handle_timer(self, payload: object) -> None:
        if payload == _LOOK_AT_STEP and self._engine is not None:
            self._engine.interrupt_overdue(self._load_args.step_budget_s)
            self.after(self._load_args.step_budget_s / STEP_LOOKS, _LOOK_AT_STEP)

    def undelivered(self, target: Address | str, message: object) -> None:
        """A caller that cannot be reached has ended: inflight stops what it asked for."""
        if isinstance(target, Address):
            self.tell("inflight", m.CallerGone(target))
        else:
            super().undelivered(target, message)

    def _run_unregistered(self, request: m.Complete, sender: Address) -> None:
        """Inflight is being restarted; run without it rather than refuse."""
        request_id = uuid.uuid4().hex
        self.tell(sender, m.Accepted(request.ref, request_id))
        self.handle(m.Run(request_id, sender, request), sender)

    def directory_changed(self, changed: tuple[Entry, ...]) -> None:
        del changed
        now = self._cache_meta_incarnation()
        if now != self._cache_incarnation:
            self._cache_incarnation = now
            self.commands.put(CacheGone())

    def _cache_meta_incarnation(self) -> int | None:
        entry = self.directory.get("cache_meta")
        return entry.incarnation if entry is not None and entry.is_up else None

    def terminate(self, reason: ExitReason) -> None:
        """End every request with a reason, and give their answers a moment to leave."""
        if self._engine is None:
            return
        detail = f"model {self._load_args.model!r} was unloaded ({reason.text})"
        if self._embeds is not None:
            self._embeds.close(m.FailReason.MODEL_UNLOADED, detail)
        if self._grammars is not None:
            self._grammars.close(m.FailReason.MODEL_UNLOADED, detail)
        if self._texts is not None:
            self._texts.close(m.FailReason.MODEL_UNLOADED, detail)
        self.commands.put(Close(m.FailReason.MODEL_UNLOADED, detail))
        self._engine.interrupt_all()
        self._closed.wait(timeout=2.0)
        if self._embeds is not None:
            self._embeds.wait_ended(timeout_s=0.5)
        self._readable()  # what the engine posted last must be sent before the process ends

    def _phase(self) -> str:
        if self._loaded is None or self._engine is None:
            return "loading"
        return self._engine.phase()

    def status(self) -> dict[str, object]:
        args, loaded = self._load_args, self._loaded
        report: dict[str, object] = {
            "model": args.model,
            "path": args.path,
            "backend": args.backend,
            "exact": args.exact.value,
            "phase": self._phase(),
            "progress": round(self._progress, 3),
            "pid": os.getpid(),
        }
        if loaded is not None:
            report |= loaded.report()
            report["cached"] = loaded.info.memory != "none" and args.arena_path is not None
            report["cache"] = self._cache_stats.report()
        if self._embeds is not None:
            report["texts_embedded"] = self._embeds.texts_embedded
        if self._engine is not None:
            report |= self._engine.counts()
            report["traces"] = self._engine.traces()
        return report
