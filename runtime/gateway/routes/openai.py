"""OpenAI's API: chat completions, completions, embeddings, models."""

from __future__ import annotations

import time
from typing import Final

from runtime.gateway.call import Call
from runtime.gateway.facts import model_facts
from runtime.gateway.inputs import embedded
from runtime.gateway.names import other_names
from runtime.gateway.thinking import possible
from runtime.gateway.wire import openai_models
from runtime.gateway.wire.openai_chat import ChatAnswer, ChatBody, read_chat, template_options
from runtime.gateway.wire.openai_completions import (
    CompletionAnswer,
    CompletionBody,
    read_completion,
)
from runtime.gateway.wire.openai_embeddings import (
    EmbeddingBody,
    embeddings_json,
    inputs_of,
    read_embedding,
)
from runtime.gateway.wire.wanted import Head, Wanted


async def chat(call: Call) -> None:
    wanted, asked = read_chat(await call.body(), call.service.defaults)
    model = await call.model(wanted.model)
    wanted = await possible(call, model, wanted)
    verbose = None
    if asked.verbose:
        client = await call.service.client()
        shown = call.canonical(wanted)
        options = template_options(shown.options)
        verbose = (await client.apply_chat_template(model, shown.inputs[0], **options)).text

    def make(head: Head, what: Wanted) -> ChatAnswer:
        return ChatAnswer(head, asked, what, verbose, time.monotonic)

    await call.generate(wanted, make, model)


async def completions(call: Call) -> None:
    wanted, asked = read_completion(await call.body(), call.service.defaults)
    await call.generate(wanted, lambda head, what: CompletionAnswer(head, asked, what))


async def embeddings(call: Call) -> None:
    asked = read_embedding(await call.body())
    model = await call.model(asked.model)
    found = await embedded(call, model, inputs_of(asked))
    await call.answer(embeddings_json(asked, model, found))


async def models(call: Call) -> None:
    if call.api == "anthropic":
        await call.answer_json(
            openai_models.anthropic_list(await model_facts(call), call.request.query_params)
        )
        return
    aliases = call.service.settings.aliases
    found = await model_facts(call)
    named = [(one, name) for one in found for name in other_names(one.id, aliases)]
    await call.answer_json(openai_models.openai_list([*((one, None) for one in found), *named]))


async def model(call: Call) -> None:
    name = call.request.path_params["name"]
    found = await call.model(name)
    facts = await model_facts(call, found)
    make = openai_models.anthropic_model if call.api == "anthropic" else openai_models.openai_model
    await call.answer_json(make(facts[0], name))


BODIES: Final = {
    "/v1/chat/completions": ChatBody,
    "/v1/completions": CompletionBody,
    "/v1/embeddings": EmbeddingBody,
}
ROUTES: Final = (
    ("POST", "/v1/chat/completions", chat),
    ("POST", "/chat/completions", chat),
    ("POST", "/v1/completions", completions),
    ("POST", "/v1/embeddings", embeddings),
    ("GET", "/v1/models", models),
    ("GET", "/models", models),
    ("GET", "/v1/models/{name:path}", model),
    ("GET", "/models/{name:path}", model),
)
