"""The page of metrics: what workers have counted, and what the node is doing when it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar

from runtime import errors
from runtime.gateway.call import Call
from runtime.gateway.facts import ModelFacts
from runtime.gateway.keys import Key
from runtime.gateway.ledger_messages import TotalsRead
from runtime.gateway.wire import families as f
from runtime.gateway.wire.metrics import metrics_text
from runtime.gateway.wire.series import MODEL, OTHER, Family, Labels, Series, Table, shown, unpacked
from runtime.gateway.wire.vllm_metrics import vllm_lines

CACHE: Final = "cache_meta"
NODE_S: Final = 2.0
"""The page does not wait longer for facts of the node; what has not come is left out."""

T = TypeVar("T")


async def page(call: Call) -> bytes:
    """All of it, as far as the caller may know of models; Refused."""
    service = call.service
    totals, (facts, cache) = await asyncio.gather(service.ledger.totals(), _node(call))
    counted = _visible(unpacked(totals.series), call.key)
    now = _now(totals, facts, cache)
    now.add(f.RESTARTS, ("root", "unknown"), (await service.transport()).record.boot - 1)
    lines: list[str] = []
    if "llamacpp" in service.settings.metrics_alias:
        waiting = sum(one.details.get("waiting", 0) for one in facts)
        lines += metrics_text(totals.counts, totals.running, waiting).decode().splitlines()
    lines += shown(f.COUNTED, counted, f.PREFIX)
    lines += shown(f.OF_NODE, now.table, f.PREFIX)
    if "vllm" in service.settings.metrics_alias:
        lines += vllm_lines({**counted, **now.table})
    return ("\n".join(lines) + "\n").encode()


async def _node(call: Call) -> tuple[list[ModelFacts], Mapping[str, Any]]:
    """What models and the index report of themselves; nothing of those that do not."""
    service = call.service
    client = await service.client()
    names = service.models(call.key)
    cache, *found = await asyncio.gather(
        _soon(client.report_of(CACHE)), *(_soon(client.model_info(one)) for one in names)
    )
    facts = [
        ModelFacts(name, 0, {} if one is None else one.details, service.is_up(name))
        for name, one in zip(names, found, strict=True)
    ]
    return facts, cache or {}


async def _soon(work: Awaitable[T]) -> T | None:
    """What comes in time, else None."""
    try:
        async with asyncio.timeout(NODE_S):
            return await work
    except (TimeoutError, errors.LlamaActorsError):
        return None


def _visible(table: Table, key: Key) -> Table:
    """Without the models that a key may not use."""
    named = {one.name: one.labels.index(MODEL) for one in f.COUNTED if MODEL in one.labels}

    def may_see(name: str, labels: Labels) -> bool:
        at = named.get(name)
        return at is None or labels[at] == OTHER or key.may_use(labels[at])

    return {
        name: {labels: numbers for labels, numbers in series.items() if may_see(name, labels)}
        for name, series in table.items()
    }


def _now(totals: TotalsRead, facts: Iterable[ModelFacts], cache: Mapping[str, Any]) -> Series:
    found = Series()
    for actor, reason, n in totals.restarts:
        found.add(f.RESTARTS, (actor, reason), n)
    found.add(f.CONNECTIONS, (), totals.connections)
    found.add(f.HTTP_RUNNING, (), totals.running)
    found.add(f.MODELS_UP, (), 0)
    for one in facts:
        _model(found, one)
    for tier, state in cache.get("tiers", {}).items():
        for family, labels, value in _tier(tier, state):
            found.add(family, labels, value)
    return found


def _model(found: Series, one: ModelFacts) -> None:
    labels, details = (one.id,), one.details
    found.add(f.MODELS_UP, (), int(one.is_up))
    found.add(f.MODEL_UP, labels, int(one.is_up))
    if not details:
        return
    found.add(f.RUNNING, labels, details.get("running", 0))
    found.add(f.WAITING, labels, details.get("waiting", 0) + details.get("aside", 0))
    n_ctx = details.get("n_ctx") or 0
    if n_ctx:
        found.add(f.KV_USE, labels, min(1.0, details.get("running_cells", 0) / n_ctx))
    found.add(f.ENGINE_TOKENS, labels, details.get("tokens_generated", 0))


def _tier(name: str, of: Mapping[str, Any]) -> Iterator[tuple[Family, Labels, float]]:
    yield f.KV_BYTES, (name,), of.get("used_bytes", 0)
    yield f.KV_BUDGET, (name,), of.get("budget_bytes", 0)
    for reason, n in of.get("evicted", {}).items():
        yield f.EVICTIONS, (name, reason), n
    if "state" in of:
        yield f.TIER_UP, (name,), int(of["state"] == "open")
        yield f.TIER_ERRORS, (name,), of.get("failed", 0) + of.get("outages", 0)
