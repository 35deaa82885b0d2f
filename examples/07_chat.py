"""A chat: messages in the model's own template, in a session, so that only new text is computed."""

import tempfile

from runtime import Node

SYSTEM = "You are a kind storyteller who tells short stories."
QUESTIONS = ("Hello!", "Tell me a story about a fox.", "Thank you!")


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as cache_dir,
        Node.start(cache_dir=cache_dir, cache_ram="64MiB") as node,
    ):
        messages = [{"role": "system", "content": SYSTEM}]
        head = node.apply_chat_template("demo", messages, add_generation_prompt=False)
        print(f"what the model reads first: {head.text!r}")
        read = node.prefill_only("demo", head.tokens)  # before any question
        print(f"prefilled {read.usage.prompt_tokens} tokens")

        for question in QUESTIONS:
            messages.append({"role": "user", "content": question})
            done = node.chat("demo", messages, session="example", max_tokens=60)
            messages.append({"role": "assistant", "content": done.text})
            warm, total = done.usage.cached_tokens, done.usage.prompt_tokens
            print(f"[{warm} of {total} tokens warm] {question}\n  {done.text}")
        node.end_session("demo", "example")


if __name__ == "__main__":
    main()
