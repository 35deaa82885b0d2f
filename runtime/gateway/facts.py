"""What is known of loaded models, as the APIs list them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from actors.messages import KnownModel, ModelState
from runtime import errors
from runtime.client.async_client import AsyncClient
from runtime.gateway.call import Call


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """One model, from what it reports of itself."""

    id: str
    created: int
    """Unix time from which it has been listed: that of the gateway's start."""
    details: dict[str, Any]
    is_up: bool = True
    """False: it is being loaded, or started again, or is not loaded."""
    known: KnownModel | None = None
    """Of a model that is loaded at its first use, or was: what the node knows of it."""

    @property
    def state(self) -> ModelState:
        """What it is doing."""
        if self.is_up and (self.known is None or self.known.state is not ModelState.DRAINING):
            return ModelState.UP
        state = ModelState.LOADING if self.known is None else self.known.state
        return ModelState.LOADING if state is ModelState.UP else state

    @property
    def n_bytes(self) -> int:
        """Of its file."""
        found = self.details.get("model_bytes")
        return int(found or (0 if self.known is None else self.known.file_bytes))

    @property
    def n_ctx(self) -> int | None:
        return self.details.get("n_ctx")

    @property
    def can_generate(self) -> bool:
        return bool(self.details.get("can_generate", True))

    @property
    def template(self) -> str:
        return str(self.details.get("chat_template") or "")


async def model_facts(call: Call, model: str | None = None) -> list[ModelFacts]:
    """One model, or all that the caller may use."""
    client = await call.service.client()
    service = call.service
    names = await service.listed(call.key) if model is None else [model]
    known = await service.known()
    began = int(service.began)
    loaded = set(service.loaded())
    found = await asyncio.gather(
        *(_details(client, one) if one in loaded else _nothing() for one in names)
    )
    return [
        ModelFacts(one, began, details, service.is_up(one), known.get(one))
        for one, details in zip(names, found, strict=True)
    ]


async def _nothing() -> dict[str, Any]:
    return {}


async def _details(client: AsyncClient, model: str) -> dict[str, Any]:
    try:
        return (await client.model_info(model)).details
    except errors.LlamaActorsError:
        return {}  # it is starting, or was unloaded just now
