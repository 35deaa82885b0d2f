"""OpenAI's Responses API: make a response, read it again, continue it, cancel it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from runtime.gateway.call import Call
from runtime.gateway.generation import BrokenStream
from runtime.gateway.response_runs import Follower, Foreground, Shown
from runtime.gateway.responses_store import Stored
from runtime.gateway.thinking import possible
from runtime.gateway.wire.bodies import encode
from runtime.gateway.wire.failure import Failure, Fault, Refused, invalid
from runtime.gateway.wire.openai_chat import template_options
from runtime.gateway.wire.openai_responses import (
    ResponseBody,
    conversation_of,
    read_response,
    wanted_of,
)
from runtime.gateway.wire.responses_answer import ResponseAnswer, facts_of
from runtime.gateway.wire.responses_diagnosis import Compared, compared
from runtime.gateway.wire.responses_items import Item, items_from, references, response_of
from runtime.gateway.wire.responses_pages import page_of
from runtime.gateway.wire.wanted import Head, Wanted

ITEMS: Final = "items:"
"""In the log of an answer: what was stored here when its request came, and it refers to."""
MAX_DIGITS: Final = 12
_NO_REPLY: Final = Wanted(model="", kind="chat", inputs=())


async def create(call: Call) -> None:
    """A response: streamed, whole, or in the background."""
    asked = read_response(await call.body())
    service = call.service
    model = await call.model(asked.model)
    head = call.head(wanted_of(asked, [], service.defaults, ()), model)
    items, sent, remarks = await _items(call, asked, head.id)
    wanted = wanted_of(asked, items, service.defaults, remarks)
    wanted = call.canonical(await possible(call, model, wanted))
    answer = ResponseAnswer(head, asked, wanted, await _compared(call, asked, head, wanted))
    responses = service.responses
    if not asked.background:
        run = responses.made(call.key, head, wanted, answer, sent)
        call.settle = run.settled

        def make(*_: object) -> Foreground:
            return Foreground(run, lambda: responses.keep(run))

        try:
            await call.generate(wanted, make, model, head)
        finally:
            if not run.is_over:
                responses.drop(run)
        return
    first = answer.response()
    run = await responses.start(call.key, head, wanted, answer, sent)
    call.rates = run.rates
    if asked.stream and call.has_begun:
        raise BrokenStream  # its worker was killed: the client reads on by starting_after
    if asked.stream:
        await call.show(Shown(call, head, Follower(run)))
    else:
        await call.answer_json(first)


# ── what a request answers ──────────────────────────────────────────────────────────────────────


async def _items(
    call: Call, asked: ResponseBody, reply: str
) -> tuple[list[Item], list[Item], tuple[str, ...]]:
    """All items of the conversation, those that this request adds, and remarks."""
    logged = None if call.logged is None else call.logged.find(ITEMS)
    if logged is None:
        before = await _history(call, asked.previous_response_id)
        earlier = [item for one in before for item in one.items()]
        known = await _known(call, references(asked.input))
        if call.log is not None and (earlier or known):
            call.log.remember(ITEMS, encode([earlier, known]).decode())
    else:
        earlier, known = msgspec.json.decode(logged)
    sent, remarks = items_from(asked.input, reply, known)
    return [*earlier, *sent], sent, remarks


async def _history(call: Call, name: str | None) -> list[Stored]:
    if name is None:
        return []
    run = call.service.responses.find(name, call.key)
    if run is not None and not run.is_over:
        detail = f"the response {name!r} has not ended; wait for it, or cancel it"
        raise Refused(Failure(Fault.CONFLICT, detail, "previous_response_id"))
    found, missing = await call.service.responses.store.chain(name, call.key.name)
    if missing is not None:
        what = "" if missing == name else f" (it continues {missing!r}, which is not there)"
        raise Refused(
            Failure(
                Fault.INVALID,
                f"previous_response_id: the response {name!r} is not stored here{what}: it was "
                "made with store: false, or its room was needed; send all items as input",
                "previous_response_id",
                code="previous_response_not_found",
            )
        )
    return found


async def _known(call: Call, names: Sequence[str]) -> dict[str, Item]:
    """Stored items by their ids."""
    found: dict[str, Item] = {}
    for response in {one for name in names if (one := response_of(name)) is not None}:
        kept = await call.service.responses.store.find(response, call.key.name)
        found |= {item["id"]: item for item in (kept.items() if kept else ())}
    return found


async def _compared(call: Call, asked: ResponseBody, head: Head, wanted: Wanted) -> Compared | None:
    name = asked.compares_with
    if name is None:
        return None
    chain, _ = await call.service.responses.store.chain(name, call.key.name)
    if not chain:
        return Compared()
    old = chain[-1].as_response()
    items = [item for one in chain[:-1] for item in one.items()]
    then = ResponseBody(instructions=old["instructions"])
    messages = conversation_of(then, [*items, *chain[-1].input_items()])
    return compared(old, messages, facts_of(head, asked, wanted), wanted.inputs[0])


# ── what is stored ──────────────────────────────────────────────────────────────────────────────


def _name(call: Call) -> str:
    return str(call.request.path_params["name"])


def _missing(name: str) -> Refused:
    return Refused(Failure(Fault.NOT_FOUND, f"there is no response {name!r}", "response_id"))


async def _found(call: Call) -> dict[str, Any]:
    name, responses = _name(call), call.service.responses
    run = responses.find(name, call.key)
    if run is not None:
        return run.answer.response()
    kept = await responses.store.find(name, call.key.name)
    if kept is None:
        raise _missing(name)
    return kept.as_response()


async def retrieve(call: Call) -> None:
    query = call.request.query_params
    if query.get("stream", "").lower() not in ("true", "1"):
        await call.answer_json(await _found(call))
        return
    run = call.service.responses.find(_name(call), call.key)
    if run is None:
        await _found(call)
        raise invalid("the events of this response are kept no more; read it without stream")
    last = call.headers.get(b"last-event-id", b"").decode("latin-1")
    after = _whole(query.get("starting_after") or last, -1, "starting_after")
    if after + 1 < run.log.first:
        raise invalid(
            f"the events before {run.log.first} are kept no more; read the response without stream",
            "starting_after",
        )
    await call.show(Shown(call, call.head(_NO_REPLY, ""), Follower(run, after)))


def _whole(given: str | None, default: int, name: str) -> int:
    if given is None or given == "":
        return default
    if not (given.isascii() and given.isdigit() and len(given) <= MAX_DIGITS):
        raise invalid(f"{name} is {given!r}; it is a whole number", name)
    return int(given)


async def delete(call: Call) -> None:
    name = _name(call)
    if not await call.service.responses.forget(name, call.key):
        raise _missing(name)
    await call.answer_json({"id": name, "object": "response", "deleted": True})


async def cancel(call: Call) -> None:
    found = await _found(call)
    if not found["background"]:
        raise invalid("only a response with background: true can be cancelled; close its stream")
    run = call.service.responses.find(_name(call), call.key)
    if run is not None:
        await run.cancel()
        found = run.answer.response()
    await call.answer_json(found)


async def input_items(call: Call) -> None:
    name, query = _name(call), call.request.query_params
    run = call.service.responses.find(name, call.key)
    kept = await call.service.responses.store.find(name, call.key.name)
    if run is not None:
        items = run.sent
    elif kept is not None:
        items = kept.input_items()
    else:
        raise _missing(name)
    limit = _whole(query.get("limit"), 0, "limit")
    await call.answer_json(page_of(items, query.get("after"), limit, query.get("order")))


async def input_tokens(call: Call) -> None:
    asked = read_response(await call.body())
    model = await call.model(asked.model)
    items, _, _ = await _items(call, asked, call.id)
    wanted = wanted_of(asked, items, call.service.defaults)
    wanted = call.canonical(await possible(call, model, wanted))
    client = await call.service.client()
    prompt = await client.apply_chat_template(
        model, wanted.inputs[0], **template_options(wanted.options)
    )
    await call.answer_json({"object": "response.input_tokens", "input_tokens": len(prompt.tokens)})


BODIES: Final = {"/v1/responses": ResponseBody}
ROUTES: Final = tuple(
    (method, f"{root}/responses{path}", handler)
    for root in ("/v1", "")
    for method, path, handler in (
        ("POST", "", create),
        ("POST", "/input_tokens", input_tokens),
        ("GET", "/{name}", retrieve),
        ("DELETE", "/{name}", delete),
        ("POST", "/{name}/cancel", cancel),
        ("GET", "/{name}/input_items", input_items),
    )
)
