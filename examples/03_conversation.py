"""A conversation: each turn names the turn before by its key and computes only what is new."""

import tempfile

from runtime import Node

TURNS = (
    "Once upon a time there was a small fox.",
    " The next day",
    " In the end",
)


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as cache_dir,
        Node.start(cache_dir=cache_dir, cache_ram="64MiB") as node,
    ):
        story, key = "", None
        for turn in TURNS:
            story += turn
            done = node.complete("demo", story, max_tokens=30, parent_key=key)
            story, key = story + done.text, done.finish_key
            reused, total = done.usage.cached_tokens, done.usage.prompt_tokens
            print(f"[{reused} of {total} tokens reused]{turn}{done.text}")


if __name__ == "__main__":
    main()
