"""The node at one moment, as the page shows it: its processes, the cache, models. No texts."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from actors import messages as m
from actors.messages.actor_ids import model_actor_id, model_of
from runtime import errors
from runtime.client.async_client import AsyncClient
from runtime.client.cache.stat import stat_of
from runtime.client.tree import TreeNode
from runtime.gateway.wire.own import plain_json

REPORT_S: Final = 0.8
"""A process that does not report within this time has no report in the snapshot."""
_MODEL_FACTS: Final = (
    "backend", "path", "phase", "progress", "description", "architecture", "n_ctx", "n_ctx_train",
    "n_params", "model_bytes", "kv_bytes_per_token", "can_generate", "running", "waiting", "aside",
    "tokens_generated", "requests_done", "idle_sequences", "idle_cells", "prefill_tokens_per_s",
    "contexts_rebuilt", "notes",
)  # fmt: skip


async def snapshot_of(client: AsyncClient) -> bytes:
    """A JSON object: ``at`` (Unix time), ``tree``, ``cache``, ``models``, ``known``."""
    tree = await client.tree(vitals=True)
    reports = await _reports(client)
    found = {
        "at": time.time(),
        "tree": tree.to_dict(),
        "cache": stat_of(reports),
        "models": models_of(tree, reports),
        "known": await _known(client),
    }
    return plain_json(found)


async def _reports(client: AsyncClient) -> dict[str, dict[str, Any] | None]:
    """What each process reports, all asked at once; None for one that is late."""
    names = [one.id for one in await client.directory() if one.state != "down"]

    async def report(name: str) -> dict[str, Any] | None:
        try:
            async with asyncio.timeout(REPORT_S):
                return await client.report_of(name)
        except TimeoutError:
            return None

    return dict(zip(names, await asyncio.gather(*map(report, names)), strict=True))


async def _known(client: AsyncClient) -> list[m.KnownModel]:
    """Models that are loaded or would be at their first use; none while that is not known."""
    try:
        async with asyncio.timeout(REPORT_S):
            return await client.known_models()
    except (TimeoutError, errors.NodeError):
        return []


def models_of(tree: TreeNode, reports: dict[str, dict[str, Any] | None]) -> list[dict[str, Any]]:
    """What each model is and does, without its texts."""
    names = sorted({model for actor in _ids(tree) if (model := model_of(actor)) is not None})
    found: list[dict[str, Any]] = []
    for name in names:
        node = tree.find(model_actor_id(name))
        report = reports.get(model_actor_id(name)) or {}
        known: dict[str, Any] = {key: report[key] for key in _MODEL_FACTS if key in report}
        if node is not None:
            known |= {
                "state": node.state,
                "incarnation": node.incarnation,
                "memory_bytes": node.facts.memory_bytes,
            }
        found.append({"id": name, **known})
    return found


def _ids(node: TreeNode) -> list[str]:
    return [node.id, *(one for child in node.children for one in _ids(child))]
