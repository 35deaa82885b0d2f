"""The models of one node: loaded, looked up, and waited for while they restart.

Beneath ``AsyncClient`` and ``Reply``, which both wait for models.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from actors import messages as m
from actors.messages.actor_ids import RESIDENCY, model_actor_id, model_of
from runtime import errors
from runtime.client.failures import connection_failure, load_failure
from runtime.client.results import ModelStatus
from runtime.client.time_limits import (
    ASK_TIMEOUT_S,
    HEAL_TIMEOUT_S,
    LAST_LOOK_S,
    LOAD_TIMEOUT_S,
    STATUS_TIMEOUT_S,
    Pauses,
    until,
)
from runtime.client.transport import Transport
from runtime.embedded import EMBEDDED_MODEL_ID
from runtime.embedded import path as embedded_model_path
from supervision import Address, Entry
from supervision.errors import NodeRestarted, SupervisionError, TargetDown
from supervision.messages import ReportStatus, StatusReported, new_ref

if TYPE_CHECKING:
    from runtime.settings.config import ModelConfig


class Models:
    """Asks the registry and the root about models; raises errors of ``runtime``."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def load(
        self,
        model: str,
        config: ModelConfig,
        progress: Callable[[float], None] | None = None,
        ends_at: float | None = None,
    ) -> ModelStatus:
        """``NoReply`` at ``ends_at`` on the monotonic clock, if given; the node keeps loading."""
        from runtime.residency.settings import load_message

        message = load_message(model, config, new_ref())
        try:
            entry = await self._loaded(model, "registry", message, progress, ends_at)
            return await self.status_of(entry)
        except (TargetDown, NodeRestarted):
            # The registry died; what it had noted is kept for its successor, which loads it.
            await self.wait_until_up(model, until(LOAD_TIMEOUT_S, ends_at))
            found = await self.where(model_actor_id(model))
            if found is not None:
                return await self.status_of(found)
        except SupervisionError as error:
            raise self.typed(error) from error
        raise errors.NoReply(f"the registry did not answer whether {model!r} was loaded")

    async def _loaded(
        self,
        model: str,
        actor: str,
        message: object,
        progress: Callable[[float], None] | None,
        ends_at: float | None,
    ) -> Entry:
        """The model's entry, once an actor has had it loaded; raises why it is not."""
        replies = self._transport.stream(
            actor, message, idle_timeout_s=LOAD_TIMEOUT_S, ends_at=ends_at
        )
        try:
            while True:
                match await replies.next():
                    case m.ModelLoaded(_, entry):
                        return entry
                    case m.ModelNotLoaded() as failed:
                        raise load_failure(model, failed)
                    case m.ModelLoading(_, share) if progress is not None:
                        progress(share)
        finally:
            replies.close()

    async def wake(self, model: str, ends_at: float | None = None) -> bool:
        """Have a model loaded that is known and not loaded; False: there is none of this name.

        Raises ``ModelLoadFailed``, and ``NoReply`` at ``ends_at`` on the monotonic clock.
        """
        until_s = until(HEAL_TIMEOUT_S, ends_at)
        while True:
            message = m.NeedModel(new_ref(), model, time.monotonic())
            try:
                await self._loaded(model, RESIDENCY, message, None, ends_at)
            except errors.ModelUnknown:
                return False
            except (TargetDown, NodeRestarted):
                if time.monotonic() > until_s:
                    return False
                await self._transport.pause(LAST_LOOK_S / 5)
            except SupervisionError as error:
                raise self.typed(error) from error
            else:
                return True

    async def known(self) -> list[m.KnownModel]:
        """The models that are loaded, or would be at their first use, by name."""
        found: list[m.KnownModel] = []
        while True:
            after = found[-1].model if found else ""
            answer = await self.ask(RESIDENCY, m.ListModels(new_ref(), after))
            if not isinstance(answer, m.ModelsListed):
                raise errors.NoReply("the node did not list its models")
            found += answer.models
            if answer.is_last or not answer.models:
                return found

    async def load_embedded(
        self,
        progress: Callable[[float], None] | None = None,
        *,
        ends_at: float | None = None,
    ) -> None:
        """Load the embedded model unless it is loaded; also when another caller is faster."""
        from runtime.settings.config import ModelConfig

        config = ModelConfig(str(embedded_model_path()))
        try:
            await self.load(EMBEDDED_MODEL_ID, config, progress, ends_at)
        except errors.ModelAlreadyLoaded:
            await self.wait_until_up(EMBEDDED_MODEL_ID, until(HEAL_TIMEOUT_S, ends_at))

    async def load_embedded_at_use(self, model: str, ends_at: float | None) -> bool:
        """Load the embedded model if this is its id; whether it is."""
        if model != EMBEDDED_MODEL_ID:
            return False
        await self.load_embedded(ends_at=ends_at)
        return True

    async def ready(self, model: str, *, ends_at: float | None = None) -> None:
        """Wait for a model that restarts; load one that is known, or embedded, and not loaded."""
        deadline = until(HEAL_TIMEOUT_S, ends_at)
        entry = await self.where(model_actor_id(model), deadline)
        if entry is not None and entry.is_up:
            return
        is_gone = entry is None or entry.state in ("down", "stopping")
        if is_gone and await self.wake(model, ends_at):
            return
        is_embedded = entry is None and model == EMBEDDED_MODEL_ID
        if is_embedded and not await self.is_wanted(model, deadline):
            await self.load_embedded(ends_at=ends_at)
        else:
            await self.wait_until_up(model, deadline)

    async def wait_until_up(self, model: str, deadline: float) -> None:
        """Wait for a model that is starting or restarting, until ``deadline`` (monotonic)."""
        within_s = max(0.0, deadline - time.monotonic())
        pauses = Pauses()
        while time.monotonic() < deadline:
            entry = await self.where(model_actor_id(model), deadline + LAST_LOOK_S)
            if entry is not None and entry.is_up:
                return
            if entry is not None and entry.state == "down":
                raise errors.ModelStopped(
                    model,
                    f"model {model!r} crashed so often that it was stopped (last: "
                    f"{entry.last_exit}); see the log, then load it again",
                )
            if entry is None and not await self.is_wanted(model, deadline + LAST_LOOK_S):
                raise errors.ModelUnknown(model, f"no model {model!r} is loaded")
            await self._transport.pause(pauses.next_s())
        raise errors.ModelDown(model, f"model {model!r} did not come back within {within_s:.0f} s")

    async def is_wanted(self, model: str, ends_at: float) -> bool:
        """Whether the model shall be loaded, even if it is restarting."""
        within_s = min(HEAL_TIMEOUT_S, max(0.0, ends_at - time.monotonic()))
        answer = await self.ask("registry", m.ListWantedModels(new_ref()), timeout_s=within_s)
        return isinstance(answer, m.WantedModelsListed) and model in answer.models

    async def status_of(self, entry: Entry) -> ModelStatus:
        """A model by its entry, and what it reports of itself."""
        details = await self.report(entry)
        return ModelStatus(
            id=model_of(entry.id) or entry.id,
            state=entry.state,
            pid=entry.pid,
            incarnation=entry.incarnation,
            restarts=entry.restarts,
            details=details or {},
        )

    async def report(self, entry: Entry) -> dict[str, Any] | None:
        """What an actor reports of itself, for people; None if it does not answer in time."""
        if entry.address is None:
            return None
        try:
            answer = await self.ask(entry.id, ReportStatus(new_ref()), timeout_s=STATUS_TIMEOUT_S)
        except errors.NoReply:
            return None
        return dict(answer.status) if isinstance(answer, StatusReported) else None

    async def ask(
        self, target: str | Address, message: object, *, timeout_s: float = ASK_TIMEOUT_S
    ) -> object:
        """The actor's answer."""
        try:
            return await self._transport.ask(target, message, timeout_s=timeout_s)
        except SupervisionError as error:
            raise self.typed(error) from error

    async def where(self, actor: str, ends_at: float | None = None) -> Entry | None:
        """The root's entry for an actor; None if the tree has none of this id."""
        within_s = max(0.0, until(ASK_TIMEOUT_S, ends_at) - time.monotonic())
        try:
            return await self._transport.where(actor, timeout_s=within_s)
        except SupervisionError as error:
            raise self.typed(error) from error

    def typed(self, error: SupervisionError) -> errors.LlamaActorsError:
        """An error of the connection as one of ``runtime.errors``."""
        return connection_failure(error, self._transport.record.port)
