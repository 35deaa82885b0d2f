"""A query and a text as one prompt, for models that score how well they fit.

As llama-server puts them: by the model file's template ``rerank`` if it has one, else the tokens of
both with those of the vocabulary around and between them. Neither text can forge a control token.
"""

from __future__ import annotations

import re

from actors.text.chat_prompt import ControlTokens, Prompt, marked_tokens
from native.backend import RankFormat, Vocabulary

_PLACES = re.compile(r"\{query\}|\{document\}")


def rank_tokens(
    backend: Vocabulary, form: RankFormat, control: ControlTokens, query: str, document: str
) -> list[int]:
    """The tokens of the prompt."""
    if form.template:
        prompt = filled_in(form.template, query, document, control)
        return marked_tokens(backend, prompt, control, [])
    return [
        *form.before,
        *backend.tokenize(query, add_special=False),
        *form.between,
        *backend.tokenize(document, add_special=False),
        *form.after,
    ]


def filled_in(template: str, query: str, document: str, control: ControlTokens) -> Prompt:
    """The template with both texts, and where they hold what would be read as a control token."""
    text, given, at = "", [], 0
    for place in _PLACES.finditer(template):
        text += template[at : place.start()]
        start = len(text)
        text += query if place[0] == "{query}" else document
        given.append((start, len(text)))
        at = place.end()
    text += template[at:]
    forged = []
    for token in control.ids:
        hit = text.find(token)
        while hit >= 0:
            if any(start <= hit < end for start, end in given):
                forged.append((hit, hit + len(token)))
            hit = text.find(token, hit + 1)
    return Prompt(text, tuple(sorted(forged)))
