"""Our own API: a model of a hub, fetched to the node's machine. For administrators."""

from __future__ import annotations

from typing import Any, Final

from runtime.gateway.call import Call
from runtime.gateway.long_work import Report, answer_work
from runtime.gateway.upkeep import GoOn, on_thread
from runtime.gateway.wire import own
from runtime.gateway.wire.bodies import read
from runtime.gateway.wire.failure import invalid


async def pull(call: Call) -> None:
    """Fetch a model; answers with its name and its path, for ``models/load``.

    What has come is kept where the caller leaves before; the next attempt goes on there.
    """
    call.require_admin()
    asked = read(await call.body(), own.PullBody)

    async def work(report: Report) -> object:
        return await on_thread(call.service, lambda go_on: _pulled(asked.model, go_on), report)

    await answer_work(call, work, is_stream=bool(asked.stream))


def _pulled(text: str, go_on: GoOn) -> dict[str, Any]:
    # Here: most gateways fetch nothing.
    from runtime.catalog.hub import Hub
    from runtime.catalog.names import hub_name, model_id
    from runtime.catalog.pulling import Elsewhere, planned, pull
    from runtime.catalog.store import Store
    from runtime.settings.model_folders import hub_caches, ollama_folders, store_folder

    name = hub_name(text)
    if name is None:
        raise invalid(f"{text!r} names no model of a hub; write ORG/REPO, or ORG/REPO:TAG", "model")
    hub, store = Hub(name), Store(store_folder())
    plan = planned(hub, name, store, Elsewhere(ollama_folders(), hub_caches()))
    model = pull(hub, plan, store, progress=go_on)
    return {
        "model": model.name,
        "id": model_id(model.name),
        "path": str(model.path),
        "bytes": model.n_bytes,
        "fetched": not plan.is_complete,
    }


BODIES: Final = {"/llama/v1/models/pull": own.PullBody}
ROUTES: Final = (("POST", "/llama/v1/models/pull", pull),)
