"""Output that a program can read: a JSON schema or a grammar decides which tokens are allowed."""

import json
import math
import tempfile

from runtime import Node

SCHEMA = {
    "type": "object",
    "properties": {
        "animal": {"enum": ["fox", "owl", "bear"]},
        "age": {"type": "integer", "minimum": 1, "maximum": 20},
        "friends": {"type": "array", "items": {"enum": ["Pip", "Dot"]}, "maxItems": 2},
    },
    "required": ["animal", "age", "friends"],
    "additionalProperties": False,
}


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as cache_dir,
        Node.start(cache_dir=cache_dir, cache_ram="64MiB") as node,
    ):
        prompt = "There was a small fox. As JSON:"
        for seed in (1, 2):
            done = node.complete(
                "demo", prompt, json_schema=SCHEMA, temperature=0.9, seed=seed, max_tokens=300
            )
            print("an object:", json.loads(done.text))

        asked = [{"role": "user", "content": "A fox has a red tail. What colour is the tail?"}]
        done = node.chat("demo", asked, grammar='root ::= "red" | "blue"', logprobs=3)
        sure = math.exp(sum(one.chosen for one in done.logprobs or () if one))
        print(f"one of two texts: {done.text} (without the grammar, with probability {sure:.3f})")


if __name__ == "__main__":
    main()
