"""Kill the model's process with SIGKILL in mid-stream, then the cache index, and continue."""

import os
import signal
import tempfile

from runtime import Node, ResumedEvent, TokenEvent
from runtime.embedded.prompts import long_prompt


def kill(node: Node, actor: str) -> int:
    found = node.tree().find(actor)
    if found is None or found.pid is None:
        raise SystemExit(f"{actor} has no process")
    os.kill(found.pid, signal.SIGKILL)
    return found.pid


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as cache_dir,
        Node.start(cache_dir=cache_dir, cache_ram="64MiB") as node,
    ):
        prompt = long_prompt(600, seed=39)
        unbroken = node.complete("demo", prompt, max_tokens=100, exact="prefix")
        print(f"first token after {unbroken.timings.ttft_ms:.1f} ms")

        text, killed = "", 0
        events = node.stream("demo", prompt, max_tokens=100, exact="prefix", resumed_events=True)
        for event in events:
            match event:
                case TokenEvent():
                    text += event.text
                    killed = killed or kill(node, "model:demo")
                case ResumedEvent(n_tokens, pause_ms):
                    print(
                        f"killed pid {killed}: a pause of {pause_ms:.0f} ms after {n_tokens} tokens"
                    )
                case _:
                    pass
        print(f"same text: {text == unbroken.text}")

        print(f"killed the cache index (pid {kill(node, 'cache_meta')})")
        again = node.complete("demo", prompt, max_tokens=100)
        print(
            f"{again.usage.cached_tokens} tokens from {again.cache.source}, first token after "
            f"{again.timings.ttft_ms:.1f} ms, same text: {again.text == unbroken.text}"
        )
        print(node.tree().render())


if __name__ == "__main__":
    main()
