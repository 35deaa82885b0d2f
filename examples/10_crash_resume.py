"""Four streams, and kill -9 for the model in the middle: all of them continue at their next token.

Example 05 compares the text of one with an undisturbed run. Several at once are computed in one
batch, whose last bits depend on its other requests unless they ask for exact="always".
"""

import asyncio
import os
import signal
import tempfile

from runtime import AsyncNode, CompletionEvent, ResumedEvent, TokenEvent

PROMPTS = ("The small fox", "The old owl", "A brave queen", "A funny giant")
OPTIONS = {"max_tokens": 120, "temperature": 0.8, "seed": 7}


async def kill_the_model(node: AsyncNode) -> None:
    found = (await node.tree()).find("model:demo")
    if found is None or found.pid is None:
        raise SystemExit("the model has no process")
    print(f"killing pid {found.pid}")
    os.kill(found.pid, signal.SIGKILL)


async def read(node: AsyncNode, prompt: str, has_begun: asyncio.Event) -> bool:
    """Whether every token came once, and the parts from before and after are the whole text."""
    text, n_tokens, gaps = "", 0, 0
    async for event in node.stream("demo", prompt, resumed_events=True, **OPTIONS):
        match event:
            case TokenEvent(index, tokens, more):
                gaps += index != n_tokens
                text, n_tokens = text + more, n_tokens + len(tokens)
                has_begun.set()
            case ResumedEvent(before, pause_ms):
                print(f"  {prompt!r}: continues after {before} tokens, {pause_ms:.0f} ms later")
            case CompletionEvent(completion):
                return not gaps and text == completion.text
    return False


async def main() -> None:
    with tempfile.TemporaryDirectory() as cache_dir:
        async with AsyncNode.start(cache_dir=cache_dir, cache_ram="64MiB") as node:
            begun = [asyncio.Event() for _ in PROMPTS]
            streams = [
                asyncio.create_task(read(node, one, event))
                for one, event in zip(PROMPTS, begun, strict=True)
            ]
            for event in begun:
                await event.wait()
            await kill_the_model(node)
            print(f"every text is whole: {all(await asyncio.gather(*streams))}")


if __name__ == "__main__":
    asyncio.run(main())
