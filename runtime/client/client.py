"""Talking to a node from outside its tree: every question a host may ask, as a method.

The only place where failures that travelled as values become exceptions. Usable from several
threads at once; each has its own mailbox inside the connection.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from actors import messages as m
from actors.messages.actor_ids import model_actor_id, model_of
from actors.messages.payload import PayloadKeeper
from cache import tokens as token_bytes
from runtime import errors
from runtime.client.attempt import GRACE_S, Attempt, Progress, load_failure
from runtime.client.received import PartMissing
from runtime.client.request_options import Messages, Prompt, Wanted, chat_request, prompt_request
from runtime.client.results import (
    Completion,
    CompletionEvent,
    Event,
    ModelStatus,
)
from runtime.client.stream import CompletionStream, RequestHandle, without_resumed
from runtime.embedded import EMBEDDED_MODEL_ID
from runtime.embedded import path as embedded_model_path
from runtime.settings import arguments
from supervision import Address, Connection, Entry
from supervision.errors import (
    ForkedProcess,
    MachineUnfit,
    NodeNotRunning,
    NodeRestarted,
    SupervisionError,
    TargetDown,
    TransportRefused,
)
from supervision.messages import (
    ListDirectory,
    ReportStatus,
    StatusReported,
    new_ref,
)

if TYPE_CHECKING:
    from runtime.settings.config import ModelConfig

ASK_TIMEOUT_S: Final = 5.0  # an actor answers in milliseconds; past this it is gone or stuck
STATUS_TIMEOUT_S: Final = 1.0
LOAD_TIMEOUT_S: Final = 660.0  # the supervisor gives up before this and says why
HEAL_TIMEOUT_S: Final = 30.0  # a model that crashed is loaded again within this, or says why not

_LAST_LOOK_S: Final = 0.5
"""What is asked just before a deadline gets so long for its answer."""


class Client:
    """Questions to one node."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    # ── models ──────────────────────────────────────────────────────────────────────────────────

    def load(
        self,
        model: str,
        config: ModelConfig,
        *,
        progress: Callable[[float], None] | None = None,
        ends_at: float | None = None,
    ) -> ModelStatus:
        """Load a model and wait until it is ready; ``progress`` gets shares from 0 to 1.

        ``NoReply`` at ``ends_at`` on the monotonic clock, if that is given; the node goes on.
        """
        from runtime.settings.config import ModelConfig, check_model_id

        check_model_id(arguments.model_name(model))
        if progress is not None and not callable(progress):
            raise arguments.wrong("progress", progress, "a function that takes a share")
        if not isinstance(config, ModelConfig):
            raise arguments.wrong("config", config, "a ModelConfig")
        message = m.LoadModel(
            new_ref(),
            model,
            config.path,
            config.backend,
            config.params,
            config.markers,
            config.chat_template,
        )
        try:
            for answer in self._connection.stream(
                "registry",
                message,
                idle_timeout_s=LOAD_TIMEOUT_S,
                ends_at=ends_at,
                until_down=True,
            ):
                match answer:
                    case m.ModelLoaded(_, entry):
                        return self._model_status(entry)
                    case m.ModelNotLoaded():
                        raise load_failure(model, answer)
                    case m.ModelLoading(_, share) if progress is not None:
                        progress(share)
        except (TargetDown, NodeRestarted):
            # The asked one died; what it had noted is known to its successor, which loads it.
            self._wait_until_up(model, _until(LOAD_TIMEOUT_S, ends_at))
            found = self._where(model_actor_id(model))
            if found is not None:
                return self._model_status(found)
        except SupervisionError as error:
            raise self.typed(error) from error
        raise errors.NoReply(f"the registry did not say whether {model!r} was loaded")

    def load_embedded(
        self,
        progress: Callable[[float], None] | None = None,
        *,
        ends_at: float | None = None,
    ) -> None:
        """Load the embedded model unless it is there; also when another caller is faster."""
        from runtime.settings.config import ModelConfig

        config = ModelConfig(str(embedded_model_path()))
        try:
            self.load(EMBEDDED_MODEL_ID, config, progress=progress, ends_at=ends_at)
        except errors.ModelAlreadyLoaded:
            self._wait_until_up(EMBEDDED_MODEL_ID, _until(LOAD_TIMEOUT_S, ends_at))

    def unload(self, model: str, *, drain_s: float | None = 0.0) -> None:
        """Unload a model; what runs may go on for ``drain_s`` seconds, then it is ended."""
        drain = arguments.pause("drain_s", drain_s)
        request = m.UnloadModel(new_ref(), arguments.model_name(model), drain)
        answer = self._ask("registry", request, timeout_s=30.0 + drain)
        if not (isinstance(answer, m.ModelUnloaded) and answer.was_loaded):
            raise errors.ModelUnknown(model, f"no model {model!r} is loaded")

    def models(self) -> list[ModelStatus]:
        """Loaded and loading models, by id."""
        entries = [e for e in self.directory() if model_of(e.id) and e.state != "down"]
        return [self._model_status(entry) for entry in sorted(entries, key=lambda e: e.id)]

    def model_status(self, model: str) -> ModelStatus:
        """One of them, whatever state it is in."""
        entry = self._where(model_actor_id(arguments.model_name(model)))
        if entry is None:
            raise errors.ModelUnknown(model, f"no model {model!r} is loaded; load it first")
        return self._model_status(entry)

    def ready(self, model: str, *, ends_at: float | None = None) -> None:
        """Wait for a model that restarts; the embedded one is loaded at its first use.

        No longer than until ``ends_at`` on the monotonic clock, if that is given.
        """
        arguments.model_name(model)
        until = _until(HEAL_TIMEOUT_S, ends_at)
        entry = self._where(model_actor_id(model), until)
        if entry is not None and entry.is_up:
            return
        if entry is None and model == EMBEDDED_MODEL_ID and not self._is_wanted(model, until):
            self.load_embedded(ends_at=ends_at)
        else:
            self._wait_until_up(model, until)

    def _model_status(self, entry: Entry) -> ModelStatus:
        details = self._report(entry)
        return ModelStatus(
            id=model_of(entry.id) or entry.id,
            state=entry.state,
            pid=entry.pid,
            incarnation=entry.incarnation,
            restarts=entry.restarts,
            details=details or {},
        )

    # ── completions ─────────────────────────────────────────────────────────────────────────────

    def complete(self, model: str, prompt: Prompt, **options: Any) -> Completion:
        """Generate and wait for the end; options as for ``stream``."""
        return self._whole(model, self.stream(model, prompt, **options))

    def stream(self, model: str, prompt: Prompt, **options: Any) -> CompletionStream:
        """Generate, and yield events as they come; the last one is a ``CompletionEvent``.

        ``prompt`` is text or token ids. Options, all by keyword:

        * None for any option is its default
        * ``max_tokens`` (256), ``stop``, ``timeout_s``, ``parse_special``
        * every sampling option, see ``runtime.client.sampling_options``: ``temperature``, ``seed``,
          ``json_schema``, ``grammar``, ``logprobs`` and so on
        * ``parent_key``: hex ``finish_key`` of an earlier completion that this prompt continues
        * ``session``: a name; its next request goes on where this one ended. With ``continues`` the
          prompt is only what follows the session, or ``parent_key``
        * ``speculation``: ``off | ngram | draft``; never changes the text
        * ``thinking``, ``thinking_budget_tokens``, ``tool_calls``: tell such parts from text
        * ``resumed_events``: hear a ``ResumedEvent`` when a process died under the request

        When a process of the node dies, or all of them, the reply goes on at its next token, and
        nothing comes twice. ``ModelDown`` comes only if the model stays away.
        """
        return self._stream(prompt_request(model, prompt, **options))

    def chat(self, model: str, messages: Messages, **options: Any) -> Completion:
        """Answer a conversation and wait for the end; options as for ``stream_chat``."""
        return self._whole(model, self.stream_chat(model, messages, **options))

    def stream_chat(self, model: str, messages: Messages, **options: Any) -> CompletionStream:
        """Answer a conversation, ``[{"role": "user", "content": …}, …]``, by the model's template.

        Options as for ``stream``, and ``tools``, ``documents``, ``enable_thinking`` and
        ``template_kwargs``, which the template sees. Calls of given tools are told from text.
        ``NotSupported`` names what the template would leave out.
        """
        return self._stream(chat_request(model, messages, **options))

    def prefill_only(self, model: str, prompt: Prompt, **options: Any) -> Completion:
        """Read a prompt into the cache and say nothing; its ``finish_key`` can be continued."""
        return self.complete(model, prompt, **options, max_tokens=0)

    def continue_session(
        self, model: str, session: str, more: Prompt, **options: Any
    ) -> Completion:
        """Go on in a session: ``more`` is only what follows what it holds already."""
        return self.complete(model, more, **options, session=session, continues=True)

    def _whole(self, model: str, events: CompletionStream) -> Completion:
        with events:
            for event in events:
                if isinstance(event, CompletionEvent):
                    return event.completion
        raise errors.NoReply(f"model {model!r} ended the stream without a result")

    def _stream(self, wanted: Wanted) -> CompletionStream:
        handle = RequestHandle(
            lambda request_id: self._connection.tell("inflight", m.Cancel(request_id)),
            wanted.request.timeout_s,
        )
        events = self._events(wanted.request, wanted.prompt, handle)
        return CompletionStream(
            events if wanted.resumed_events else without_resumed(events), handle
        )

    def _events(
        self, request: m.Complete, prompt: bytes, handle: RequestHandle
    ) -> Generator[Event, None, None]:
        """Ask until the reply is whole; what a dead process began goes on in the next one."""
        progress = Progress(handle.accepted)
        keeper = PayloadKeeper(prompt)
        request = replace(request, prompt=keeper.payload)
        ends_at = handle.start_clock()
        waits_until = None if ends_at is None else ends_at + GRACE_S
        heals_until: float | None = None
        try:
            while True:
                before = len(progress.received)
                so_far = PayloadKeeper(token_bytes.pack(progress.received.tokens))
                rest = replace(request, delivered=so_far.payload, timeout_s=_left_s(ends_at))
                try:
                    yield from Attempt(self._connection, rest, progress, waits_until).events()
                    return
                except (
                    errors.ModelUnknown,
                    errors.SessionBusy,
                    NodeRestarted,
                    TargetDown,
                    PartMissing,
                ) as error:
                    is_first, now = heals_until is None, time.monotonic()
                    if is_first or len(progress.received) > before:
                        heals_until = _until(HEAL_TIMEOUT_S, waits_until)
                    with self._in_time(request, waits_until):
                        self._heal(
                            request.model, error, heals_until or now, waits_until, is_first=is_first
                        )
                except SupervisionError as error:
                    with self._in_time(request, waits_until):
                        raise self.typed(error) from error
                finally:
                    so_far.close()
        finally:
            keeper.close()

    @contextlib.contextmanager
    def _in_time(self, request: m.Complete, waits_until: float | None) -> Iterator[None]:
        """What fails when the caller's time is over fails for that reason."""
        try:
            yield
        except (errors.NoReply, errors.ModelDown, errors.SessionBusy) as error:
            if waits_until is None or time.monotonic() < waits_until:
                raise
            raise errors.DeadlineExceeded(
                f"no answer within timeout_s = {request.timeout_s:g} seconds, nor within "
                f"{GRACE_S:g} s after them ({error}); the node is busy, stopped or healing"
            ) from error

    def _heal(
        self,
        model: str,
        error: Exception,
        until: float,
        loads_until: float | None,
        *,
        is_first: bool,
    ) -> None:
        """Wait until ``model`` can be asked again, or raise what the caller should get."""
        is_over = time.monotonic() > until
        match error:
            case errors.ModelUnknown():
                if not is_over and self._is_wanted(model, until):
                    self._wait_until_up(model, until)
                elif not is_over and model == EMBEDDED_MODEL_ID:
                    self.load_embedded(ends_at=loads_until)
                else:
                    raise error
            case errors.SessionBusy():
                if is_first or is_over:
                    raise error
                _Pause().wait()  # the attempt before this one, which is being cancelled
            case _ if is_over:
                raise errors.ModelDown(model, f"{error}; tried again for {HEAL_TIMEOUT_S:.0f} s")
            case _:
                pass  # whoever is asked next waits for it

    def _wait_until_up(self, model: str, deadline: float) -> None:
        """Wait for a model that is starting or restarting, until ``deadline`` (monotonic)."""
        within_s = max(0.0, deadline - time.monotonic())
        pause = _Pause()
        while time.monotonic() < deadline:
            entry = self._where(model_actor_id(model), deadline + _LAST_LOOK_S)
            if entry is not None and entry.is_up:
                return
            if entry is not None and entry.state == "down":
                raise errors.ModelStopped(
                    model,
                    f"model {model!r} crashed so often that it was stopped (last: "
                    f"{entry.last_exit}); see the log, then load it again",
                )
            if entry is None and not self._is_wanted(model, deadline + _LAST_LOOK_S):
                raise errors.ModelUnknown(model, f"no model {model!r} is loaded")
            pause.wait()
        raise errors.ModelDown(model, f"model {model!r} did not come back within {within_s:.0f} s")

    def _is_wanted(self, model: str, until: float) -> bool:
        """Whether the node means to have this model, even if it is healing just now."""
        within_s = min(HEAL_TIMEOUT_S, max(0.0, until - time.monotonic()))
        answer = self._ask("registry", ReportStatus(new_ref()), timeout_s=within_s)
        if not isinstance(answer, StatusReported):
            return False
        wanted = answer.status.get("wanted_models")
        return isinstance(wanted, list) and model in wanted

    # ── the node ────────────────────────────────────────────────────────────────────────────────

    def directory(self) -> tuple[Entry, ...]:
        """Every entry of the tree, from the registry; from the root while that restarts."""
        try:
            answer = self._ask("registry", ListDirectory(new_ref()), timeout_s=STATUS_TIMEOUT_S)
        except errors.NoReply:
            try:
                return self._connection.directory()
            except SupervisionError as error:
                raise self.typed(error) from error
        return tuple(getattr(answer, "entries", ()))

    def status(self) -> dict[str, Any]:
        """What every actor says of itself, by id; ``None`` for one that did not answer in time."""
        return {
            entry.id: self._report(entry) for entry in self.directory() if entry.state != "down"
        }

    def report_of(self, actor: str) -> dict[str, Any] | None:
        """What one actor says of itself; None if it does not answer in time."""
        if not isinstance(actor, str):
            raise arguments.wrong("actor", actor, "the id of an actor")
        entry = self._where(actor)
        return None if entry is None else self._report(entry)

    def _report(self, entry: Entry) -> dict[str, Any] | None:
        if entry.address is None:
            return None
        try:
            answer = self._ask(entry.id, ReportStatus(new_ref()), timeout_s=STATUS_TIMEOUT_S)
        except errors.NoReply:
            return None
        return dict(answer.status) if isinstance(answer, StatusReported) else None

    @property
    def connection(self) -> Connection:
        """The raw line into the tree."""
        return self._connection

    def ask(self, target: str, message: object) -> object:
        """Ask any actor by id; ``NoReply`` or ``NodeNotRunning`` when it does not answer."""
        if not isinstance(target, str | Address):
            raise arguments.wrong("target", target, "the id of an actor, or its address")
        ref = getattr(message, "ref", None)
        if not isinstance(ref, str) or not ref:
            raise arguments.wrong("message", message, "a message with a ref; see actors.messages")
        return self._ask(target, message)

    def _ask(self, target: str, message: object, *, timeout_s: float = ASK_TIMEOUT_S) -> object:
        try:
            return self._connection.ask(target, message, timeout_s=timeout_s)
        except SupervisionError as error:
            raise self.typed(error) from error

    def _where(self, actor: str, until: float | None = None) -> Entry | None:
        ends_at = _until(ASK_TIMEOUT_S, until)
        try:
            return self._connection.where(actor, timeout_s=max(0.0, ends_at - time.monotonic()))
        except SupervisionError as error:
            raise self.typed(error) from error

    def typed(self, error: SupervisionError) -> errors.LlamaActorsError:
        """What went wrong below, in the words of this floor."""
        if isinstance(error, TransportRefused):
            return errors.InvalidRequest(f"this cannot be sent to the node: {error}")
        if isinstance(error, NodeNotRunning):
            return errors.NodeNotRunning(self._connection.record.port, str(error))
        if isinstance(error, MachineUnfit):
            return errors.MachineUnfit(str(error))
        if isinstance(error, ForkedProcess):
            return errors.ForkedProcess(str(error))
        return errors.NoReply(str(error))


class _Pause:
    """Short, growing pauses between two looks at something that changes by itself."""

    def __init__(self) -> None:
        self._seconds = 0.005

    def wait(self) -> None:
        time.sleep(self._seconds)  # noqa: TID251  # a host thread, not an actor; bounded by callers
        self._seconds = min(0.1, self._seconds * 1.5)


def _left_s(ends_at: float | None) -> float | None:
    return None if ends_at is None else max(0.0, ends_at - time.monotonic())


def _until(within_s: float, ends_at: float | None) -> float:
    """The end of a wait that begins now, on the monotonic clock."""
    own = time.monotonic() + within_s
    return own if ends_at is None else min(own, ends_at)
