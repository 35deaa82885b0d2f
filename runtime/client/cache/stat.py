"""The counters of all actors, joined into one description of the cache.

Nothing is measured here; every number is one that an actor reports. Counters start at the actor's
last start.
"""

from __future__ import annotations

from typing import Any, Final

from actors.messages.actor_ids import model_of

LEARNED: Final = (
    "saved_",
    "prefill_tokens_per_s",
    "restore_mib_per_s",
    "hits_resume",
    "tails_not_written",
)


def stat_of(actors: dict[str, Any]) -> dict[str, Any]:
    """One JSON object from the reports of the actors; None for one that did not answer."""
    meta = actors.get("cache_meta") or {}
    tiers: dict[str, dict[str, Any]] = {
        name: dict(use) for name, use in meta.get("tiers", {}).items()
    }
    for report in actors.values():
        if isinstance(report, dict) and report.get("tier") in tiers:
            rest = {key: value for key, value in report.items() if key not in ("tier",)}
            tiers[report["tier"]] |= rest
    models = {
        model: report["cache"]
        | {key: value for key, value in report.items() if key.startswith(LEARNED)}
        for actor, report in actors.items()
        if (model := model_of(actor)) is not None and isinstance(report, dict) and "cache" in report
    }
    cache = {key: value for key, value in meta.items() if key != "tiers"}
    if cache:  # a model finds the ends of its own replies without cache_meta
        resumed = sum(model.get("hits_resume", 0) for model in models.values())
        cache["hits_resume"] = cache.get("hits_resume", 0) + resumed
    return {
        "cache": cache,
        "tiers": tiers,
        "restored": _restored(models),
        "writer": actors.get("writer"),
        "models": models,
        "pressure": actors.get("scheduler"),
    }


def _restored(models: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """What all models together restored, by the slowest tier that a request read."""
    total: dict[str, dict[str, float]] = {}
    for model in models.values():
        for tier, numbers in model.get("restored", {}).items():
            sums = total.setdefault(tier, {})
            for key in ("requests", "tokens", "bytes", "ms"):
                sums[key] = sums.get(key, 0) + numbers.get(key, 0)
    return total
