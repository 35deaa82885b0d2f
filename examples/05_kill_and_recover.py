"""Kill the model's process with SIGKILL, then the cache index, and carry on as if nothing was."""

import os
import signal
import tempfile

from runtime import Node
from runtime.embedded.corpus import long_prompt


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as cache_dir,
        Node.start(cache_dir=cache_dir, cache_ram="64MiB") as node,
    ):
        prompt = long_prompt(600, seed=1)
        cold = node.complete("demo", prompt, max_tokens=20)
        print(f"cold: first token after {cold.timings.ttft_ms:.1f} ms")
        for victim in ("model:demo", "cache_meta"):
            before = node.tree().find(victim)
            if before is None or before.pid is None:
                raise SystemExit(f"{victim} has no process")
            os.kill(before.pid, signal.SIGKILL)
            again = node.complete("demo", prompt, max_tokens=20)
            print(f"killed {victim} (pid {before.pid}); the tree healed:")
            print(
                f"  {again.usage.cached_tokens} tokens from {again.cache.source}, first token "
                f"after {again.timings.ttft_ms:.1f} ms, same text: {again.text == cold.text}"
            )
        print(node.tree().render())


if __name__ == "__main__":
    main()
