"""Long prompts in the style of the embedded model's training text, for demos and measurements."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

# After a sentence, but not after direct speech whose sentence continues.
_SENTENCE_END = re.compile(r'(?<=[.!?])"?(?=\s+["A-Z]|\s*$)')
_CHAPTER = re.compile(r"\n\nChapter \d+\n\n")


def long_prompt(n_words: int, seed: int) -> str:
    """A story that ends with a sentence and has about ``n_words`` words, never more.

    ``seed`` orders the chapters. The embedded model needs 1.33 tokens a word for it (measured), so
    190, 770 and 2,310 words make about 256, 1,024 and 3,072 tokens. Raises ValueError for more
    words than the packaged book has (about 4,500).
    """
    book = Path(__file__).with_name("book.txt").read_text(encoding="utf-8").strip()
    title, first, *others = _CHAPTER.split(book)
    Random(f"long prompt/{seed}").shuffle(others)
    ordered = [first, *others]
    text = title + "".join(f"\n\nChapter {i}\n\n{part}" for i, part in enumerate(ordered, 1))
    if n_words > len(text.split()):
        raise ValueError(f"n_words: {n_words}, and the book has {len(text.split())} words")
    kept = last = count = 0
    for match in _SENTENCE_END.finditer(text):
        count += len(text[last : match.end()].split())
        last = match.end()
        if count > n_words:
            break
        kept = last
    return text[:kept] if kept else " ".join(text.split()[:n_words])
