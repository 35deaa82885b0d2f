"""Our own API: what models answer, for the command line elsewhere. Any key may use its models."""

from __future__ import annotations

from typing import Final

from runtime.gateway.call import Call
from runtime.gateway.wire.own_replies import (
    ChatBody,
    CompleteBody,
    EventsAnswer,
    InfillBody,
    read_chat,
    read_complete,
    read_infill,
)
from runtime.gateway.wire.own_texts import (
    EmbedBody,
    RankBody,
    TokenizeBody,
    ranks_json,
    read_embed,
    read_rank,
    read_tokenize,
    tokens_json,
    vectors_json,
)
from runtime.gateway.wire.wanted import Wanted


async def complete(call: Call) -> None:
    """Replies to prompts: every option of the runtime, and all of its events."""
    await _replies(call, read_complete(await call.body()))


async def chat(call: Call) -> None:
    """Answers to a conversation: every option of the runtime, and all of its events."""
    await _replies(call, read_chat(await call.body(), is_admin=call.key.is_admin))


async def infill(call: Call) -> None:
    """What belongs between two texts: every option of the runtime, and all of its events."""
    await _replies(call, read_infill(await call.body()))


async def _replies(call: Call, wanted: Wanted) -> None:
    model = await call.model(wanted.model, is_exact=True)
    await call.generate(wanted, EventsAnswer, model)


async def tokenize(call: Call) -> None:
    """The tokens of a text or of a conversation's prompt, each with its bytes."""
    asked = read_tokenize(await call.body())
    model = await call.model(asked.model, is_exact=True)
    client = await call.service.client()
    if asked.messages is not None:
        ids = list((await client.apply_chat_template(model, asked.messages)).tokens)
    elif asked.text is not None:
        ids = await client.tokenize(
            model,
            asked.text,
            add_special=asked.add_special is not False,
            parse_special=bool(asked.parse_special),
        )
    else:
        ids = asked.tokens or []
    pieces = await client.token_pieces(model, ids) if ids else []
    await call.answer(tokens_json(ids, pieces))


async def embed(call: Call) -> None:
    """Vectors of texts."""
    asked = read_embed(await call.body())
    model = await call.model(asked.model, is_exact=True)
    client = await call.service.client()
    async with call.counted():
        found = await client.embed(
            model,
            asked.inputs,
            pooling=asked.pooling or "model",
            normalise=asked.normalise is not False,
        )
        call.n_tokens += found.n_tokens
    call.service.measures.read(model, found.n_tokens, len(found.rows))
    await call.answer(vectors_json(found))


async def rerank(call: Call) -> None:
    """Documents by how well they fit a query."""
    asked = read_rank(await call.body())
    model = await call.model(asked.model, is_exact=True)
    client = await call.service.client()
    async with call.counted():
        found = await client.rerank(model, asked.query, asked.documents, top_n=asked.top_n)
        call.n_tokens += found.n_tokens
    call.service.measures.read(model, found.n_tokens, len(asked.documents))
    await call.answer(ranks_json(found))


BODIES: Final = {
    "/llama/v1/complete": CompleteBody,
    "/llama/v1/chat": ChatBody,
    "/llama/v1/infill": InfillBody,
    "/llama/v1/tokenize": TokenizeBody,
    "/llama/v1/embed": EmbedBody,
    "/llama/v1/rerank": RankBody,
}
ROUTES: Final = (
    ("POST", "/llama/v1/complete", complete),
    ("POST", "/llama/v1/chat", chat),
    ("POST", "/llama/v1/infill", infill),
    ("POST", "/llama/v1/tokenize", tokenize),
    ("POST", "/llama/v1/embed", embed),
    ("POST", "/llama/v1/rerank", rerank),
)
