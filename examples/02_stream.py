"""Stream a completion: progress while the prompt is read, then text as it is generated."""

import tempfile

from runtime import CompletionEvent, Node, PrefillEvent, TokenEvent
from runtime.embedded.prompts import long_prompt


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as cache_dir,
        Node.start(cache_dir=cache_dir, cache_ram="64MiB") as node,
    ):
        prompt = long_prompt(800, seed=3)
        for event in node.stream("demo", prompt, max_tokens=60, temperature=0.8, seed=11):
            match event:
                case PrefillEvent(done, total, reused):
                    print(f"[read {done} of {total} tokens, {reused} of them from the cache]")
                case TokenEvent(_, _, text):
                    print(text, end="", flush=True)
                case CompletionEvent(completion):
                    print(f"\n[{completion.finish_reason}, ", end="")
                    print(f"{completion.timings.tokens_per_second:.0f} tokens per second]")


if __name__ == "__main__":
    main()
