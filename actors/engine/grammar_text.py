"""The grammar of a request: from where it travelled to the sampling parameters."""

from __future__ import annotations

from dataclasses import replace

from actors import messages as m
from actors.messages.errors import InvalidRequest
from actors.messages.payload import PayloadGone, read_payload
from native.errors import InvalidParam
from native.sampling_params import MAX_GRAMMAR_BYTES


def with_grammar(asked: m.Complete) -> m.Complete:
    """The request with its grammar among the sampling parameters.

    InvalidRequest, if it is given twice, too long, gone, or no text.
    """
    if asked.grammar is None:
        return asked
    if asked.sampling.is_constrained:
        raise InvalidRequest("a grammar is given twice: in the request and among its parameters")
    try:
        sampling = replace(asked.sampling, grammar=_text(asked.grammar))
    except InvalidParam as error:
        raise InvalidRequest(str(error)) from error
    return replace(asked, sampling=sampling, grammar=None)


def _text(grammar: m.Grammar) -> str:
    rules, option = grammar.rules, grammar.option
    n_bytes = len(rules) if isinstance(rules, bytes) else rules.n_bytes
    if n_bytes > MAX_GRAMMAR_BYTES:
        raise InvalidRequest(
            f"the rules of {option} have {n_bytes:,} bytes; at most {MAX_GRAMMAR_BYTES:,} are taken"
        )
    try:
        return read_payload(rules).decode("utf-8")
    except PayloadGone as gone:
        raise InvalidRequest(f"the {option} is gone: {gone}") from gone
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the {option} is not UTF-8 at byte {error.start}") from error
