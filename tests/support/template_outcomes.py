"""Outcomes of published chat templates, for the cases of ``tests/model/test_published_templates``.

One character for each case, in the order of ``CASES`` there: plain, tools, null content, no
content, text beside calls, calls without tools, two users, no system, system in the middle, system
alone, developer, documents.

``.`` everything that was sent is in the prompt · ``T`` the template refuses the conversation ·
``L`` refused, because the template would leave something out · ``b`` rendered, but the text beside
the calls is left out, as the template's authors meant it.
"""

from __future__ import annotations

from typing import Final

OUTCOMES: Final = {
    "Apertus-8B-Instruct": "...........L",
    "Apriel-1.6-15b-Thinker-fixed": "...........L",
    "Bielik-11B-v3.0-Instruct": "...........L",
    "ByteDance-Seed-OSS": "...........L",
    "Cohere2MoE": "............",
    "CohereForAI-c4ai-command-r-plus-tool_use": "...........L",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "............",
    "GLM-4.6": "...........L",
    "GLM-4.7-Flash": "...........L",
    "GigaChat3-10B-A1.8B": "...........L",
    "GigaChat3.1-10B-A1.8B": "...........L",
    "HuggingFaceTB-SmolLM3-3B": ".LLLLL.....L",
    "Kimi-K2-Instruct": "...........L",
    "Kimi-K2-Thinking": "...........L",
    "Kimi-K3": "...........L",
    "LFM2-8B-A1B": "..LLLL.....L",
    "LFM2.5-8B-A1B": "...........L",
    "LFM2.5-Instruct": "..LLLL.....L",
    "MiMo-VL": "...........L",
    "MiniMax-M1": "...........L",
    "MiniMax-M2": "...........L",
    "MiniMax-M3": "...........L",
    "Mistral-Small-3.2-24B-Instruct-2506": "...........L",
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": "...........L",
    "NVIDIA-Nemotron-Nano-v2": ".........T.L",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "...........L",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "...........L",
    "Qwen-QwQ-32B": "...........L",
    "Qwen-Qwen2.5-7B-Instruct": "...........L",
    "Qwen-Qwen3-0.6B": "...........L",
    "Qwen3-Coder": "...........L",
    "Qwen3.5-4B": ".........T.L",
    "Reka-Edge": "...........L",
    "Spark2.5": "...........L",
    "StepFun3.5-Flash": "...........L",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": ".LLLL......L",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": ".LLLL......L",
    "deepseek-ai-DeepSeek-V3.1": ".LLLL......L",
    "deepseek-ai-DeepSeek-V3.2": "...........L",
    "deepseek-ai-DeepSeek-V4-Flash-0731": "...........L",
    "deepseek-ai-DeepSeek-V4": "...........L",
    "fireworks-ai-llama-3-firefunction-v2": "...........L",
    "google-gemma-2-2b-it": ".LTTTT.....L",
    "google-gemma-4-31B-it-interleaved": "...........L",
    "google-gemma-4-31B-it": "...........L",
    "ibm-granite-granite-3.3-2B-Instruct": "..LLLL......",
    "ibm-granite-granite-4.0": "............",
    "ibm-granite-granite-4.1": "............",
    "inclusionai-ling-3.0-flash": "...........L",
    "llama-cpp-deepseek-r1": "...........L",
    "llama-cpp-rwkv-world": ".LLLLL.....L",
    "meetkai-functionary-medium-v3.1": "...........L",
    "meetkai-functionary-medium-v3.2": "...........L",
    "meta-llama-Llama-3.1-8B-Instruct": "...........L",
    "meta-llama-Llama-3.2-3B-Instruct": "...........L",
    "meta-llama-Llama-3.3-70B-Instruct": "...........L",
    "microsoft-Phi-3.5-mini-instruct": ".LLLLL.....L",
    "mistralai-Ministral-3-14B-Reasoning-2512": "...........L",
    "mistralai-Mistral-Nemo-Instruct-2407": ".........L.L",
    "moonshotai-Kimi-K2": "...........L",
    "muse-glimmer": "...........L",
    "openai-gpt-oss-120b": "...........L",
    "openbmb-MiniCPM5-1B": "...........L",
    "poolside-Laguna-S-2.1": "...........L",
    "poolside-Laguna-XS-2.1": "...........L",
    "poolside-Laguna-XS.2": "...........L",
    "tencent-Hy3": "...........L",
    "unsloth-Apriel-1.5": "...........L",
    "unsloth-mistral-Devstral-Small-2507": "...........L",
    "upstage-Solar-Open-100B": "...........L",
}
