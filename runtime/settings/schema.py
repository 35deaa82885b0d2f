"""The configuration file, declared once: validation, errors, reference, defaults and JSON schema.

Types and defaults are those of the values that the settings become (``SavePolicy``,
``PressureSettings``, ``ModelParams``); this module adds what each setting means, in which form a
file gives it, and why its default is what it is. msgspec checks types, choices and unknown keys;
limits and relations between settings are checked by the values themselves.
"""

from __future__ import annotations

import os
import re
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from actors.messages.exact import EXACT_NAMES
from actors.messages.pressure_settings import PressureSettings
from cache.policy import SAVE_ALL
from native.fingerprint import FINGERPRINT_MODES
from native.model_params import KV_TYPES, POOLINGS, ROPE_SCALINGS, SPLIT_MODES, ModelParams
from runtime.errors import ConfigError
from runtime.settings.arguments import short
from runtime.settings.gateway import (
    CANONICAL_RULES,
    DEFAULT_SAMPLING,
    METRICS_ALIASES,
    UNKNOWN_MODEL_WAYS,
)
from runtime.settings.load_options import WORDS as LOAD_WORDS
from runtime.settings.ports import DEFAULT_PORT
from runtime.settings.sizes import Share, plain_budget
from supervision.logs import LOG_FORMATS

KIND: Final = "x-kind"
"""Keyword of the JSON schema for forms that JSON has no type for: a path, a size, a budget."""
KINDS: Final = {
    "path": "a path",
    "size": "a size; write for instance 512MiB or 4GiB",
    "budget": "a size; write for instance 512MiB or 4GiB, or 25% of what is free",
    "disks": 'a table: [cache_disks], then "/path" = "200GiB"',
    "models": "a table of models by id",
    "model": "a table of options of a model: [models_defaults], then n_ctx = 8192",
    "duration": "a duration; write for instance 300, 5m or 1h30m",
    "adapters": "a list of paths, or of pairs of path and scale",
    "aliases": 'a table: [gateway.aliases], then "claude-*" = "mine"',
    "sampling": "a table of sampling options and numbers",
}
DISK_BYTES: Final = 16 << 30
# Values that a file gives in another form.
PathText: TypeAlias = Annotated[str | None, Meta(extra_json_schema={KIND: "path"})]
Size: TypeAlias = Annotated[int | str, Meta(extra_json_schema={KIND: "size"})]
Duration: TypeAlias = Annotated[
    int | float | str | None, Meta(extra_json_schema={KIND: "duration"})
]
Budget: TypeAlias = Annotated[int | str | None, Meta(extra_json_schema={KIND: "budget"})]


def _table(
    name: str,
    purpose: str,
    defaults: object,
    words: Mapping[str, str],
    forms: Mapping[str, Any] | None = None,
) -> Any:
    """A table of settings: ``words`` by key; types and defaults from an object, unless given."""
    types = typing.get_type_hints(type(defaults), include_extras=True) | dict(forms or {})
    return msgspec.defstruct(
        name,
        [
            (key, _described(types[key], text), getattr(defaults, key))
            for key, text in words.items()
        ],
        kw_only=True,
        frozen=True,
        forbid_unknown_fields=True,
        namespace={"__doc__": purpose},
    )


def _several(form: Any) -> Any:
    """A list of such values."""
    return tuple[form, ...]


def _described(form: Any, text: str) -> Any:
    return Annotated[form, Meta(description=text)] if text else form


Save: Final = _table(
    "Save",
    "What is stored of a prompt and its reply, and when.",
    SAVE_ALL,
    {
        "min_tokens": "Shorter prompts are not stored. 1: even a short prompt that comes again is "
        "found to its last token; the least valuable rows are removed first anyway.",
        "min_tail_tokens": "A shorter last part, after the last whole block of 64, is not stored.",
        "save_prompt_tail": "Store the last part of a prompt where its reply is not stored, so "
        "that an identical prompt is found to its last token.",
        "save_while_generating": "Store each block of a reply as it is complete, so that a crash "
        "or a fork loses at most the last block.",
        "save_finish_tail": "Store the last part of a reply, so that the next turn continues "
        "exactly where this one ended.",
        "tail_delay_ms": "Milliseconds until a last part is stored, 0 to 30000. The next turn "
        "usually extends it before, and then it need not be stored.",
        "tail_disk_delay_s": "Seconds until it is copied to files, 0 to 3600; 0: at once.",
        "session_resume_wait_ms": "Milliseconds to wait for rows that another process is storing, "
        "0 to 60000; 0: do not wait.",
    },
)
Live: Final = _table(
    "Live",
    "How long the sequences of finished requests stay in a model's context. They are not free: "
    "attention reads up to the highest used cell.",
    SAVE_ALL.live,
    {
        "min_tokens": "Sharing fewer tokens saves less than a step.",
        "max_idle": "Sequences; 0 keeps none.",
        "max_idle_share": "Share of the context's cells, 0 to 1.",
        "idle_steps_stored": "Decode steps beside it until a stored one is freed: restoring it "
        "costs about as much as these steps lose.",
        "idle_steps_unstored": "The same for one that would have to be computed again.",
        "idle_s": "Seconds; a conversation that pauses longer is restored from storage.",
    },
)
Logits: Final = _table(
    "Logits",
    "When the logits of a prompt's last position are kept. They save one decode of an identical "
    "prompt, and take 4 bytes per token of the vocabulary.",
    SAVE_ALL.logits,
    {
        "memory_bytes": "Kept in memory, per model process.",
        "row_share": "Stored where they add at most this share to the KV bytes of the request, "
        "0 to 1, so that a conversation never writes noticeably more.",
    },
    {"memory_bytes": Size},
)
Restore: Final = _table(
    "Restore",
    "When stored rows are computed instead of restored, because that is faster. Each model "
    "process measures the speeds.",
    SAVE_ALL.restore,
    {
        "min_samples": "Measurements of a tier before it may be refused.",
        "min_saved_s": "Seconds that computing must save.",
        "probe_every": "Of so many refusals one restores all the same, to measure again.",
        "weight": "Weight of the newest measurement in the average, above 0, at most 1.",
        "min_prefill_tokens": "Smaller steps are no measurement of prompt speed.",
        "min_tokens": "Smaller restores are mostly overhead, and always done.",
        "prefetch": "Copy rows that a queued request will need from files to RAM while it waits, "
        "where restoring them is faster than computing.",
    },
)
Pressure: Final = _table(
    "Pressure",
    "Evicts rows when the machine's memory gets short.",
    PressureSettings(),
    {
        "enabled": "Off by default: the budgets of the tiers are limits already.",
        "source": "Where readings come from: noop, system, nvidia, or package.module:callable.",
        "high": "Share of memory in use at which relief begins, 0 to 1.",
        "low": "Share at which it ends; lower than high, so that it does not begin at once again.",
        "stall_high": "Percent of the last 10 s in which processes waited for memory (PSI) at "
        "which relief begins; 0 ignores it.",
        "interval_s": "Seconds between two readings, 0.05 to 3600.",
        "timeout_s": "A source that has not answered within so many seconds has failed.",
        "min_evict_bytes": "A smaller overshoot is ignored: it is less than a row.",
        "tiers": "Where to evict, in this order; tiers that this node does not have are skipped.",
    },
    {"min_evict_bytes": Size},
)


_PARAMS: Final = ModelParams()
_Adapters: TypeAlias = Annotated[
    tuple[str | tuple[str, float], ...], Meta(extra_json_schema={KIND: "adapters"})
]


class _ModelDefaults:
    """Its own keys; the load options are those of ``ModelParams``."""

    path: PathText = None
    backend: Literal["llama", "stub"] = "llama"
    chat_template: str | None = None
    chat_template_file: PathText = None
    thinking_markers: tuple[str, ...] | None = None
    tool_call_markers: tuple[str, ...] | None = None
    exact: str = EXACT_NAMES[0]
    autoload: bool | None = None
    keep_alive: Duration = None
    pin: bool = False

    def __getattr__(self, option: str) -> Any:
        return getattr(_PARAMS, option)


Model: Final = _table(
    "Model",
    'A model to load when the node starts: [models.ID], or ID = "path" in [models]. Or, without a '
    "path, how a model of models_dir is loaded.",
    _ModelDefaults(),
    {
        "path": "The GGUF file; of a split model the first. Not needed for demo, the embedded "
        "model, and left out for a model of models_dir.",
        "backend": "stub is for tests without native code.",
        "chat_template": "A Jinja text in place of the one in the file.",
        "chat_template_file": "The same, as a file.",
        "thinking_markers": "What starts and ends thinking, two texts. Default: as the chat "
        "template shows; []: none.",
        "tool_call_markers": "What starts and ends a tool call, two texts, or four: also what "
        "starts and ends its free text.",
        "exact": "What gives the same bits: repeat, a request alone, cold or warm; prefix, also a "
        "reply that was interrupted; always, also beside other requests, at a price. A request may "
        "name another level, unless it is always here.",
        "autoload": "Load it at its first use instead of when the node starts. Default: true for a "
        "model of models_dir, else false.",
        "keep_alive": "How long it stays in memory without requests: seconds, or 5m, 1h; -1: "
        "without end; 0: until its requests have ended. Default: keep_alive of the node.",
        "pin": "It stays in memory, whatever else needs room, and never sleeps.",
        **LOAD_WORDS,
    },
    {
        **typing.get_type_hints(ModelParams),
        "exact": Literal[EXACT_NAMES],
        "draft_path": PathText,
        "split_mode": Literal[SPLIT_MODES],
        "type_k": Literal[KV_TYPES],
        "type_v": Literal[KV_TYPES],
        "rope_scaling": Literal[ROPE_SCALINGS],
        "pooling": Literal[POOLINGS],
        "lora": _Adapters,
        "control_vectors": _Adapters,
    },
)


class _GatewayDefaults:
    """As a file gives them."""

    listen: str | tuple[str, ...] = ()
    workers: Annotated[int, Meta(ge=1, le=64)] = 1
    keys_file: PathText = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    aliases: Annotated[dict[str, str], Meta(extra_json_schema={KIND: "aliases"})]
    unknown_model: str = "only"
    sampling: Annotated[dict[str, float], Meta(extra_json_schema={KIND: "sampling"})]
    canonicalise: tuple[str, ...] = ("claude-billing",)
    explain: bool = True
    prompts: bool = False
    slots: bool = False
    metrics: bool = True
    metrics_alias: tuple[str, ...] = ("llamacpp",)
    access_log: bool = True
    max_body: Size = 32 << 20
    max_bodies: Size = 256 << 20
    max_header_bytes: Size = 64 << 10
    max_headers: int = 100
    max_connections: int = 1024
    max_per_address: int = 64
    max_running: int = 256
    store_bytes: Size = 64 << 20
    head_s: float = 10.0
    body_s: float = 30.0
    idle_s: float = 75.0
    stalled_s: float = 60.0
    keepalive_s: float = 1.0
    drain_s: float = 10.0
    log_ttl_s: float = 300.0
    log_bytes: Size = 64 << 20
    tls_certificate: PathText = None
    tls_key: PathText = None

    def __init__(self) -> None:
        self.aliases = {}
        self.sampling = {}


Gateway: Final = _table(
    "Gateway",
    "HTTP: the APIs of OpenAI, Anthropic, Ollama and llama-server. Off unless it listens.",
    _GatewayDefaults(),
    {
        "listen": "Where: 127.0.0.1:8080, [::1]:8080, unix:/path, systemd, or a list of them. An "
        "address that other machines reach needs keys_file.",
        "workers": "Processes that speak HTTP. One carries some hundred streams. Limits of keys, "
        "stored responses and counts are those of all together.",
        "keys_file": "File of keys, made by `gateway key`. Without it no key is needed.",
        "hosts": "Names by which browsers and clients may call this machine, beside IP addresses "
        "and localhost.",
        "origins": "Origins of web pages that may call, such as https://chat.example. Others are "
        "refused, also where a browser asks no permission first. localhost: all pages of this "
        "machine; *: all pages, for a gateway with keys.",
        "aliases": "Other names of models: a pattern with * and ?, and the id of a model.",
        "unknown_model": "A name that is neither an id nor an alias: only, the model that is "
        "loaded, if it is the only one; reject, an error that lists the names.",
        "sampling": "How tokens are chosen where a request names nothing. Default: as llama-server "
        f"does, {', '.join(f'{name} {value:g}' for name, value in DEFAULT_SAMPLING)}. With this "
        "table, what is left out of it is off.",
        "canonicalise": "What is changed in requests so that prompts stay the same, in this order; "
        "each rule that changed something is named in the answer. A key may have more (rules).",
        "explain": "Answers have a cache object: what was reused, from where, and why no more.",
        "prompts": "Each worker keeps the prompts of its last 64 requests in memory, 16 MiB of "
        "them, and shows them to administrators: on the page, and in /llama/v1/requests/ID/why.",
        "slots": "GET /slots returns how many requests run, to every caller with a key.",
        "metrics": "GET /metrics returns what all workers count, and facts of the node, as "
        "Prometheus text. false: nothing but what llama-server counts is counted.",
        "metrics_alias": "Other names that it has beside ours: those of llama-server (llamacpp), "
        "and of vLLM (vllm), for dashboards that exist.",
        "access_log": "A line in the log for each request: its key's name, model, status, tokens "
        "and times, no text of it. Probes and /metrics that succeed have none.",
        "max_body": "Of a request. Larger ones are refused with 413.",
        "max_bodies": "Of all requests of a worker that are read or answered. A body of more than "
        "64 KiB that does not fit gets 503 and a time to wait.",
        "max_header_bytes": "Of all header lines together; 431 above.",
        "max_headers": "Header lines; 431 above.",
        "max_connections": "Of each worker; more get 503.",
        "max_per_address": "Connections from one address without a key.",
        "max_running": "Requests at the same time; more get 503 and a time to wait. A worker "
        "learns once a second how many run in the others.",
        "store_bytes": "Of stored responses; those that were not used for longest make room.",
        "head_s": "Seconds from the first byte of a request to the end of its header lines.",
        "body_s": "Seconds for its body, and one more for each MiB.",
        "idle_s": "Seconds that a connection may stay open without a request.",
        "stalled_s": "Seconds without a byte read by the client until a stream is cancelled.",
        "keepalive_s": "A stream on which nothing was sent for so many seconds gets a comment.",
        "drain_s": "Seconds for running requests when the gateway is stopped.",
        "log_ttl_s": "Seconds for which a stream can be read again after its end.",
        "log_bytes": "Of such streams in each worker; the oldest go first.",
        "tls_certificate": "Certificate chain in PEM. Behind a proxy on this machine it is not "
        "needed.",
        "tls_key": "Its private key.",
    },
    {
        "unknown_model": Literal[UNKNOWN_MODEL_WAYS],
        "canonicalise": _several(Literal[CANONICAL_RULES]),
        "metrics_alias": _several(Literal[METRICS_ALIASES]),
    },
)


class _NodeDefaults:
    """As a file gives them."""

    admin_port: Annotated[int, Meta(ge=1024, le=65535)] = DEFAULT_PORT
    runtime_dir: PathText = None
    cache_dir: PathText = None
    cache_disk: Budget = DISK_BYTES
    cache_disks: Annotated[dict[str, int | str], Meta(extra_json_schema={KIND: "disks"})]
    cache_ram: Budget = None
    cache_ram_file: Budget = 0
    cache_ram_file_dir: PathText = None
    cache_salt: str = ""
    fingerprint_mode: str = "safe"
    save: Any = Save()
    live: Any = Live()
    logits: Any = Logits()
    restore: Any = Restore()
    pressure: Any = Pressure()
    gateway: Any = Gateway()
    models: Annotated[dict[str, Any], Meta(extra_json_schema={KIND: "models"})]
    models_dir: PathText = None
    models_defaults: Annotated[dict[str, Any], Meta(extra_json_schema={KIND: "model"})]
    models_max: Annotated[int, Meta(ge=0, le=4096)] = 0
    models_memory: Budget = None
    keep_alive: Duration = None
    log_file: PathText = None
    log_format: str = "text"

    def __init__(self) -> None:
        self.cache_disks = {}
        self.models = {}
        self.models_defaults = {}


TABLES: Final = {
    "save": Save,
    "live": Live,
    "logits": Logits,
    "restore": Restore,
    "pressure": Pressure,
    "gateway": Gateway,
}
Node: Final = _table(
    "Node",
    "Sizes are bytes, or texts such as 4GiB.",
    _NodeDefaults(),
    {
        "admin_port": "Port of the node, by which commands find it. The default is unassigned by "
        "IANA.",
        "runtime_dir": "Parent of the node's own folder. Default: $XDG_RUNTIME_DIR/llama-actors, "
        "else a temporary folder.",
        "cache_dir": "Root of the disk tier. Default: $XDG_CACHE_HOME/llama-actors, else "
        "~/.cache/llama-actors; without either there is no disk tier.",
        "cache_disk": "Budget of the disk tier; 0 turns it off.",
        "cache_disks": "Several disks: a budget per directory, in place of cache_dir and "
        "cache_disk. Rows are spread over them in proportion to the budgets.",
        "cache_ram": "Budget of the RAM tier; 0 turns it off. Default: a quarter of the "
        "available memory, at most 4 GiB, so that weights and other programs keep the rest.",
        "cache_ram_file": "Budget of the ram_file tier: files in memory, which survive a restart "
        "of the node. Off by default.",
        "cache_ram_file_dir": "Its directory, on a tmpfs. Default: /dev/shm/llama-actors-<uid>.",
        "cache_salt": "Separates what equal models store, for instance by tenant.",
        "fingerprint_mode": "What identifies a model file: safe, all its bytes; gguf_chunked, its "
        "size, beginning, end and samples, for files too big to read twice; fast_unsafe, its "
        "path, size and times.",
        **dict.fromkeys(TABLES, ""),
        "models": "Models to load when the node starts: a path, or a table, by id.",
        "models_dir": "Folder of GGUF files: each is a model that is loaded at its first use, by "
        "its file's name. Files may come and go.",
        "models_defaults": "How the models of models_dir are loaded: a table as [models.ID], "
        "without a path. A table [models.ID] of one of them is stronger.",
        "models_max": "Models that may be in memory together; 0: as many as fit. For one more, the "
        "one that was not used for longest leaves.",
        "models_memory": "Memory that they may take together. Default: what is available.",
        "keep_alive": "How long a model stays in memory without requests: seconds, or 5m, 1h. It "
        "wakes at its next use, with its cache. Default: until another needs its room.",
        "log_file": "Life-cycle log. Default: standard error.",
        "log_format": "text, or json: one object a line.",
    },
    {
        **TABLES,
        "fingerprint_mode": Literal[FINGERPRINT_MODES],
        "log_format": Literal[LOG_FORMATS],
    },
)


def read_node(settings: Mapping[str, Any]) -> Any:
    """Plain values, as TOML and JSON give them, checked; raises ConfigError naming the key."""
    return _read(settings, Node, "")


def read_model(values: Mapping[str, Any], where: str) -> Any:
    """The table of one model; ``where`` is the prefix of its keys in errors."""
    return _read(values, Model, where)


def _read(values: Mapping[str, Any], table: Any, where: str) -> Any:
    try:
        plain = _plain(values)
        return msgspec.convert(plain, table)
    except msgspec.ValidationError as error:
        keys = []
        if path := re.search(r" - at `\$(.*)`$", str(error)):
            keys = re.findall(r"[^.\[\]]+", path[1])
        if unknown := re.match(r"Object contains unknown field `(.*?)`", str(error)):
            keys.append(unknown[1])
    except Exception:  # noqa: BLE001 - a text that is not UTF-8, an object whose methods fail
        keys = [_first_failing(plain, table)]
    raise _refusal(plain, table, where, keys)


def _first_failing(plain: Mapping[str, Any], table: Any) -> str:
    """The key whose value cannot even be examined."""
    for key, value in plain.items():
        try:
            msgspec.convert({key: value}, table)
        except msgspec.ValidationError:
            continue
        except Exception:  # noqa: BLE001 - see _read
            return key
    return next(iter(plain))


def _refusal(plain: Any, table: Any, where: str, keys: list[str]) -> ConfigError:
    """The error for a key or a value: what it is, and what is expected."""
    schema: dict[str, Any] = table_schema(table)
    value, known, names = plain, schema["properties"], []
    found: dict[str, Any] = {"type": "object"}
    for key in keys:
        if key.isdigit() or key == "...":
            break  # an element: the whole list is shown
        names.append(key)
        if key not in known:
            return _unknown(key, ".".join([where, *names] if where else names), list(known), table)
        found, value = known[key], value[key]
        known = found.get("properties", {})
    full = ".".join([where, *names] if where else names)
    if known:
        key, default = next((key, one["default"]) for key, one in known.items())
        return ConfigError(full, f"must be a table, for instance [{full}] {key} = {default}")
    return ConfigError(full, f"{short(value)} is not {kind_of(found)}")


def _unknown(key: str, full: str, known: list[str], table: Any) -> ConfigError:
    owners = [name for name, one in TABLES.items() if key in one.__struct_fields__]
    if table is Node and owners and full == key:
        return ConfigError(full, f"belongs into the table [{'] or ['.join(owners)}]")
    import difflib  # here: it takes milliseconds, and only an error needs it

    near = difflib.get_close_matches(key, known, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    return ConfigError(full, f"unknown setting; {hint}known are {', '.join(known)}")


def kind_of(setting: Mapping[str, Any]) -> str:
    """What a setting may be, in words, from its JSON schema."""
    if KIND in setting:
        return KINDS[setting[KIND]]
    if "enum" in setting:
        return f"one of {', '.join(map(str, setting['enum']))}"
    forms = [one for one in setting.get("anyOf", [setting]) if one.get("type") != "null"]
    form = forms[0]
    words = {
        "integer": "a whole number", "number": "a number", "boolean": "true or false",
        "string": "a text",
    }.get(form.get("type", ""), "")  # fmt: skip
    if form.get("type") == "array":
        inner = form.get("items") or {}
        items = kind_of(inner) if isinstance(inner, dict) and inner else "values"
        words = "a list of " + _plural(items)
    if "minimum" in form:
        words += f" from {form['minimum']} to {form['maximum']}"
    return words


def _plural(words: str) -> str:
    return {"a text": "texts", "a number": "numbers", "a whole number": "whole numbers"}.get(
        words, "values"
    )


def table_schema(table: Any) -> dict[str, Any]:
    """The JSON schema of a table, without references."""
    _, parts = msgspec.json.schema_components([table])
    root: dict[str, Any] = _resolved(parts[table.__name__], parts)
    return root


def _resolved(part: Any, parts: Mapping[str, Any]) -> Any:
    if isinstance(part, list):
        return [_resolved(one, parts) for one in part]
    if not isinstance(part, dict):
        return part
    inner = {key: _resolved(value, parts) for key, value in part.items() if key != "$ref"}
    if "$ref" in part:
        target = part["$ref"].rpartition("/")[2]
        return _resolved(parts[target], parts) | inner
    return inner


def _plain(value: Any, depth: int = 4) -> Any:
    """Values of Python callers as a file would have them: paths and shares as texts."""
    if isinstance(value, Share):
        return plain_budget(value)
    if isinstance(value, os.PathLike | bytes):
        return os.fsdecode(value)
    if isinstance(value, Enum):
        return value.value
    if not depth:
        return value
    if isinstance(value, Mapping):
        return {
            os.fsdecode(key) if isinstance(key, os.PathLike) else key: _plain(one, depth - 1)
            for key, one in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(one, depth - 1) for one in value]
    return value
