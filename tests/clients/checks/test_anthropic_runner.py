"""The tool runner of anthropic-python, which leaves its history to a server that can."""

from __future__ import annotations

import itertools

import anthropic
from served import KEY, MODEL, QUESTION, URL


@anthropic.beta_tool
def weather(city: str) -> str:
    """The weather in a city.

    Args:
        city: Its name.
    """
    return f"Sunny in {city}"


def test_each_turn_of_a_tool_runner_has_the_whole_conversation():
    client = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0)
    runner = client.beta.messages.tool_runner(
        model=MODEL,
        max_tokens=128,
        tools=[weather],
        tool_choice={"type": "any"},
        messages=[{"role": "user", "content": QUESTION}],
        max_iterations=3,
    )
    replies = list(runner)
    assert len(replies) == 3
    sizes = [
        u.input_tokens + (u.cache_read_input_tokens or 0) + (u.cache_creation_input_tokens or 0)
        for u in (reply.usage for reply in replies)
    ]
    written = [reply.usage.output_tokens for reply in replies]
    for n, (before, after) in zip(written[:-1], itertools.pairwise(sizes), strict=True):
        assert after > before + n, sizes
