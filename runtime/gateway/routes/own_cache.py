"""Our own API: the cache of the node. All but ``match`` is for administrators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from runtime.client.cache import upkeep
from runtime.client.cache.listing import page_of, shown
from runtime.client.cache.stat import stat_of
from runtime.gateway.call import Call
from runtime.gateway.long_work import Report, answer_work
from runtime.gateway.thinking import possible
from runtime.gateway.upkeep import on_cache, on_client
from runtime.gateway.wire import own
from runtime.gateway.wire.bodies import read
from runtime.gateway.wire.failure import Failure, Fault, Refused
from runtime.gateway.wire.openai_chat import template_options

if TYPE_CHECKING:
    from runtime.client.cache.admin import OnlineCacheAdmin
    from runtime.client.client import Client
    from runtime.gateway.upkeep import GoOn


async def stat(call: Call) -> None:
    """The counters of the cache, its tiers and its models."""
    call.require_admin()
    client = await call.service.client()
    await call.answer(own.plain_json(stat_of(await client.reports())))


async def ls(call: Call) -> None:
    """Stored rows: a page, and the cursor after it."""
    call.require_admin()
    wanted = own.filter_of(call.request.query_params)
    found = await on_cache(call.service, lambda cache, _: page_of(wanted, cache))
    await call.answer(own.plain_json(found))


async def show(call: Call) -> None:
    """One row, by its key or the beginning of it."""
    call.require_admin()
    digits = own.digits_of(call.request.path_params["key"])

    def look(cache: OnlineCacheAdmin, _: GoOn) -> dict[str, Any]:
        report, plain = shown(cache, digits)
        return report.to_dict() | plain

    await call.answer(own.plain_json(await on_cache(call.service, look)))


async def verify(call: Call) -> None:
    """Read every row and check its digest."""
    call.require_admin()
    asked = read((await call.body()).strip() or b"{}", own.VerifyBody)

    def check(cache: OnlineCacheAdmin, go_on: GoOn) -> dict[str, Any]:
        return upkeep.verified(cache, go_on, repair=bool(asked.repair))

    async def work(report: Report) -> object:
        return await on_cache(call.service, check, report)

    await answer_work(call, work, is_stream=bool(asked.stream))


async def clear(call: Call) -> None:
    """Remove superseded rows, old quarantined files and abandoned temp files."""
    call.require_admin()
    age_s = own.read_clear(await call.body()).quarantine_age_s
    kept_s = upkeep.QUARANTINE_AGE_S if age_s is None else age_s
    found = await on_cache(call.service, lambda cache, _: upkeep.cleared(cache, kept_s))
    await call.answer_json(found)


async def flush(call: Call) -> None:
    """Write what waits to be written, and answer when it is."""
    call.require_admin()
    asked = own.read_flush(await call.body())
    timeout_s = upkeep.FLUSH_TIMEOUT_S if asked.timeout_s is None else asked.timeout_s

    def write(client: Client, go_on: GoOn) -> None:
        upkeep.flush(client, timeout_s, lambda: go_on(0.0))

    async def work(_: Report) -> object:
        await on_client(call.service, write)
        return {"flushed": True}

    await answer_work(call, work, is_stream=False)


async def remove(call: Call) -> None:
    """Remove a row, and all that continues it."""
    call.require_admin()
    digits = own.read_remove(await call.body())

    def drop(cache: OnlineCacheAdmin, _: GoOn) -> dict[str, int]:
        return cache.remove_tree(cache.find(digits).key).to_dict()

    await call.answer_json(await on_cache(call.service, drop))


async def wipe(call: Call) -> None:
    """Remove all rows, or all rows of a model."""
    call.require_admin()
    model = own.read_wipe(await call.body())

    def drop(cache: OnlineCacheAdmin, _: GoOn) -> dict[str, int]:
        return upkeep.wiped(cache, model).to_dict()

    await call.answer_json(await on_cache(call.service, drop))


async def match(call: Call) -> None:
    """How much of a prompt is warm, for requests of this key."""
    service = call.service
    if not service.settings.explain and not call.key.is_admin:
        raise Refused(
            Failure(
                Fault.FORBIDDEN,
                "this gateway does not tell what is warm; set gateway.explain = true",
            )
        )
    asked = own.read_match(await call.body())
    model = await call.model(asked.model)
    client = await service.client()
    async with call.counted():
        prompt: str | list[int] | tuple[int, ...]
        if asked.prompt:
            prompt = asked.prompt
        else:
            wanted = call.canonical(await possible(call, model, asked.wanted()))
            options = template_options(wanted.options)
            prompt = (await client.apply_chat_template(model, wanted.inputs[0], **options)).tokens
        salt = service.salt(call.key, asked.cache_salt or "") or None
        found = await client.match_prefix(model, prompt, parse_special=True, salt=salt)
    await call.answer_json(own.match_object(model, found))


BODIES: Final = {
    "/llama/v1/cache/match": own.MatchBody,
    "/llama/v1/cache/verify": own.VerifyBody,
    "/llama/v1/cache/gc": own.ClearBody,
    "/llama/v1/cache/flush": own.FlushBody,
    "/llama/v1/cache/rm": own.RemoveBody,
    "/llama/v1/cache/wipe": own.WipeBody,
}
ROUTES: Final = (
    ("GET", "/llama/v1/cache/stat", stat),
    ("GET", "/llama/v1/cache/ls", ls),
    ("GET", "/llama/v1/cache/show/{key}", show),
    ("POST", "/llama/v1/cache/match", match),
    ("POST", "/llama/v1/cache/verify", verify),
    ("POST", "/llama/v1/cache/gc", clear),
    ("POST", "/llama/v1/cache/flush", flush),
    ("POST", "/llama/v1/cache/rm", remove),
    ("POST", "/llama/v1/cache/wipe", wipe),
)
