"""Options of requests and of models: each as keywords, and as one frozen value.

Every method that takes options takes them as keywords, as a ready value, or as both, where a
keyword replaces the field of the same name:

>>> from runtime import Node, RequestOptions
>>> careful = RequestOptions(max_tokens=200, temperature=0.2, stop="END")
>>> with Node.start() as node:                                              # doctest: +SKIP
...     node.complete("demo", "Once upon a time", options=careful)
...     node.complete("demo", "Once upon a time", options=careful, seed=7)
...     node.complete("demo", "Once upon a time", max_tokens=40)

The dictionaries are the types of the keywords, for editors and type checkers; a value of each class
has the same fields, and a test compares the two. ``None`` always means: not given. Values are
checked when they are used; ``InvalidRequest``, or ``ConfigError`` for a model, names a wrong one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from actors.messages.completion import Priority, Speculation
from actors.messages.exact import Exact, ExactName
from native import BackendKind
from native.sampling_params import SamplingParams

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

LogitBias = Mapping[int, float] | Mapping[str, float] | Sequence[tuple[int | str, float]]
"""Tokens or texts and the numbers to add to their logits; ``False`` bans them. In a mapping, digits
are a token id."""
SpeculationName = Literal["off", "ngram", "draft"]
EffortName = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
ContinuedName = Literal["auto", "content", "reasoning_content"]
PriorityName = Literal["interactive", "background"]


class SamplingOptionsDict(TypedDict, total=False):
    """How tokens are chosen; see the fields of ``RequestOptions``."""

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    typ_p: float | None
    seed: int | None
    repetition_penalty: float | None
    repeat_penalty: float | None
    repetition_window: int | None
    repeat_last_n: int | None
    frequency_penalty: float | None
    presence_penalty: float | None
    dry_multiplier: float | None
    dry_base: float | None
    dry_allowed_length: int | None
    dry_window: int | None
    dry_penalty_last_n: int | None
    dry_breakers: Sequence[str] | None
    dry_sequence_breakers: Sequence[str] | None
    xtc_probability: float | None
    xtc_threshold: float | None
    mirostat: int | None
    mirostat_tau: float | None
    mirostat_eta: float | None
    logit_bias: LogitBias | None
    ignore_eos: bool | None
    samplers: Sequence[str] | str | None
    top_n_sigma: float | None
    dynatemp_range: float | None
    dynatemp_exponent: float | None
    min_keep: int | None
    grammar: str | None
    json_schema: str | bool | Mapping[str, Any] | None
    response_format: Mapping[str, Any] | None
    logprobs: bool | int | None
    top_logprobs: int | None
    n_logprobs: int | None
    n_probs: int | None
    sampling: SamplingParams | None


class ContinuationOptionsDict(SamplingOptionsDict, total=False):
    """Options of a request whose session is named by the method; see ``RequestOptions``."""

    max_tokens: int | None
    stop: str | Sequence[str] | None
    timeout_s: float | None
    parent_key: str | None
    parse_special: bool | None
    speculation: SpeculationName | Speculation | None
    exact: ExactName | Exact | None
    priority: PriorityName | Priority | None
    thinking: bool | Literal["auto"] | None
    thinking_budget_tokens: int | None
    tool_calls: bool | None
    resumed_events: bool | None
    salt: bytes | None
    queue_events: bool | None
    load_events: bool | None
    drop_live: bool | None
    traceparent: str | None


class RequestOptionsDict(ContinuationOptionsDict, total=False):
    """The keywords of ``complete``, ``stream`` and ``prefill_only``; see ``RequestOptions``."""

    session: str | None
    continues: bool | None
    echo: bool | None


class ChatOptionsDict(RequestOptionsDict, total=False):
    """The keywords of ``chat`` and ``stream_chat``; see ``ChatOptions``."""

    tools: Sequence[Mapping[str, Any]] | None
    deferred_tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool | None
    documents: Sequence[Mapping[str, Any]] | None
    template_kwargs: Mapping[str, Any] | None
    chat_template_kwargs: Mapping[str, Any] | None
    enable_thinking: bool | None
    reasoning_effort: EffortName | None
    continue_final_message: bool | ContinuedName | None
    chat_template: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOptions:
    """Options of a completion. ``None`` is the default: what fits for ``max_tokens``, off for most.

    >>> RequestOptions(max_tokens=40, temperature=0.7).max_tokens
    40
    """

    max_tokens: int | None = None
    """Tokens to generate at most; 0 only reads the prompt. Default: as many as fit into the
    context."""
    stop: str | Sequence[str] | None = None
    """Texts before which the reply ends; 2048 bytes together at most."""
    timeout_s: float | None = None
    """Seconds from the first step to the end; then ``DeadlineExceeded``."""
    parent_key: str | None = None
    """``finish_key`` of an earlier completion that this prompt continues: 64 hex digits."""
    session: str | None = None
    """Name of 1 to 256 characters; the next request of that name continues where this one ends."""
    continues: bool | None = None
    """The prompt is only what follows the session, or ``parent_key``."""
    parse_special: bool | None = None
    """Read control tokens that are written in the prompt; not for texts of third parties."""
    speculation: SpeculationName | Speculation | None = None
    """Where guessed tokens come from; never changes the text."""
    exact: ExactName | Exact | None = None
    """What must give the same bits: ``repeat``, the request alone, cold or warm; ``prefix``, also
    an interrupted reply; ``always``, also beside other requests. Default: the model's."""
    priority: PriorityName | Priority | None = None
    """``background`` steps aside for others; default ``interactive``."""
    thinking: bool | Literal["auto"] | None = None
    """Return thinking as events and spans of their own, apart from ``text``; ``auto``: where the
    model shows any, and without an error where it does not."""
    thinking_budget_tokens: int | None = None
    """Close a thinking block after this many tokens; implies ``thinking``."""
    tool_calls: bool | None = None
    """Return tool calls as events and spans of their own, apart from ``text``."""
    resumed_events: bool | None = None
    """Yield a ``ResumedEvent`` when the reply continues after a process of the node has died."""
    salt: bytes | None = None
    """Separates what is cached for this caller from that of others: at most 64 bytes. Sessions and
    finish keys are those of one salt, too."""
    queue_events: bool | None = None
    """Yield a ``QueuedEvent`` with its place while the request waits for its turn."""
    load_events: bool | None = None
    """Yield a ``LoadEvent`` with the share that is read while the model is loaded for it."""
    drop_live: bool | None = None
    """Keep nothing of it in the context when it has ended, as for a title or a summary that no
    request continues; what is stored of it stays in the cache."""
    traceparent: str | None = None
    """W3C's Trace Context: logs and crash reports that name this request name its trace too. What
    has another form is left out."""
    echo: bool | None = None
    """Return the prompt before the reply: as its first event, and in front of ``text`` and
    ``tokens``; its log-probabilities are None. Not for conversations."""

    temperature: float | None = None
    """0 (the default) takes the likeliest token; at most 100."""
    top_k: int | None = None
    """Keep the k likeliest tokens; 0 and -1: all."""
    top_p: float | None = None
    """Keep the likeliest tokens up to this probability, in (0, 1]; 1: all."""
    min_p: float | None = None
    """Keep tokens with this share of the likeliest one's probability, 0 to 1; 0: all."""
    typical_p: float | None = None
    """Locally typical sampling, in (0, 1]; 1: off."""
    typ_p: float | None = None
    """llama.cpp's name for ``typical_p``."""
    seed: int | None = None
    """64 bits; the same seed gives the same text. -1: another each time. Default 0. Further replies
    to a prompt have the seeds after it."""
    repetition_penalty: float | None = None
    """Divides positive and multiplies negative logits of recent tokens, in (0, 100]; 1: off."""
    repeat_penalty: float | None = None
    """llama.cpp's name for ``repetition_penalty``."""
    repetition_window: int | None = None
    """Tokens that penalties look back, 0 to 65536. Default 64."""
    repeat_last_n: int | None = None
    """llama.cpp's name for ``repetition_window``; -1: all of the text."""
    frequency_penalty: float | None = None
    """Subtracted from a logit for each occurrence, -100 to 100."""
    presence_penalty: float | None = None
    """Subtracted once from the logits of tokens that occur, -100 to 100."""
    dry_multiplier: float | None = None
    """Strength of the DRY repetition penalty, 0 to 100; 0: off."""
    dry_base: float | None = None
    """Its growth per repeated token, 1 to 100. Default 1.75."""
    dry_allowed_length: int | None = None
    """Tokens that may repeat unpunished, at least 1. Default 2."""
    dry_window: int | None = None
    """Tokens that DRY looks back, 0 to 65536. Default 4096."""
    dry_penalty_last_n: int | None = None
    """llama.cpp's name for ``dry_window``; -1: all of the text."""
    dry_breakers: Sequence[str] | None = None
    """Texts that end a repetition; at most 32 of 40 bytes each."""
    dry_sequence_breakers: Sequence[str] | None = None
    """llama.cpp's name for ``dry_breakers``."""
    xtc_probability: float | None = None
    """Chance to leave out all but the least likely of the tokens above the threshold, 0 to 1."""
    xtc_threshold: float | None = None
    """0 to 1; above 0.5 nothing is left out. Default 0.1."""
    mirostat: int | None = None
    """1 or 2 in place of ``top_k``, ``top_p``, ``min_p`` and XTC; 0: off."""
    mirostat_tau: float | None = None
    """Bits of surprise to aim at. Default 5."""
    mirostat_eta: float | None = None
    """Learning rate, 0 to 1. Default 0.1."""
    logit_bias: LogitBias | None = None
    """Numbers to add to the logits of tokens, at most 300. A text stands for each token that it has
    without control tokens."""
    ignore_eos: bool | None = None
    """Ban the tokens that end a reply; it goes on until ``max_tokens``, a stop text or the end of
    its grammar."""
    samplers: Sequence[str] | str | None = None
    """What is applied, and in which order: names of ``native.sampling_params.SAMPLERS``, which is
    the default, or llama.cpp's names or letters. What is left out is off."""
    top_n_sigma: float | None = None
    """Keep logits of at most so many standard deviations below the highest, to 100; 0 and -1:
    all."""
    dynatemp_range: float | None = None
    """How far ``temperature`` moves to both sides with the entropy, 0 to 100; 0: not at all."""
    dynatemp_exponent: float | None = None
    """Power of the relative entropy for ``dynatemp_range``, 0 to 100. Default 1."""
    min_keep: int | None = None
    """Tokens that ``typical_p``, ``top_p``, ``min_p`` and XTC leave at least."""
    grammar: str | None = None
    """GBNF with a rule ``root``; only texts that it describes are generated."""
    json_schema: str | bool | Mapping[str, Any] | None = None
    """JSON Schema as an object or as JSON text; only JSON that it describes is generated."""
    response_format: Mapping[str, Any] | None = None
    """OpenAI's form: type ``text``, ``json_object`` or ``json_schema``."""
    logprobs: bool | int | None = None
    """Report each token's log-probability; a number: and those of as many likeliest tokens."""
    top_logprobs: int | None = None
    """How many likeliest tokens ``logprobs=True`` reports, 0 to 20."""
    n_logprobs: int | None = None
    """The same as ``logprobs=True`` with this ``top_logprobs``."""
    n_probs: int | None = None
    """llama.cpp's name for ``n_logprobs``."""
    sampling: SamplingParams | None = None
    """All sampling parameters as a ready value, in place of the options above."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions(RequestOptions):
    """Options of a conversation: those of a completion, and what the chat template reads."""

    tools: Sequence[Mapping[str, Any]] | None = None
    """Functions that may be called, as in OpenAI's API; their calls are returned apart."""
    deferred_tools: Sequence[Mapping[str, Any]] | None = None
    """More of them, which the messages themselves describe: the template does not print these, so
    the prompt before that description stays as it was."""
    tool_choice: str | Mapping[str, Any] | None = None
    """``auto``, ``none``, ``required``, or the one function that must be called, as in OpenAI's
    API."""
    parallel_tool_calls: bool | None = None
    """Whether a reply may hold several calls. Default: as the template has it."""
    documents: Sequence[Mapping[str, Any]] | None = None
    """Texts that the template puts before the conversation."""
    template_kwargs: Mapping[str, Any] | None = None
    """More variables of the template."""
    chat_template_kwargs: Mapping[str, Any] | None = None
    """The same, by the name that other servers have for it."""
    enable_thinking: bool | None = None
    """Whether the model thinks, by the template's own variable for it."""
    reasoning_effort: EffortName | None = None
    """How much it thinks: as much as the template distinguishes; ``none``: not at all."""
    continue_final_message: bool | ContinuedName | None = None
    """Continue the last message, which is the assistant's: its content, or its thought where it
    has nothing else. The reply contains only what is new."""
    chat_template: str | None = None
    """A Jinja text in place of the model's own template."""


class LoadOptionsDict(TypedDict, total=False):
    """The keywords of ``load``; see ``LoadOptions``."""

    backend: BackendKind | None
    n_ctx: int | None
    n_batch: int | None
    n_ubatch: int | None
    n_seq_max: int | None
    n_threads: int | None
    n_threads_batch: int | None
    n_gpu_layers: int | None
    main_gpu: int | None
    split_mode: Literal["none", "layer", "row"] | None
    tensor_split: Sequence[float] | None
    type_k: str | None
    type_v: str | None
    flash_attn: bool | None
    use_mmap: bool | None
    use_mlock: bool | None
    rope_scaling: Literal["model", "none", "linear", "yarn", "longrope"] | None
    rope_freq_base: float | None
    rope_freq_scale: float | None
    yarn_ext_factor: float | None
    yarn_attn_factor: float | None
    yarn_beta_fast: float | None
    yarn_beta_slow: float | None
    yarn_orig_ctx: int | None
    vocab_only: bool | None
    lora: Sequence[str | Path | tuple[str | Path, float]] | None
    control_vectors: Sequence[str | Path | tuple[str | Path, float]] | None
    control_vector_layers: tuple[int, int] | None
    override_tensors: Sequence[str] | None
    n_cpu_moe: int | None
    cpu_moe: bool | None
    override_kv: Sequence[str] | None
    draft_path: str | Path | None
    embed_tokens: int | None
    pooling: Literal["model", "none", "mean", "cls", "last"] | None
    check_memory: bool | None
    thinking_markers: Sequence[str] | None
    tool_call_markers: Sequence[str] | None
    chat_template: str | None
    chat_template_file: str | Path | None
    exact: ExactName | Exact | None
    keep_alive: float | str | None
    pin: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How to load a model. ``None`` is the default of ``native.params.ModelParams``.

    >>> LoadOptions(n_ctx=8192, n_gpu_layers=0).n_ctx
    8192
    """

    backend: BackendKind | None = None
    """``llama``, or ``stub`` for tests without native code."""
    n_ctx: int | None = None
    """Tokens of KV cache that all sequences share; 0: as the model was trained, if memory allows.
    Default 4096."""
    n_batch: int | None = None
    """Tokens of one step. Default 512."""
    n_ubatch: int | None = None
    """Tokens computed at once, at most ``n_batch``. Default 512."""
    n_seq_max: int | None = None
    """Requests that run at the same time, 1 to 255. Default 8."""
    n_threads: int | None = None
    """Threads for generating. Default: physical cores that this process may use."""
    n_threads_batch: int | None = None
    """Threads for prompts. Default: ``n_threads``."""
    n_gpu_layers: int | None = None
    """Layers on the GPU; negative (the default): all."""
    main_gpu: int | None = None
    """The GPU with ``split_mode="none"``."""
    split_mode: Literal["none", "layer", "row"] | None = None
    """How a model is spread over several GPUs. Default ``layer``."""
    tensor_split: Sequence[float] | None = None
    """Shares of the GPUs; empty: by free memory."""
    type_k: str | None = None
    """Type of the keys in the KV cache: ``f16`` (default), ``f32``, ``bf16``, ``q8_0`` and more."""
    type_v: str | None = None
    """Type of the values; a quantised one needs ``flash_attn``."""
    flash_attn: bool | None = None
    """Flash attention. Default on."""
    use_mmap: bool | None = None
    """Map the file instead of reading it. Default on."""
    use_mlock: bool | None = None
    """Keep the weights in RAM. Default off."""
    rope_scaling: Literal["model", "none", "linear", "yarn", "longrope"] | None = None
    """Position scaling; ``model``: as the file specifies."""
    rope_freq_base: float | None = None
    """Default: the model's own."""
    rope_freq_scale: float | None = None
    """Default: the model's own."""
    yarn_ext_factor: float | None = None
    """Default: the model's own."""
    yarn_attn_factor: float | None = None
    """Default: the model's own."""
    yarn_beta_fast: float | None = None
    """Default: the model's own."""
    yarn_beta_slow: float | None = None
    """Default: the model's own."""
    yarn_orig_ctx: int | None = None
    """Context in tokens that the model was trained with. Default: the model's own."""
    vocab_only: bool | None = None
    """Load no weights: the model tokenises and does nothing else."""
    lora: Sequence[str | Path | tuple[str | Path, float]] | None = None
    """LoRA adapters to apply: paths, or pairs of a path and a scale."""
    control_vectors: Sequence[str | Path | tuple[str | Path, float]] | None = None
    """Control vectors to add to what the layers compute: paths, or pairs of a path and a scale."""
    control_vector_layers: tuple[int, int] | None = None
    """The first and the last layer that they change, counted from 1. Default: all."""
    override_tensors: Sequence[str] | None = None
    """Where tensors lie: ``PATTERN=BUFFER``, such as ``ffn_.*_exps=CPU``. The first pattern, a
    regular expression, that is found in a tensor's name counts."""
    n_cpu_moe: int | None = None
    """Keep the expert weights of so many first layers on the CPU. Default 0."""
    cpu_moe: bool | None = None
    """Keep all expert weights on the CPU. Default off."""
    override_kv: Sequence[str] | None = None
    """Values in place of the file's own: ``KEY=TYPE:VALUE``, such as
    ``tokenizer.ggml.add_bos_token=bool:false``; TYPE is ``int``, ``float``, ``bool`` or ``str``."""
    draft_path: str | Path | None = None
    """A small model of the same vocabulary, for ``speculation="draft"``."""
    embed_tokens: int | None = None
    """Tokens of the longest text that can be embedded. Default 2048."""
    pooling: Literal["model", "none", "mean", "cls", "last"] | None = None
    """How the vectors of a text's tokens become one."""
    check_memory: bool | None = None
    """Refuse a model that is estimated not to fit. Default on."""
    thinking_markers: Sequence[str] | None = None
    """Texts that start and end thinking; ``[]``: none. Default: those of the chat template."""
    tool_call_markers: Sequence[str] | None = None
    """Texts that start and end tool calls; ``[]``: none. Default: those of the chat template."""
    chat_template: str | None = None
    """A Jinja text in place of the one in the file."""
    chat_template_file: str | Path | None = None
    """Path of such a text."""
    exact: ExactName | Exact | None = None
    """As in ``RequestOptions``, where a request names no level; ``always`` is that of all of them.
    Default ``repeat``."""
    keep_alive: float | str | None = None
    """How long it stays in memory without requests: seconds, or ``5m``; below 0: without end. It
    wakes at its next use. Default: as the node is configured."""
    pin: bool | None = None
    """Keep it in memory, whatever else needs room. Default off."""


def given(options: DataclassInstance, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """What is not ``None`` of a ready value, as keywords; ``keywords`` replace it."""
    ready = {one.name: getattr(options, one.name) for one in fields(options)}
    return {name: value for name, value in ready.items() if value is not None} | {**keywords}
