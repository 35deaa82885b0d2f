"""Ollama's API: chats, prompts, embeddings, and models as its clients list and manage them."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from dataclasses import replace
from typing import Any, Final

from runtime import errors
from runtime.client.answers import Embeddings
from runtime.gateway.call import JSON, Call, Handler
from runtime.gateway.facts import ModelFacts, model_facts
from runtime.gateway.guard import check_model
from runtime.gateway.inputs import embedded
from runtime.gateway.names import resolve
from runtime.gateway.thinking import possible
from runtime.gateway.wire import ndjson, ollama_embeddings, ollama_models
from runtime.gateway.wire.bodies import read
from runtime.gateway.wire.failure import Failure, Fault, Refused, invalid
from runtime.gateway.wire.ollama import (
    ChatBody,
    Form,
    GenerateBody,
    OllamaAnswer,
    command_json,
    read_chat,
    read_generate,
)
from runtime.gateway.wire.ollama_bodies import ReplyBody, keep_alive_s, model_id, shown_name
from runtime.gateway.wire.ollama_errors import no_model
from runtime.gateway.wire.wanted import Wanted

_LOG: Final = logging.getLogger("supervision.http")


# ── replies ─────────────────────────────────────────────────────────────────────────────────────


async def chat(call: Call) -> None:
    wanted, asked = read_chat(await call.body(), call.service.defaults)
    await _answer(call, wanted, asked, "chat")


async def generate(call: Call) -> None:
    wanted, asked = read_generate(await call.body(), call.service.defaults)
    await _answer(call, wanted, asked, "generate")


async def _answer(call: Call, wanted: Wanted | None, asked: ReplyBody, form: Form) -> None:
    if wanted is None:
        await _load_or_unload(call, asked, form)
        return
    model = await _model(call, asked.model)
    wanted = await possible(call, model, wanted)
    if remark := await _context_remark(call, asked, model):
        wanted = replace(wanted, remarks=(*wanted.remarks, remark))
    try:
        await call.generate(wanted, lambda head, what: OllamaAnswer(head, asked, what, form), model)
    finally:  # afterwards: else a model that was idle leaves before the request has reached it
        await _keep_alive(call, asked, model)


async def _context_remark(call: Call, asked: ReplyBody, model: str) -> str:
    """Why a longer context is not there, for an answer that explains itself."""
    if not asked.num_ctx or not call.service.settings.explain:
        return ""
    (facts,) = await model_facts(call, model)
    if facts.n_ctx is None or asked.num_ctx <= facts.n_ctx:
        return ""
    return (
        f"num_ctx is {asked.num_ctx}, and this model was loaded with a context of {facts.n_ctx}; "
        "load it with a larger n_ctx"
    )


async def _load_or_unload(call: Call, asked: ReplyBody, form: Form) -> None:
    """A request without a prompt. ``keep_alive`` of 0 unloads the model."""
    unloads = keep_alive_s(asked.keep_alive) == 0
    if unloads:
        call.require_admin()
    model = await _model(call, asked.model, exactly=unloads)
    client = await call.service.client()
    if unloads:
        with contextlib.suppress(errors.ModelUnknown):  # it is not loaded, which is what was asked
            await client.unload(model, drain_s=call.service.settings.drain_s)
        call.service.forget_vocabulary(model)
    else:
        await client.ready(model)
        await _keep_alive(call, asked, model)
    name = shown_name(asked.model, model)
    await call.answer(command_json(form, name, int(time.time()), "unload" if unloads else "load"))


async def _keep_alive(call: Call, asked: ReplyBody, model: str) -> None:
    """Have the model stay as long as the request asks for; 0: until its requests have ended."""
    seconds = keep_alive_s(asked.keep_alive)
    if seconds is None or not call.key.is_admin:
        return
    client = await call.service.client()
    try:
        await client.set_keep_alive(model, -1.0 if math.isinf(seconds) else seconds)
    except errors.ModelUnknown:
        pass  # it was unloaded meanwhile
    except errors.LlamaActorsError as error:  # the answer itself is right
        _LOG.warning("keep_alive of %s is not set: %s", model, error)


async def _model(call: Call, name: str | None, *, exactly: bool = False) -> str:
    """The id that a name means; ``exactly``: as the only model that is loaded it means none."""
    service = call.service
    asked = model_id(name)
    if exactly and not asked:
        raise invalid("model is missing; name one", "model")
    try:
        if not exactly:
            return await call.model(asked)
        found = resolve(asked, service.models(call.key), service.settings.aliases, "reject")
    except Refused as error:
        if asked and error.failure.fault is Fault.NO_MODEL:
            raise no_model(name or "") from None
        raise
    check_model(call.key, found)
    return found


# ── embeddings ──────────────────────────────────────────────────────────────────────────────────


async def embed(call: Call) -> None:
    began = time.monotonic()
    asked = ollama_embeddings.read_embed(await call.body())
    model = await _model(call, asked.model)
    found = await _embedded(call, model, asked.texts, cuts=asked.truncate is not False)
    name = shown_name(asked.model, model)
    took_s = time.monotonic() - began
    await call.answer(ollama_embeddings.embed_json(asked, name, found, took_s))


async def old_embeddings(call: Call) -> None:
    asked = ollama_embeddings.read_old_embedding(await call.body())
    model = await _model(call, asked.model)
    texts = [asked.prompt] if asked.prompt else []
    found = await _embedded(call, model, texts, cuts=True, normalise=False)
    await call.answer(ollama_embeddings.old_embedding_json(found))


async def _embedded(
    call: Call, model: str, texts: list[str], *, cuts: bool, normalise: bool = True
) -> Embeddings | None:
    """The vectors of texts; None where there are none, and the model is only loaded."""
    client = await call.service.client()
    if not texts:
        await client.ready(model)
        return None
    try:
        return await embedded(call, model, texts, normalise=normalise)
    except Refused as error:
        if error.failure.fault is not Fault.TOO_LONG:
            raise
        (facts,) = await model_facts(call, model)
        most = ollama_embeddings.longest(facts.details)
        if not cuts or most is None:
            raise
        inputs: list[Any] = [await _cut(call, model, one, most) for one in texts]
        return await embedded(call, model, inputs, normalise=normalise)


async def _cut(call: Call, model: str, text: str, most: int) -> str | list[int]:
    """A text as it is where it is short enough for certain, else its first tokens."""
    if len(text.encode()) < most:
        return text
    client = await call.service.client()
    tokens = await client.tokenize(model, text)
    plain = await client.tokenize(model, text, add_special=False)
    return ollama_embeddings.cut(tokens, plain, most)


# ── models ──────────────────────────────────────────────────────────────────────────────────────


async def tags(call: Call) -> None:
    await call.answer_json(ollama_models.tags_object(await model_facts(call)))


async def running(call: Call) -> None:
    await call.answer_json(ollama_models.ps_object(await model_facts(call)))


async def version(call: Call) -> None:
    await call.answer_json({"version": ollama_models.VERSION})


async def show(call: Call) -> None:
    asked = read(await call.body(), ollama_models.ModelBody)
    facts = await _ready_facts(call, await _model(call, asked.asked))
    await call.answer_json(ollama_models.show_object(facts))


async def pull(call: Call) -> None:
    """There is nothing to download: a name means a model that is there, or none."""
    asked = read(await call.body(), ollama_models.ModelBody)
    try:
        model = await _model(call, asked.asked)
    except Refused as error:
        if error.failure.fault is Fault.NO_MODEL:
            raise no_model(asked.asked, ", this node does not download") from None
        raise
    is_stream = asked.stream is not False
    lines = ollama_models.pull_lines(await _ready_facts(call, model), is_stream=is_stream)
    kind = ndjson.CONTENT_TYPE.encode() if is_stream else JSON
    await call.answer(lines, content_type=kind)


async def _ready_facts(call: Call, model: str) -> ModelFacts:
    """What a model reports of itself, once it is loaded."""
    await (await call.service.client()).ready(model)
    (facts,) = await model_facts(call, model)
    return facts


def _not_done(what: str) -> Handler:
    async def refuse(_: Call) -> None:
        raise Refused(Failure(Fault.NOT_DONE, what))

    return refuse


_LOADS: Final = "load one by `llama-actors load NAME=PATH`"
_create = _not_done(f"this node makes no models; {_LOADS}, with its template and options")
_blobs = _not_done(f"this node takes no files; put the model's file on its machine, and {_LOADS}")

BODIES: Final = {
    "/api/chat": ChatBody,
    "/api/generate": GenerateBody,
    "/api/embed": ollama_embeddings.EmbedBody,
    "/api/embeddings": ollama_embeddings.OldEmbeddingBody,
    "/api/show": ollama_models.ModelBody,
    "/api/pull": ollama_models.ModelBody,
}
ROUTES: Final = (
    ("POST", "/api/chat", chat),
    ("POST", "/api/generate", generate),
    ("POST", "/api/embed", embed),
    ("POST", "/api/embeddings", old_embeddings),
    ("GET", "/api/tags", tags),
    ("GET", "/api/ps", running),
    ("GET", "/api/version", version),
    ("POST", "/api/show", show),
    ("POST", "/api/pull", pull),
    ("POST", "/api/create", _create),
    ("GET POST", "/api/blobs/{digest}", _blobs),
    (
        "POST",
        "/api/copy",
        _not_done("this node copies no models; name one again in gateway.aliases"),
    ),
    ("POST", "/api/push", _not_done("this node uploads no models; copy the model's file instead")),
    (
        "DELETE",
        "/api/delete",
        _not_done(
            "this node deletes no files of models; unload one by `llama-actors unload NAME`, or "
            "by /api/generate with its name and keep_alive: 0"
        ),
    ),
)
