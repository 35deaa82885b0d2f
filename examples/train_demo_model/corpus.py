"""The training text: an endless, seeded stream of documents, and long prompts in the same style.

Pure standard library. ``document(seed, index)`` depends on its two numbers only, so the corpus is
the same on every machine and can be made in pieces.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from random import Random

from examples.train_demo_model.tales import chapters, tale, title
from examples.train_demo_model.talk import chat, questions, request, small_talk

#: After a sentence: not after a speech that is followed by its speaker.
_SENTENCE_END = re.compile(r'(?<=[.!?])"?(?=\s+["A-Z])')


def _story(rng: Random) -> str:
    story = tale(rng, None, rng.choice((1, 1, 1, 2)))
    return f"{title(rng, story)}\n\n{story.text}" if rng.random() < 0.12 else story.text


def _asked(text: str, pairs: list[tuple[str, str]]) -> str:
    return text + "".join(f"\n\nQuestion: {q}\nAnswer: {a}" for q, a in pairs)


def _story_and_questions(rng: Random) -> str:
    story = tale(rng, None, rng.choice((1, 1, 2)))
    return _asked(story.text, questions(rng, story, rng.choice((1, 2, 3, 4))))


def _wish(rng: Random) -> str:
    wish, story = request(rng)
    return f"{wish}\n\n{story.text}"


def _several(rng: Random) -> str:
    return "\n\n\n".join(_story(rng) for _ in range(rng.choice((2, 3, 4))))


def _facts(rng: Random) -> str:
    pairs = [small_talk(rng) for _ in range(rng.choice((1, 2, 3)))]
    return "\n\n".join(f"Question: {q}\nAnswer: {a}" for q, a in pairs)


def _book(rng: Random) -> str:
    text, asks = chapters(rng, rng.choice((3, 4, 6, 9, 14)))
    return _asked(text, rng.sample(asks, 2)) if rng.random() < 0.4 else text


#: What a document is, with its weight in the mixture.
MIXTURE = (
    (_story, 34),
    (_story_and_questions, 10),
    (_wish, 7),
    (chat, 36),
    (_several, 4),
    (_facts, 3),
    (_book, 6),
)


def document(seed: int, index: int) -> str:
    """Document ``index`` of the corpus of ``seed``; turns of talk carry the special tokens."""
    rng = Random(f"{seed}/{index}")
    make = rng.choices([m for m, _ in MIXTURE], [w for _, w in MIXTURE])[0]
    return make(rng)


def documents(seed: int, count: int, start: int = 0) -> Iterator[str]:
    """``count`` documents from ``start`` on."""
    return (document(seed, index) for index in range(start, start + count))


def long_prompt(n_words: int, seed: int) -> str:
    """A book that stops at a sentence end with about ``n_words`` words (never more).

    The embedded model needs 1.33 tokens a word for it (measured), so 190, 770 and 2,310 words
    make about 256, 1,024 and 3,072 tokens.
    """
    rng = Random(f"long prompt/{seed}")
    text, _ = chapters(rng, 3 + n_words // 100)
    kept = last = count = 0
    for match in _SENTENCE_END.finditer(text):
        count += len(text[last : match.end()].split())
        last = match.end()
        if count > n_words:
            break
        kept = last
    return text[:kept] if kept else " ".join(text.split()[:n_words])
