"""Prompts of requests in the forms that the node takes; vectors of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from runtime import errors
from runtime.client.answers import Embeddings
from runtime.client.async_client import AsyncClient
from runtime.gateway.call import Call
from runtime.gateway.wire.failure import Failure, Fault, Refused, failure_of, invalid
from runtime.gateway.wire.native_prompts import Prompt


async def resolved(
    client: AsyncClient, model: str, prompts: Iterable[Prompt]
) -> list[str | list[int]]:
    """Texts and ids in one sequence become ids; so does an empty text, which may have some.

    Control tokens that are written in a text are read, and what begins a text is added only where
    the sequence begins with one.
    """
    return [
        one if isinstance(one, str) and one else await _ids(client, model, one) for one in prompts
    ]


async def _ids(client: AsyncClient, model: str, prompt: Prompt) -> list[int]:
    parts: Sequence[int | str] = [prompt] if isinstance(prompt, str) else prompt
    if set(map(type, parts)) == {int}:
        return cast("list[int]", list(parts))
    found: list[int] = []
    for at, part in enumerate(parts):
        if isinstance(part, int):
            found.append(part)
        else:
            found += await client.tokenize(model, part, add_special=at == 0, parse_special=True)
    if not found:
        raise invalid("the prompt is empty; send some text", "prompt")
    return found


async def embedded(
    call: Call, model: str, prompts: Iterable[Prompt], *, normalise: bool = True
) -> Embeddings:
    """Vectors; a text that is too long is refused by its own words, which clients look for."""
    client = await call.service.client()
    try:
        async with call.counted():
            inputs = await resolved(client, model, prompts)
            found = await client.embed(model, inputs, normalise=normalise)
            call.n_tokens += found.n_tokens
    except errors.PromptTooLong as error:
        known = failure_of(error)
        detail = f"an input is too large to embed: {error}"
        raise Refused(
            Failure(Fault.TOO_LONG, detail, "input", n_prompt=known.n_prompt, n_ctx=known.n_ctx)
        ) from None
    call.service.measures.read(model, found.n_tokens, len(found.rows))
    return found
