"""Calls in a template's words that are not read as they were sent, by template and case.

This table must only shrink: a test fails where a case of it is read now. What is in it still comes
whole, as text with a note.
"""

from __future__ import annotations

from typing import Final

_TWO_MESSAGES: Final = "the template writes text and calls as two messages"
_ONE_CALL: Final = "the template writes one call, and leaves the rest out"
_REFUSED: Final = "the template refuses a second call"
_PARALLEL: Final = "llama.cpp's analysis of the template finds no format for several calls"
_PYTHON: Final = "the template prints lists and objects as Python does, which is no JSON"
_ESCAPES: Final = "the template prints texts without escapes that the format has"
_TEXT_LAST: Final = "the template moves the text behind the calls"
_TEXT_LEFT_OUT: Final = "the template leaves the text beside calls out"
_AS_THOUGHT: Final = "the template writes the text beside calls as a thought"
_FIXED_ID: Final = "llama.cpp's analysis takes the id of the first call for a part of the format"
_ACTION: Final = "llama.cpp's analysis of the template finds calls where a reply begins with one"
_NOT_RUN: Final = "llama.cpp's Jinja does not run the template for lists and objects"

EXCEPTIONS: Final[dict[str, dict[str, str]]] = {
    "ByteDance-Seed-OSS": {"nested": _PYTHON, "words": _PYTHON},
    "Cohere2MoE": {"text": _TWO_MESSAGES},
    "CohereForAI-c4ai-command-r-plus-tool_use": {
        "text": _ACTION,
        "nested": _NOT_RUN,
        "words": _NOT_RUN,
    },
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": {"text": _TWO_MESSAGES},
    "GigaChat3-10B-A1.8B": {"two": _ONE_CALL},
    "GigaChat3.1-10B-A1.8B": {"two": _ONE_CALL},
    "LFM2.5-8B-A1B": {"escapes": _ESCAPES},
    "MiniMax-M1": {"text": _TWO_MESSAGES, "two": _PARALLEL},
    "MiniMax-M2": {"two": _PARALLEL},
    "Mistral-Small-3.2-24B-Instruct-2506": {"text": _TEXT_LEFT_OUT},
    "NVIDIA-Nemotron-Nano-v2": {"text": _TWO_MESSAGES},
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": {"text": _TWO_MESSAGES},
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": {"text": _TWO_MESSAGES},
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": {"text": _TEXT_LAST},
    "google-gemma-4-31B-it": {"text": _TEXT_LAST},
    "google-gemma-4-31B-it-interleaved": {"text": _TEXT_LAST},
    "llama-cpp-deepseek-r1": {"text": _TWO_MESSAGES},
    "meetkai-functionary-medium-v3.2": {"text": _PARALLEL, "two": _PARALLEL},
    "meta-llama-Llama-3.1-8B-Instruct": {"text": _TWO_MESSAGES, "two": _REFUSED},
    "meta-llama-Llama-3.2-3B-Instruct": {"text": _TWO_MESSAGES, "two": _REFUSED},
    "meta-llama-Llama-3.3-70B-Instruct": {"text": _TWO_MESSAGES, "two": _REFUSED},
    "mistralai-Mistral-Nemo-Instruct-2407": {"text": _TEXT_LEFT_OUT},
    "muse-glimmer": {"text": _TWO_MESSAGES},
    "openai-gpt-oss-120b": {"text": _AS_THOUGHT, "two": _ONE_CALL},
    "openbmb-MiniCPM5-1B": {"nested": _PYTHON, "words": _PYTHON},
    "upstage-Solar-Open-100B": {"text": _TWO_MESSAGES, "two": _FIXED_ID},
}
