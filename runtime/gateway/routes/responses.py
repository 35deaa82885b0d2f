"""OpenAI's Responses API: make a response, read it again, continue it, cancel it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from runtime.gateway.call import Call
from runtime.gateway.generation import BrokenStream
from runtime.gateway.response_answers import Follower, Foreground, Readable, Shown
from runtime.gateway.response_runs import ResponseRun
from runtime.gateway.responses_store import Stored
from runtime.gateway.shelved_run import ShelvedRun
from runtime.gateway.stream_log import MODEL, Logged, StreamLog
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
FRAME_END: Final = b"}\n\n"
"""Of the stream of a response; a comment has no brace."""
_LOG: Final = logging.getLogger("supervision.http")
_NO_REPLY: Final = Wanted(model="", kind="chat", inputs=())


@dataclass(frozen=True, slots=True)
class Prepared:
    """A response that can begin."""

    asked: ResponseBody
    head: Head
    wanted: Wanted
    answer: ResponseAnswer
    sent: list[Item]
    """The items that it answers."""
    referred: str
    """What was stored and it refers to, for a log; empty: nothing."""

    def run(self, call: Call) -> ResponseRun:
        """It, before it has begun."""
        return call.service.responses.made(call.key, self.head, self.wanted, self.answer, self.sent)


async def create(call: Call) -> None:
    """A response: streamed, whole, or in the background."""
    given = await _prepared(call)
    if given.asked.background:
        await _create_behind(call, given)
        return
    responses = call.service.responses
    run = given.run(call)
    call.settle = run.settled

    def make(*_: object) -> Foreground:
        return Foreground(run, lambda: responses.keep(run))

    try:
        await call.generate(given.wanted, make, given.head.model, given.head)
    finally:
        if not run.is_over:
            responses.drop(run)


async def _create_behind(call: Call, given: Prepared) -> None:
    """In the background: the answer shows it, and its end is not that of the response."""
    responses, name, n_shown = call.service.responses, given.answer.id, _n_shown(call)
    first = given.answer.response()
    run: Readable | None = None
    if call.logged is not None:  # this request's worker was killed
        run = await responses.begun(name, call.key)
        if run is None and n_shown:
            raise BrokenStream
    if run is None:
        begun = given.run(call)
        log = await call.logged_head(name)
        marks = {MODEL: given.head.model, ITEMS: given.referred}
        marks = {prefix: one for prefix, one in marks.items() if one}
        await responses.start(begun, log, marks, is_checked=call.logged is None)
        run, call.rates = begun, begun.rates
    with contextlib.ExitStack() as stack:
        if isinstance(run, ShelvedRun):
            stack.callback(run.close)
        if given.asked.stream:
            await call.show(Shown(call, given.head, Follower(run, n_shown - 1)))
        else:
            await call.answer_json(first)


async def resume(call: Call, logged: Logged, log: StreamLog) -> None:
    """Go on with a response in the background whose worker was killed; ``call`` has its request."""
    service, name = call.service, logged.head.call_id
    try:
        given = await _prepared(call)
        await service.responses.resume(given.run(call), logged, log)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the end of this response
        _LOG.warning("the response %s cannot go on: %r", name, error)
        log.drop()
        service.ledger.end(name, 0)
        with contextlib.suppress(Refused):
            await service.responses.store.fail(name, call.key.name)


async def _prepared(call: Call) -> Prepared:
    asked = read_response(await call.body())
    service = call.service
    model = await call.model(asked.model)
    head = call.head(wanted_of(asked, [], service.defaults, ()), model)
    items, sent, remarks, referred = await _items(call, asked, head.id)
    wanted = wanted_of(asked, items, service.defaults, remarks)
    wanted = await call.marked(call.canonical(await possible(call, model, wanted)))
    answer = ResponseAnswer(head, asked, wanted, await _compared(call, asked, head, wanted))
    return Prepared(asked, head, wanted, answer, sent, referred)


# ── what a request answers ──────────────────────────────────────────────────────────────────────


async def _items(
    call: Call, asked: ResponseBody, reply: str
) -> tuple[list[Item], list[Item], tuple[str, ...], str]:
    """All items of the conversation, those that this request adds, remarks, and what was stored."""
    logged = None if call.logged is None else call.logged.find(ITEMS)
    if logged is None:
        before = await _history(call, asked.previous_response_id)
        earlier = [item for one in before for item in one.items()]
        known = await _known(call, references(asked.input))
        referred = encode([earlier, known]).decode() if earlier or known else ""
        if call.log is not None and referred:
            call.log.remember(ITEMS, referred)
    else:
        earlier, known = msgspec.json.decode(logged)
        referred = logged
    sent, remarks = items_from(asked.input, reply, known)
    return [*earlier, *sent], sent, remarks, referred


async def _history(call: Call, name: str | None) -> list[Stored]:
    if name is None:
        return []
    run = call.service.responses.find(name, call.key)
    if run is not None and not run.is_over:
        raise _unended(name)
    found, missing = await call.service.responses.store.chain(name, call.key.name)
    if found and found[-1].is_running:
        raise _unended(name)
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


def _unended(name: str) -> Refused:
    detail = f"the response {name!r} has not ended; wait for it, or cancel it"
    return Refused(Failure(Fault.CONFLICT, detail, "previous_response_id"))


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
    run = call.service.responses.find(_name(call), call.key)
    return run.answer.response() if run is not None else (await _kept(call)).as_response()


async def _kept(call: Call) -> Stored:
    kept = await call.service.responses.store.find(_name(call), call.key.name)
    if kept is None:
        raise _missing(_name(call))
    return kept


async def retrieve(call: Call) -> None:
    query = call.request.query_params
    if query.get("stream", "").lower() not in ("true", "1"):
        await call.answer_json(await _found(call))
        return
    run: Readable | None = call.service.responses.find(_name(call), call.key)
    if run is not None:
        await _show(call, run)
        return
    with contextlib.closing(await _shelved(call)) as shelved:
        await _show(call, shelved)


async def _shelved(call: Call) -> ShelvedRun:
    """The response from its log on the shelf: it is another worker's, or of one that is gone."""
    kept = await _kept(call)
    found = call.service.responses.shown(kept.id, call.key, kept.number)
    if found is None:
        raise invalid("the events of this response are kept no more; read it without stream")
    return found


def _n_shown(call: Call) -> int:
    """Frames that a predecessor has sent on this connection, if its worker was killed."""
    return 0 if call.logged is None else call.logged.data.count(FRAME_END)


async def _show(call: Call, run: Readable) -> None:
    last = call.headers.get(b"last-event-id", b"").decode("latin-1")
    given = call.request.query_params.get("starting_after") or last
    after = _whole(given, -1, "starting_after") + _n_shown(call)
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
    responses = call.service.responses
    run = responses.find(_name(call), call.key)
    if run is not None:
        _require_background(run.answer.response())
        await call.service.responses.stop(run)
        await call.answer_json(run.answer.response())
        return
    kept = await _kept(call)
    _require_background(kept.as_response())
    if kept.is_running:
        ended = await responses.cancel(kept.id, call.key, kept.number)
        if ended is None:
            raise _missing(kept.id)
        kept = ended
    await call.answer_json(kept.as_response())


def _require_background(found: dict[str, Any]) -> None:
    if not found["background"]:
        raise invalid("only a response with background: true can be cancelled; close its stream")


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
    items, *_ = await _items(call, asked, call.id)
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
