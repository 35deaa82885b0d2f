"""What llama-server tells of itself: properties, slots, adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from runtime.gateway.wire.native_settings import generation_settings
from runtime.gateway.wire.sampling import sampled

if TYPE_CHECKING:
    from actors.messages import AdapterStatus
    from runtime.gateway.facts import ModelFacts


def props_json(
    facts: ModelFacts, defaults: Mapping[str, float], build: str, *, shows_slots: bool,
    shows_metrics: bool,
) -> dict[str, Any]:  # fmt: skip
    """``GET /props``. All sequences share the cells, so each may have the whole context."""
    return {
        "default_generation_settings": {
            "n_ctx": facts.n_ctx,
            "params": generation_settings(sampled({}, defaults)),
        },
        "total_slots": facts.details.get("n_seq_max"),
        "model_alias": facts.id,
        "model_path": facts.details.get("path"),
        "modalities": {"vision": False, "audio": False, "video": False},
        "endpoint_slots": shows_slots,
        "endpoint_props": False,
        "endpoint_metrics": shows_metrics,
        "ui": False,
        "chat_template": facts.template,
        "build_info": build,
        "is_sleeping": False,
    }


def slots_json(facts: ModelFacts) -> list[dict[str, Any]]:
    """``GET /slots``: as many places as requests may run in, and how many of them are taken.

    No text of any request, and no name of its caller.
    """
    running = facts.details.get("running", 0)
    return [
        {
            "id": number,
            "n_ctx": facts.n_ctx,
            "speculative": False,
            "is_processing": number < running,
        }
        for number in range(facts.details.get("n_seq_max", 0))
    ]


def adapters_json(adapters: Sequence[AdapterStatus]) -> list[dict[str, Any]]:
    """``GET /lora-adapters``."""
    return [{"id": one.id, "path": one.path, "scale": one.scale} for one in adapters]
