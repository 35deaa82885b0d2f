"""Texts of the published formats that are no markers of their own: a reader passes over them."""

from __future__ import annotations

from typing import Final

LITERALS: Final = (
    *"[],{}",
    "function call", "function", "response", "tools", "assistant", "call:", "all\n", "to=user",
    ">>>", "json", "```", "Action:", "commentary", "to=", "functions.",
    "<tool_calls>", "</tool_calls>", "<tool_call>", "</tool_call>",
    "<|START_TEXT|>", "<|END_TEXT|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|message|>",
    "<|content|>", "<|tool_calls|>", "<|tool_call:begin|>", "<|tool_call:end|>",
    "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>",
    "<｜DSML｜function_calls>", "</｜DSML｜function_calls>", "<｜DSML｜tool_calls>",
    "</｜DSML｜tool_calls>",
)  # fmt: skip
