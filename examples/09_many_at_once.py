"""Many requests at once on an event loop: they share each step of the model; one is cancelled."""

import asyncio
import tempfile

from runtime import AsyncNode, TokenEvent

HEROES = ("fox", "owl", "bear", "queen", "giant", "boy", "girl", "dragon")


async def first_words(node: AsyncNode, hero: str) -> str:
    """Leaving a stream cancels its request."""
    text = ""
    async with node.stream("demo", f"The {hero}", max_tokens=500) as stream:
        async for event in stream:
            if isinstance(event, TokenEvent):
                text += event.text
                if len(text) > 20:
                    break
    return text


async def main() -> None:
    with tempfile.TemporaryDirectory() as cache_dir:
        async with AsyncNode.start(cache_dir=cache_dir, cache_ram="64MiB") as node:
            stories = await asyncio.gather(
                *(node.complete("demo", f"Once there was a {hero}", max_tokens=12)
                  for hero in HEROES)
            )  # fmt: skip
            for hero, story in zip(HEROES, stories, strict=True):
                print(f"a {hero}{story.text} …")

            print("left early:", await first_words(node, "wolf"))
            endless = asyncio.create_task(node.complete("demo", "The sea", max_tokens=2000))
            await asyncio.sleep(0.05)
            endless.cancel()
            await asyncio.wait([endless])
            print("cancelled:", endless.cancelled())
            while await node.queue_depth():  # the node stops them within a step
                await asyncio.sleep(0.01)
            print("nothing runs any more")


if __name__ == "__main__":
    asyncio.run(main())
