"""What is known of loaded models, as the APIs list them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

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
    """False: it is being loaded, or started again."""

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
    names = call.service.models(call.key) if model is None else [model]
    began = int(call.service.began)
    found = await asyncio.gather(*(_details(client, one) for one in names))
    return [
        ModelFacts(one, began, details, call.service.is_up(one))
        for one, details in zip(names, found, strict=True)
    ]


async def _details(client: AsyncClient, model: str) -> dict[str, Any]:
    try:
        return (await client.model_info(model)).details
    except errors.LlamaActorsError:
        return {}  # it is starting, or was unloaded just now
