"""A model that follows a script: a real GGUF whose next token follows from the last alone.

Agents need a model with a long context that calls their tools. None of that kind is small, so this
one is written here: its embeddings are unit vectors, attention and feed-forward add nothing, and
the row of the output matrix for a token points at the token before it in a script. Everything else
is as with any model: the prompt is tokenised and computed, its keys and values differ from token to
token and are kept, and the reply is sampled (the distance between the best logit and the others is
so large that temperature has no effect).

Which script it follows is decided by the chat template, which ends every prompt with the first
token of one of them: by the names of the tools that the request has, and by how many results of
tools are in the conversation. It writes the same token before the replies of the history, so a
later prompt begins with an earlier one, reply included. Calls are in the form of Hermes and Qwen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter, TokenType

from runtime import embedded
from tests.support.gguf_files import byte_symbol

N_CTX: Final = 131_072
END: Final = "<|end|>"
_BEGIN: Final = "<|begin|>"
_N_HEAD_EMBD, _N_FF = 32, 32
_SHORTEST_PIECE: Final = 3  # characters
_GAIN: Final = 8.0  # times the root of the embedding's length: the distance of the logits

_TEMPLATE: Final = """\
{%- set steps = STEPS %}
{%- set now = namespace(starts=[], n_results=0) %}
{%- for tool in tools or [] %}
{%- if tool.function.name in steps %}{% set now.starts = steps[tool.function.name] %}{% endif %}
{%- endfor %}
{%- macro start() %}
{%- if now.n_results < now.starts | length %}{{ now.starts[now.n_results] }}
{%- elif now.n_results %}{{ '<|answer|>' }}
{%- else %}{{ '<|plain|>' }}{% endif %}
{%- endmacro %}
{{- '<|system|>' }}
{%- if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}
{%- if tools %}{{ '\\n<tools>\\n' }}
{%- for tool in tools %}{{ tool | tojson }}{{ '\\n' }}{% endfor %}
{{- '</tools>\\nWrite calls as <tool_call>{"name": ..., "arguments": ...}</tool_call>.' }}
{%- endif %}{{ '<|end|>' }}
{%- for message in messages %}
{%- if loop.first and message.role == 'system' %}
{%- elif message.role == 'assistant' %}
{{- '<|assistant|>' + start() + (message.content or '') }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}{{ '}\\n</tool_call>' }}
{%- endfor %}{{ '<|end|>' }}
{%- elif message.role == 'tool' %}{% set now.n_results = now.n_results + 1 %}
{{- '<|tool|><tool_response>\\n' + message.content + '\\n</tool_response><|end|>' }}
{%- else %}{{ '<|' + message.role + '|>' + message.content + '<|end|>' }}
{%- endif %}
{%- endfor %}
{%- if messages[-1].role != 'assistant' %}{{ '<|assistant|>' + start() }}{% endif %}"""
_ROLES: Final = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")


Call = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Scripts:
    """What the model writes.

    ``calls``, when the request has a tool of that name: one after the other, each a tool's name
    and arguments, the next when there is a result of the one before. ``answer``: when there are
    all results. ``plain``: without such a tool.
    """

    calls: Mapping[str, Sequence[Call]]
    answer: str
    plain: str

    def texts(self) -> dict[str, str]:
        """Each script by its first token."""
        found = {"<|plain|>": self.plain, "<|answer|>": self.answer}
        for tool, calls in self.calls.items():
            for number, (name, arguments) in enumerate(calls):
                call = json.dumps({"name": name, "arguments": arguments})
                found[_start(tool, number)] = f"<tool_call>\n{call}\n</tool_call>"
        return found

    def template(self) -> str:
        steps = {
            tool: [_start(tool, number) for number in range(len(calls))]
            for tool, calls in self.calls.items()
        }
        return _TEMPLATE.replace("STEPS", json.dumps(steps))


def _start(tool: str, number: int) -> str:
    return f"<|call {tool} {number}|>"


def scripted_model(path: Path, scripts: Scripts) -> Path:
    """Write the model to ``path`` and return the path: a few megabytes, a second."""
    ordinary, merges = _ordinary()
    taken = set(ordinary)
    chains = {start: _pieces(_symbols(text), taken) for start, text in scripts.texts().items()}
    pieces = [piece for chain in chains.values() for piece in chain]
    controls = [*chains, *_ROLES, _BEGIN, END]
    tokens = [*ordinary, *pieces, *controls]
    ids = {text: number for number, text in enumerate(tokens)}

    followed = {}  # token → the next one; all others are followed by the end
    for start, chain in chains.items():
        for left, right in zip([start, *chain], [*chain, END], strict=True):
            followed[ids[left]] = ids[right]
    n_embd = -(-(1 + len(followed)) // 64) * 64
    embedding = np.zeros((len(tokens), n_embd), np.float32)
    output = np.zeros_like(embedding)
    embedding[:, 0] = 1.0
    output[ids[END], 0] = _GAIN
    for axis, (left, right) in enumerate(followed.items(), 1):
        embedding[left, 0] = 0.0
        embedding[left, axis] = 1.0
        output[right, axis] = _GAIN

    writer = GGUFWriter(path, "llama")
    _add_parameters(writer, n_embd, len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    n_normal = len(ordinary) + len(pieces)
    writer.add_token_types([TokenType.NORMAL] * n_normal + [TokenType.CONTROL] * len(controls))
    writer.add_key_value("tokenizer.ggml.merges", merges, GGUFValueType.ARRAY)
    writer.add_bos_token_id(ids[_BEGIN])
    writer.add_eos_token_id(ids[END])
    writer.add_add_bos_token(True)
    writer.add_chat_template(scripts.template())
    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output.weight", output)
    for name, numbers in _layer(n_embd).items():
        writer.add_tensor(name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _ordinary() -> tuple[list[str], list[str]]:
    """Tokens and merges of the embedded model, without its control tokens: every byte is there."""
    fields = GGUFReader(embedded.path()).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    kept = [t for t, kind in zip(tokens, kinds, strict=True) if kind == TokenType.NORMAL]
    return kept, fields["tokenizer.ggml.merges"].contents()


def _symbols(text: str) -> str:
    return "".join(byte_symbol(byte) for byte in text.encode())


def _pieces(text: str, taken: set[str]) -> Sequence[str]:
    """``text`` cut into tokens that are new, and are added to ``taken``.

    No merge leads to them, so a tokenizer never writes them: they stand for their place alone.
    """
    found = []
    begin = 0
    while begin < len(text):
        end = min(begin + _SHORTEST_PIECE, len(text))
        while end < len(text) and text[begin:end] in taken:
            end += 1
        while text[begin:end] in taken:  # the rest is not new: it belongs to the piece before
            if not found:
                raise ValueError(f"a script needs a longer text: {text!r} is one token already")
            taken.discard(last := found.pop())
            begin -= len(last)
        found.append(text[begin:end])
        taken.add(text[begin:end])
        begin = end
    return found


def _add_parameters(writer: GGUFWriter, n_embd: int, n_vocab: int) -> None:
    writer.add_name("scripted")
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(1)
    writer.add_feed_forward_length(_N_FF)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_key_length(_N_HEAD_EMBD)
    writer.add_value_length(_N_HEAD_EMBD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_N_HEAD_EMBD)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(n_vocab)


def _layer(n_embd: int) -> dict[str, np.ndarray]:
    """Attention that attends and a feed-forward that computes, both without effect."""
    rng = np.random.default_rng(0)

    def random(*dims: int) -> np.ndarray:
        return rng.standard_normal(dims, dtype=np.float32) * 0.1

    ones = np.ones(n_embd, np.float32)
    layer = {
        "attn_norm": ones,
        "attn_q": random(_N_HEAD_EMBD, n_embd),
        "attn_k": random(_N_HEAD_EMBD, n_embd),
        "attn_v": random(_N_HEAD_EMBD, n_embd),
        "attn_output": np.zeros((n_embd, _N_HEAD_EMBD), np.float32),
        "ffn_norm": ones,
        "ffn_gate": random(_N_FF, n_embd),
        "ffn_up": random(_N_FF, n_embd),
        "ffn_down": np.zeros((n_embd, _N_FF), np.float32),
    }
    return {f"blk.0.{name}.weight": numbers for name, numbers in layer.items()} | {
        "output_norm.weight": ones
    }
