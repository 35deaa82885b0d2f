"""Models as Ollama lists and describes them, and the lines of a download that has no work."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from runtime.gateway.wire import ndjson
from runtime.gateway.wire.bodies import encode
from runtime.gateway.wire.ollama import time_text
from runtime.gateway.wire.ollama_bodies import full_name

if TYPE_CHECKING:
    from runtime.gateway.facts import ModelFacts

VERSION: Final = "0.30.0"
"""Of Ollama, whose API this is: clients compare it with the one that they need."""
FOREVER: Final = "2318-01-01T00:00:00Z"
"""Ollama's date for a model that is never unloaded by itself."""
_THINKS: Final = re.compile(
    r"enable_thinking|reasoning_effort|reasoning_content|thinking_budget|thinking_mode"
    r"|<think>|\[THINK\]|<\|channel\|?>|<seed:think>"
)
_TOOLS: Final = re.compile(r"\btools\b")
_QUANTS: Final = re.compile(
    r"\b(?P<kind>I?Q[1-9]\w*|TQ\d_\d|MXFP4|NVFP4|BF16|F16|F32)"
    r"(?: - (?P<size>Small|Medium|Large)\b)?"
)
_SHAPE: Final = (
    ("embedding_length", "n_embd"),
    ("block_count", "n_layer"),
    ("attention.head_count", "n_head"),
    ("attention.head_count_kv", "n_head_kv"),
    ("vocab_size", "n_vocab"),
)
"""Keys of ``model_info`` below the architecture, and what a model reports."""


class ModelBody(msgspec.Struct, kw_only=True):
    """A body that names a model, by the present key or the older one."""

    model: str | None = None
    name: str | None = None
    stream: bool | None = None
    """Left out: true."""

    @property
    def asked(self) -> str:
        return self.model or self.name or ""


# ── lists ───────────────────────────────────────────────────────────────────────────────────────


def tags_object(models: Sequence[ModelFacts]) -> dict[str, Any]:
    """``GET /api/tags``."""
    return {
        "models": [{**_listed(one), "modified_at": time_text(one.created)} for one in models],
    }


def ps_object(models: Sequence[ModelFacts]) -> dict[str, Any]:
    """``GET /api/ps``: those that have reported of themselves, so that they run."""
    return {
        "models": [
            {
                **_listed(one),
                "expires_at": _expires(one),
                "size_vram": _in_devices(one.details.get("memory_taken")),
                "context_length": one.n_ctx or 0,
            }
            for one in models
            if one.details
        ]
    }


def _expires(facts: ModelFacts) -> str:
    at = None if facts.known is None else facts.known.expires_at
    return FOREVER if at is None else time_text(int(at))


def _listed(facts: ModelFacts) -> dict[str, Any]:
    name = full_name(facts.id)
    return {
        "name": name,
        "model": name,
        "size": facts.n_bytes,
        "digest": digest(facts),
        "details": details_object(facts),
    }


def digest(facts: ModelFacts) -> str:
    """64 hex digits that are those of the same files."""
    known = str(facts.details.get("fingerprint") or facts.id)
    return known if re.fullmatch("[0-9a-f]{64}", known) else _sha256(known)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _in_devices(taken: Mapping[str, int] | None) -> int:
    """Bytes on graphics cards."""
    return sum(n for name, n in (taken or {}).items() if name.startswith("device_"))


# ── one model ───────────────────────────────────────────────────────────────────────────────────


def details_object(facts: ModelFacts) -> dict[str, Any]:
    """What every list shows of a model."""
    family = _architecture(facts)
    return {
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": count_text(facts.details.get("n_params") or 0),
        "quantization_level": quantization(str(facts.details.get("description") or "")),
    }


def _architecture(facts: ModelFacts) -> str:
    return str(facts.details.get("architecture") or "unknown")


def count_text(n: int) -> str:
    """A number of parameters, as Ollama shows it: ``8.0B``, ``494.03M``, ``260K``."""
    if n >= 10**9:
        return f"{n / 1e9:.1f}B"
    if n >= 10**6:
        return f"{n / 1e6:.2f}M"
    return f"{n / 1e3:.0f}K" if n >= 1000 else str(n)


def quantization(description: str) -> str:
    """The kind of weights in llama.cpp's description: ``Q4_K - Medium`` is ``Q4_K_M``."""
    found = _QUANTS.search(description)
    if found is None:
        return "unknown"
    size = found["size"]
    return f"{found['kind']}_{size[0]}" if size else found["kind"]


def capabilities(facts: ModelFacts) -> list[str]:
    """What a model can do, as far as it and its template show it."""
    if not facts.can_generate:
        return ["embedding"]
    template = facts.template
    found = ["completion"]
    for name, has in (
        ("tools", _TOOLS.search(template)),
        ("insert", facts.details.get("can_infill")),
        ("thinking", _THINKS.search(template)),
    ):
        if has:
            found.append(name)
    return found


def show_object(facts: ModelFacts) -> dict[str, Any]:
    """``POST /api/show``."""
    n_ctx = facts.n_ctx or facts.details.get("n_ctx_train")
    return {
        "modelfile": f"FROM {full_name(facts.id)}\n",
        "parameters": f"num_ctx                        {n_ctx}" if n_ctx else "",
        "template": facts.template,
        "details": details_object(facts),
        "model_info": _info(facts, n_ctx),
        "capabilities": capabilities(facts),
        "modified_at": time_text(facts.created),
    }


def _info(facts: ModelFacts, n_ctx: int | None) -> dict[str, Any]:
    """As in the header of a file; but the context is the one that prompts have here."""
    family = _architecture(facts)
    found: dict[str, Any] = {
        "general.architecture": family,
        "general.basename": facts.id,
        "general.parameter_count": facts.details.get("n_params") or 0,
    }
    if n_ctx:
        found[f"{family}.context_length"] = n_ctx
    for key, name in _SHAPE:
        if (value := facts.details.get(name)) is not None:
            found[f"{family}.{key}"] = value
    return found


def pull_lines(facts: ModelFacts, *, is_stream: bool) -> bytes:
    """A download of what is there already."""
    end = {"status": "success"}
    if not is_stream:
        return encode(end)
    sha, size = digest(facts), facts.details.get("model_bytes") or 0
    layer = {"digest": f"sha256:{sha}", "total": size, "completed": size}
    return b"".join(
        map(
            ndjson.line,
            (
                {"status": "pulling manifest"},
                {"status": f"pulling {sha[:12]}", **layer},
                {"status": "verifying sha256 digest"},
                {"status": "writing manifest"},
                end,
            ),
        )
    )
