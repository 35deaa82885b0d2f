"""Lists of models, as OpenAI and Anthropic have them."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from runtime.gateway.facts import ModelFacts

OWNER: Final = "llama-actors"
_META: Final = (
    "n_vocab", "n_ctx_train", "n_embd", "n_params", "model_bytes", "description", "architecture",
)  # fmt: skip
_STATUS: Final = {
    "up": "loaded", "draining": "loaded", "loading": "loading", "asleep": "sleeping",
}  # fmt: skip
MAX_PAGE: Final = 1000


def openai_model(facts: ModelFacts, name: str | None = None) -> dict[str, Any]:
    """One model; ``name``: as the client called it."""
    details = facts.details
    found: dict[str, Any] = {
        "id": name or facts.id,
        "object": "model",
        "created": facts.created,
        "owned_by": OWNER,
        "status": _status(facts),
    }
    if name and name != facts.id:
        found["root"] = facts.id
    if facts.n_ctx is not None:
        found |= {"max_model_len": facts.n_ctx, "context_length": facts.n_ctx}
    meta = {key: details[key] for key in _META if key in details}
    return {**found, "meta": meta} if meta else found


def _status(facts: ModelFacts) -> dict[str, Any]:
    """As llama-server's router has it, and the state in our own words."""
    state = facts.state.value
    found: dict[str, Any] = {"value": _STATUS.get(state, "unloaded"), "state": state}
    return {**found, "failed": True} if state == "failed" else found


def openai_list(models: Sequence[tuple[ModelFacts, str | None]]) -> dict[str, Any]:
    """All of them, each with the name under which it is listed."""
    return {"object": "list", "data": [openai_model(facts, name) for facts, name in models]}


def anthropic_model(facts: ModelFacts, name: str | None = None) -> dict[str, Any]:
    """One model in Anthropic's form."""
    created = datetime.datetime.fromtimestamp(facts.created, datetime.UTC)
    return {
        "type": "model",
        "id": name or facts.id,
        "display_name": facts.id,
        "created_at": created.isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "capabilities": None,
        "max_input_tokens": facts.n_ctx,
        "max_tokens": facts.n_ctx,
    }


def anthropic_list(models: Sequence[ModelFacts], query: Mapping[str, str]) -> dict[str, Any]:
    """A page of them: ``limit``, ``after_id`` and ``before_id`` as in Anthropic's API."""
    ids = [one.id for one in models]
    start = ids.index(query["after_id"]) + 1 if query.get("after_id") in ids else 0
    stop = ids.index(query["before_id"]) if query.get("before_id") in ids else len(ids)
    given = query.get("limit", "")
    limit = (
        min(int(given[:9]), MAX_PAGE)
        if given.isascii() and given[:9].isdigit() and int(given[:9])
        else 20
    )
    page = [anthropic_model(one) for one in models[start:stop][:limit]]
    return {
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(models[start:stop]) > limit,
    }
