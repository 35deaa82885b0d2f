"""llama-server's own API."""

from __future__ import annotations

import time
from dataclasses import replace
from importlib.metadata import version
from typing import Final

from runtime.client.async_client import AsyncClient
from runtime.gateway.call import Call
from runtime.gateway.facts import model_facts
from runtime.gateway.inputs import embedded, resolved
from runtime.gateway.node_metrics import page
from runtime.gateway.thinking import possible
from runtime.gateway.wire import metrics, native_state
from runtime.gateway.wire.bodies import read
from runtime.gateway.wire.failure import Failure, Fault, Refused, unsupported
from runtime.gateway.wire.native import (
    InfillBody,
    NativeAnswer,
    NativeBody,
    read_infill,
    read_native,
)
from runtime.gateway.wire.native_bodies import (
    AdapterScale,
    DetokenizeBody,
    NativeEmbeddingBody,
    RerankBody,
    TemplateBody,
    TokenizeBody,
    content_of,
    native_embeddings_json,
    ranking_json,
    read_native_embedding,
    read_rerank,
    read_template,
    tokens_json,
)
from runtime.gateway.wire.wanted import Head, Wanted

BUILD: Final = f"llama-actors {version('llama-actors')}"


async def completion(call: Call) -> None:
    wanted, asked = read_native(await call.body(), call.service.defaults)
    model = await call.model(asked.model)
    client = await call.service.client()
    sent = replace(wanted, inputs=tuple(await resolved(client, model, wanted.inputs)))

    def make(head: Head, what: Wanted) -> NativeAnswer:
        return NativeAnswer(head, asked, what, time.monotonic)

    await call.generate(sent, make, model)


async def infill(call: Call) -> None:
    wanted, asked = read_infill(await call.body(), call.service.defaults)
    await call.generate(wanted, lambda head, what: NativeAnswer(head, asked, what, time.monotonic))


# ── texts and tokens ────────────────────────────────────────────────────────────────────────────


async def tokenize(call: Call) -> None:
    asked = read(await call.body(), TokenizeBody)
    client, model = await _asked_model(call, asked.model)
    parse = asked.parse_special is not False
    tokens: list[int] = []
    for part in content_of(asked):
        if isinstance(part, int):
            tokens.append(part)
            continue
        add = bool(asked.add_special) and not tokens
        tokens += await client.tokenize(model, part, add_special=add, parse_special=parse)
    pieces = await client.token_pieces(model, tokens) if asked.with_pieces else None
    await call.answer(tokens_json(tokens, pieces))


async def detokenize(call: Call) -> None:
    asked = read(await call.body(), DetokenizeBody)
    client, model = await _asked_model(call, asked.model)
    await call.answer_json({"content": await client.detokenize(model, asked.tokens, special=True)})


async def apply_template(call: Call) -> None:
    asked = read_template(await call.body())
    client, model = await _asked_model(call, asked.model)
    found = await client.apply_chat_template(model, asked.messages, **asked.options())
    await call.answer_json({"prompt": found.text})


async def input_tokens(call: Call) -> None:
    asked = read_template(await call.body())
    client, model = await _asked_model(call, asked.model)
    wanted = call.canonical(await possible(call, model, asked.wanted()))
    found = await client.apply_chat_template(model, wanted.inputs[0], **wanted.options)
    await call.answer_json({"object": "response.input_tokens", "input_tokens": len(found.tokens)})


# ── vectors and ranks ───────────────────────────────────────────────────────────────────────────


async def embedding(call: Call) -> None:
    prompts, asked = read_native_embedding(await call.body())
    model = await call.model(asked.model)
    (facts,) = await model_facts(call, model)
    pools = facts.details.get("params", {}).get("pooling") != "none"
    normalise = pools and asked.embd_normalize != -1
    found = await embedded(call, model, prompts, normalise=normalise)
    await call.answer(native_embeddings_json(found))


async def rerank(call: Call) -> None:
    documents, asked = read_rerank(await call.body())
    client, model = await _asked_model(call, asked.model)
    async with call.counted():
        found = await client.rerank(model, asked.query, documents, top_n=asked.top_n)
        call.n_tokens += found.n_tokens
    call.service.measures.read(model, found.n_tokens, len(documents))
    await call.answer(ranking_json(asked, documents, model, found))


# ── what there is ───────────────────────────────────────────────────────────────────────────────


async def props(call: Call) -> None:
    settings = call.service.settings
    (facts,) = await model_facts(call, await _queried_model(call))
    await call.answer_json(
        native_state.props_json(
            facts,
            call.service.defaults,
            BUILD,
            shows_slots=settings.slots,
            shows_metrics=settings.metrics,
        )
    )


async def slots(call: Call) -> None:
    if not call.service.settings.slots:
        raise unsupported("this gateway does not show its slots; set gateway.slots = true")
    (facts,) = await model_facts(call, await _queried_model(call))
    found = native_state.slots_json(facts)
    is_full = all(one["is_processing"] for one in found)
    if is_full and call.request.query_params.get("fail_on_no_slot"):
        raise Refused(Failure(Fault.UNAVAILABLE, "no slot available; wait for one"))
    await call.answer_json(found)


async def adapters(call: Call) -> None:
    client, model = await _asked_model(call, call.request.query_params.get("model"))
    await call.answer_json(native_state.adapters_json(await client.list_adapters(model)))


async def set_adapters(call: Call) -> None:
    """What the list does not name is not applied any more."""
    call.require_admin()
    wanted = {one.id: one.scale for one in read(await call.body(), list[AdapterScale])}
    client, model = await _asked_model(call, call.request.query_params.get("model"))
    known = {one.id: one.scale for one in await client.list_adapters(model)}
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise Refused(
            Failure(Fault.INVALID, f"there is no adapter {unknown[0]}; GET this path lists them")
        )
    for one, scale in known.items():
        if wanted.get(one, 0.0) != scale:
            await client.set_adapter_scale(model, one, wanted.get(one, 0.0))
    await call.answer_json({"success": True})


async def show_metrics(call: Call) -> None:
    service = call.service
    if not service.settings.metrics:
        raise unsupported("this gateway shows no metrics; set gateway.metrics = true")
    body = await page(call)
    began = str(int(service.began)).encode()
    headers = [(b"process-start-time-unix", began)]
    await call.answer(body, content_type=metrics.CONTENT_TYPE, headers=headers)


async def _asked_model(call: Call, name: str | None) -> tuple[AsyncClient, str]:
    model = await call.model(name)
    return await call.service.client(), model


async def _queried_model(call: Call) -> str:
    return await call.model(call.request.query_params.get("model"))


BODIES: Final = {
    "/completion": NativeBody,
    "/completions": NativeBody,
    "/infill": InfillBody,
    "/tokenize": TokenizeBody,
    "/detokenize": DetokenizeBody,
    "/apply-template": TemplateBody,
    "/chat/completions/input_tokens": TemplateBody,
    "/v1/chat/completions/input_tokens": TemplateBody,
    "/embedding": NativeEmbeddingBody,
    "/embeddings": NativeEmbeddingBody,
    "/rerank": RerankBody,
    "/reranking": RerankBody,
    "/v1/rerank": RerankBody,
    "/v1/reranking": RerankBody,
    "/lora-adapters": list[AdapterScale],
}
ROUTES: Final = (
    ("POST", "/completion", completion),
    ("POST", "/completions", completion),
    ("POST", "/infill", infill),
    ("POST", "/tokenize", tokenize),
    ("POST", "/detokenize", detokenize),
    ("POST", "/apply-template", apply_template),
    ("POST", "/chat/completions/input_tokens", input_tokens),
    ("POST", "/v1/chat/completions/input_tokens", input_tokens),
    ("POST", "/embedding", embedding),
    ("POST", "/embeddings", embedding),
    ("POST", "/rerank", rerank),
    ("POST", "/reranking", rerank),
    ("POST", "/v1/rerank", rerank),
    ("POST", "/v1/reranking", rerank),
    ("GET", "/props", props),
    ("GET", "/slots", slots),
    ("GET", "/lora-adapters", adapters),
    ("POST", "/lora-adapters", set_adapters),
    ("GET", "/metrics", show_metrics),
)
