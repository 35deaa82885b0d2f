"""Our own API: the node, its models, their adapters and sessions, and why an answer was (not) warm.

All but ``explain`` is for administrators.
"""

from __future__ import annotations

from typing import Final

from runtime import errors
from runtime.client.async_client import AsyncClient
from runtime.client.load_request import config_of
from runtime.gateway.call import Call
from runtime.gateway.explained import Explained
from runtime.gateway.guard import check_model
from runtime.gateway.long_work import Report, answer_work
from runtime.gateway.wire import own
from runtime.gateway.wire.bodies import read
from runtime.gateway.wire.failure import Failure, Fault, Refused, invalid


async def status(call: Call) -> None:
    """What every actor of the node reports of itself."""
    call.require_admin()
    client = await call.service.client()
    await call.answer(own.plain_json(await client.status()))


async def tree(call: Call) -> None:
    """The processes of the node."""
    call.require_admin()
    vitals = own.flag_of(call.request.query_params, "vitals")
    client = await call.service.client()
    await call.answer(own.plain_json((await client.tree(vitals=vitals)).to_dict()))


async def explain(call: Call) -> None:
    """What was reused for an answer of this key, and why no more."""
    name = call.request.path_params["name"]
    found = call.service.own(Explained).find(call.key, name)
    if found is None:
        detail = f"no answer to {name!r} is kept here: the latest are, of this worker and this key"
        if not call.service.settings.explain:
            detail += "; gateway.explain is off, so none is"
        raise Refused(Failure(Fault.NOT_FOUND, detail))
    await call.answer(found)


# ── models ──────────────────────────────────────────────────────────────────────────────────────


async def models(call: Call) -> None:
    """The models that are loaded, loading or restarting; and all that are known, with states."""
    call.require_admin()
    client = await call.service.client()
    found = [one for one in await client.models() if call.key.may_use(one.id)]
    known = [one for one in await client.known_models() if call.key.may_use(one.model)]
    await call.answer(own.plain_json({"models": found, "known": known}))


async def load(call: Call) -> None:
    """Load a file of the node's machine under an id; answers when it is ready.

    It is loaded also where the caller leaves before.
    """
    call.require_admin()
    asked = read(await call.body(), own.LoadBody)
    check_model(call.key, asked.model)
    client = await call.service.client()

    async def work(report: Report) -> object:
        try:
            config = config_of(asked.model, asked.path, asked.options or {})
            found = await client.load(asked.model, config, progress=report)
        except errors.ConfigError as error:
            raise errors.InvalidRequest(str(error)) from error
        except errors.ModelLoadFailed as error:
            raise errors.InvalidRequest(f"{error} ({error.kind})") from error
        except errors.ModelAlreadyLoaded:
            if call.logged is None:
                raise
            # The worker that had begun this request was killed; the node went on loading.
            await client.ready(asked.model)
            found = await client.model_info(asked.model)
        call.service.forget_vocabulary(asked.model)
        return found

    try:
        await answer_work(call, work, is_stream=bool(asked.stream))
    except errors.ModelAlreadyLoaded as error:
        kind = type(error).__name__
        raise Refused(Failure(Fault.CONFLICT, str(error), "model", kind=kind)) from error


async def unload(call: Call) -> None:
    """Unload a model; its running requests have some time."""
    call.require_admin()
    asked = read(await call.body(), own.UnloadBody)
    if not asked.model:
        raise invalid("model is empty; name one", "model")
    check_model(call.key, asked.model)
    client = await call.service.client()
    drain_s = call.service.settings.drain_s if asked.drain_s is None else asked.drain_s
    await client.unload(asked.model, drain_s=drain_s)
    call.service.forget_vocabulary(asked.model)
    await call.answer_json({"model": asked.model, "unloaded": True})


# ── adapters ────────────────────────────────────────────────────────────────────────────────────


async def adapters(call: Call) -> None:
    """The LoRA adapters of a model."""
    client, model = await _of_admin(call, call.request.query_params.get("model"))
    await _answer_adapters(call, client, model)


async def load_adapter(call: Call) -> None:
    """Apply a LoRA adapter to a model."""
    call.require_admin()
    asked = read(await call.body(), own.LoadAdapterBody)
    client, model = await _of_admin(call, asked.model)
    try:
        await client.load_adapter(model, asked.path, scale=asked.scale)
    except errors.ConfigError as error:
        raise invalid(str(error), "path") from None
    await _answer_adapters(call, client, model)


async def set_adapter(call: Call) -> None:
    """Apply an adapter of a model more, less, or not at all."""
    call.require_admin()
    asked = read(await call.body(), own.SetAdapterBody)
    client, model = await _of_admin(call, asked.model)
    await client.set_adapter_scale(model, asked.id, asked.scale)
    await _answer_adapters(call, client, model)


async def unload_adapter(call: Call) -> None:
    """Free an adapter of a model."""
    call.require_admin()
    asked = read(await call.body(), own.UnloadAdapterBody)
    client, model = await _of_admin(call, asked.model)
    await client.unload_adapter(model, asked.id)
    await _answer_adapters(call, client, model)


async def _answer_adapters(call: Call, client: AsyncClient, model: str) -> None:
    found = await client.list_adapters(model)
    await call.answer(own.plain_json({"model": model, "adapters": found}))


# ── sessions ────────────────────────────────────────────────────────────────────────────────────


async def sessions(call: Call) -> None:
    """The sessions of a model that were used last; ``own``: of this key."""
    client, model = await _of_admin(call, call.request.query_params.get("model"))
    salt = call.service.salt(call.key)
    found = [
        {
            "session": one.name,
            "tokens": one.n_tokens,
            "running": one.is_running,
            "own": one.salt == salt,
        }
        for one in await client.list_sessions(model)
    ]
    await call.answer_json({"model": model, "sessions": found})


async def end_session(call: Call) -> None:
    """Forget a session of this key."""
    call.require_admin()
    asked = read(await call.body(), own.EndSessionBody)
    client, model = await _of_admin(call, asked.model)
    salt = call.service.salt(call.key, asked.cache_salt or "") or None
    was_known = await client.end_session(model, asked.session, salt=salt)
    await call.answer_json({"model": model, "session": asked.session, "was_known": was_known})


async def _of_admin(call: Call, name: str | None) -> tuple[AsyncClient, str]:
    call.require_admin()
    model = await call.model(name)
    return await call.service.client(), model


BODIES: Final = {
    "/llama/v1/models/load": own.LoadBody,
    "/llama/v1/models/unload": own.UnloadBody,
    "/llama/v1/adapters/load": own.LoadAdapterBody,
    "/llama/v1/adapters/set": own.SetAdapterBody,
    "/llama/v1/adapters/unload": own.UnloadAdapterBody,
    "/llama/v1/sessions/end": own.EndSessionBody,
}
ROUTES: Final = (
    ("GET", "/llama/v1/status", status),
    ("GET", "/llama/v1/tree", tree),
    ("GET", "/llama/v1/requests/{name}/explain", explain),
    ("GET", "/llama/v1/models", models),
    ("POST", "/llama/v1/models/load", load),
    ("POST", "/llama/v1/models/unload", unload),
    ("GET", "/llama/v1/adapters", adapters),
    ("POST", "/llama/v1/adapters/load", load_adapter),
    ("POST", "/llama/v1/adapters/set", set_adapter),
    ("POST", "/llama/v1/adapters/unload", unload_adapter),
    ("GET", "/llama/v1/sessions", sessions),
    ("POST", "/llama/v1/sessions/end", end_session),
)
