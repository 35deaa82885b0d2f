"""The server that the checks talk to, and what they ask it."""

from __future__ import annotations

import os

URL = os.environ["CLIENTS_URL"]
MODEL = os.environ["CLIENTS_MODEL"]
KEY = "none"
QUESTION = "Tell me a story about a lighthouse."
OVERLONG = "The keeper counted the waves. " * 20_000
"""Longer than the context of any model that the kit serves: 600,000 characters."""

WEATHER = {
    "name": "weather",
    "description": "The weather in a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["London", "Paris"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
"""A tool whose arguments a grammar bounds, so that any model completes a call of it."""
OPENAI_TOOL = {"type": "function", "function": WEATHER}
