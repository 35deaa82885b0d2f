"""Start a node, complete a prompt with the embedded model, and repeat it from the cache."""

import tempfile

from runtime import Node

PROMPT = "Once upon a time"


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as cache_dir,
        Node.start(cache_dir=cache_dir, cache_ram="64MiB") as node,
    ):
        for attempt in ("first", "second"):
            done = node.complete("demo", PROMPT, max_tokens=40)
            print(f"{attempt}: {PROMPT}{done.text}")
            print(
                f"  {done.usage.cached_tokens} of {done.usage.prompt_tokens} prompt tokens from "
                f"{done.cache.source} ({done.cache.hit.value}), "
                f"first token after {done.timings.ttft_ms:.1f} ms"
            )


if __name__ == "__main__":
    main()
