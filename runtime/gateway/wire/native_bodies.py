"""llama-server's smaller questions: tokens and texts, templates, vectors, ranks, adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from runtime.client.answers import Embeddings, Ranking
from runtime.gateway.wire.bodies import encode, read
from runtime.gateway.wire.failure import invalid
from runtime.gateway.wire.native_prompts import MAX_EMBEDDED, Prompt, has_parts_only, native_prompts
from runtime.gateway.wire.wanted import Wanted


class TokenizeBody(msgspec.Struct, kw_only=True):
    """The body of ``POST /tokenize``."""

    content: Any = ""
    """A text, or texts and ids mixed."""
    model: str | None = None
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class DetokenizeBody(msgspec.Struct, kw_only=True):
    """The body of ``POST /detokenize``."""

    tokens: list[int] = msgspec.field(default_factory=list)
    model: str | None = None


class TemplateBody(msgspec.Struct, kw_only=True):
    """The body of ``POST /apply-template`` and of counting a conversation's tokens."""

    messages: list[dict[str, Any]]
    model: str | None = None
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    enable_thinking: bool | None = None
    reasoning_effort: str | None = None
    continue_final_message: bool | str | None = None
    add_generation_prompt: bool | None = None

    def options(self) -> dict[str, Any]:
        """The keywords of ``AsyncClient.apply_chat_template``."""
        given = {name: getattr(self, name) for name in _TEMPLATE}
        return {name: value for name, value in given.items() if value is not None and value != []}

    def wanted(self) -> Wanted:
        """The reply whose prompt it is."""
        return Wanted(
            model=self.model or "", kind="chat", inputs=(self.messages,), options=self.options()
        )


_TEMPLATE: Final = (
    "tools", "documents", "chat_template_kwargs", "enable_thinking", "reasoning_effort",
    "continue_final_message", "add_generation_prompt",
)  # fmt: skip


class NativeEmbeddingBody(msgspec.Struct, kw_only=True):
    """The body of ``POST /embedding``."""

    content: Any = None
    input: Any = None
    model: str | None = None
    embd_normalize: int | None = None


class RerankBody(msgspec.Struct, kw_only=True):
    """The body of ``POST /rerank``: with ``documents``, or with ``texts`` as TEI has them."""

    query: str
    documents: list[str | dict[str, Any]] | None = None
    texts: list[str] | None = None
    model: str | None = None
    top_n: int | None = None
    return_text: bool | None = None

    @property
    def is_tei(self) -> bool:
        return self.texts is not None


class AdapterScale(msgspec.Struct, kw_only=True):
    """One entry of the list that ``POST /lora-adapters`` takes."""

    id: int
    scale: float


def read_template(body: bytes) -> TemplateBody:
    """The body; Refused names the field that is wrong."""
    asked = read(body, TemplateBody)
    if not asked.messages:
        raise invalid("messages is empty; send at least one message", "messages")
    return asked


def content_of(asked: TokenizeBody) -> list[int | str]:
    """Parts that are tokenised one by one, and ids as they are."""
    given = [asked.content] if isinstance(asked.content, str) else asked.content
    if not isinstance(given, list) or not has_parts_only(given):
        raise invalid("content is neither a text nor a list of texts and token ids", "content")
    return [one for one in given if one != ""]


def tokens_json(tokens: Sequence[int], pieces: Sequence[bytes] | None) -> bytes:
    """Ids, or ids with their texts; a piece that is no whole text is a list of its bytes."""
    if pieces is None:
        return encode({"tokens": list(tokens)})
    shown = [
        {"id": token, "piece": _piece(piece)} for token, piece in zip(tokens, pieces, strict=True)
    ]
    return encode({"tokens": shown})


def _piece(piece: bytes) -> str | list[int]:
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return list(piece)


def read_native_embedding(body: bytes) -> tuple[list[Prompt], NativeEmbeddingBody]:
    """The inputs of a body; Refused names the field that is wrong."""
    asked = read(body, NativeEmbeddingBody)
    if asked.embd_normalize not in (None, -1, 2):
        raise invalid("embd_normalize is 2 for length 1, or -1 for none", "embd_normalize")
    name = "content" if asked.input is None else "input"
    return native_prompts(getattr(asked, name), name, MAX_EMBEDDED), asked


def native_embeddings_json(found: Embeddings) -> bytes:
    """A list of inputs, each with its vectors: one, or one for each token."""
    return encode(
        [
            {"index": index, "embedding": [list(one) for one in found.of(index)]}
            for index in range(len(found.rows))
        ]
    )


def read_rerank(body: bytes) -> tuple[list[str], RerankBody]:
    """The documents of a body; Refused names the field that is wrong."""
    asked = read(body, RerankBody)
    name = "texts" if asked.is_tei else "documents"
    given: Sequence[str | dict[str, Any]] = (asked.texts or []) if asked.is_tei else (
        asked.documents or []
    )  # fmt: skip
    if not given:
        raise invalid(f"{name} is empty; send at least one text", name)
    if asked.top_n is not None and asked.top_n < 1:
        raise invalid(f"top_n is {asked.top_n}; it is 1 or more", "top_n")
    return [_document(one, f"{name}[{at}]") for at, one in enumerate(given)], asked


def _document(given: str | Mapping[str, Any], name: str) -> str:
    text = given if isinstance(given, str) else given.get("text")
    if not isinstance(text, str):
        raise invalid(f"{name} is neither a text nor an object with one", name)
    return text


def ranking_json(asked: RerankBody, documents: Sequence[str], model: str, found: Ranking) -> bytes:
    """Best first. TEI's form is the list alone, and its scores have another name."""
    score = "score" if asked.is_tei else "relevance_score"
    results: list[dict[str, Any]] = [
        {"index": one.index, score: one.score} for one in found.results
    ]
    if asked.return_text and asked.is_tei:
        for one in results:
            one["text"] = documents[one["index"]]
    if asked.is_tei:
        return encode(results)
    usage = {"prompt_tokens": found.n_tokens, "total_tokens": found.n_tokens}
    return encode({"object": "list", "model": model, "usage": usage, "results": results})
