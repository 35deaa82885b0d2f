"""Guess several tokens and check them in one step: faster where text repeats, and the same text."""

import tempfile

from runtime import Node

REFRAIN = 'root ::= (" The fox ran over the hill and the owl flew after it."){8}'
"""A song that repeats itself, as programs, tables and quotations do."""


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as cache_dir,
        Node.start(cache_dir=cache_dir, cache_ram="64MiB") as node,
    ):
        # By request: guesses are the tokens that followed the same text before.
        options = {"grammar": REFRAIN, "max_tokens": 200}
        plain = node.complete("demo", "A song:", **options)
        guessed = node.complete("demo", "A song:", **options, speculation="ngram")
        usage = guessed.usage
        print(
            f"{usage.accepted_tokens} of {usage.drafted_tokens} guesses were right: "
            f"{usage.completion_tokens} tokens in {usage.completion_tokens - usage.accepted_tokens}"
            " steps"
        )
        print(f"same text: {guessed.text == plain.text}")

        # By hand: one model guesses, another one, perhaps on another node, checks the guesses.
        prefix = node.tokenize("demo", "Once upon a time there was")
        guesses = node.draft_tokens("demo", prefix, 6)
        verdict = node.verify("demo", prefix, guesses)
        print(f"of its own {len(guesses)} guesses it accepts {verdict.accepted}")
        doubtful = [*guesses[:2], *node.tokenize("demo", " of course", add_special=False)]
        verdict = node.verify("demo", prefix, doubtful)
        kept = node.detokenize("demo", [*guesses[: verdict.accepted]])
        then = "" if verdict.next_token is None else node.detokenize("demo", [verdict.next_token])
        print(f"of other guesses it accepts {verdict.accepted}: {kept!r}; the next is {then!r}")


if __name__ == "__main__":
    main()
