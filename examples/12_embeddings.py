"""Vectors of texts: which of some sentences is closest to a question?"""

import tempfile
from array import array

from runtime import Node

SENTENCES = (
    "The small fox liked to run in the forest.",
    "The queen had a golden crown and lived in a castle.",
    "Hello! How are you today?",
)
QUESTIONS = ("a fox in the forest", "the crown of the queen", "Good morning! Are you well?")


def alike(one: array, other: array) -> float:
    """From -1 to 1; the vectors are one unit long."""
    return sum(x * y for x, y in zip(one, other, strict=True))


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as cache_dir,
        Node.start(cache_dir=cache_dir, cache_ram="64MiB") as node,
    ):
        found = node.embed("demo", [*SENTENCES, *QUESTIONS], pooling="mean")
        print(f"{len(found.vectors)} vectors of {found.n_embd} numbers, {found.n_tokens} tokens")
        known, asked = found.vectors[: len(SENTENCES)], found.vectors[len(SENTENCES) :]
        for question, vector in zip(QUESTIONS, asked, strict=True):
            scores = [alike(vector, one) for one in known]
            best = scores.index(max(scores))
            print(f"{question!r}: {SENTENCES[best]} ({scores[best]:.2f})")

        # A vector of each token instead: pooling="none".
        each = node.embed("demo", "a fox in the forest", pooling="none")
        pieces = node.tokenize("demo", "a fox in the forest")
        print(f"{each.rows[0]} tokens, {len(each.of(0))} vectors: {each.rows[0] == len(pieces)}")


if __name__ == "__main__":
    main()
