"""How exact a reply is in effect, and how the rows of a step are computed for that.

Values only. A row's attention depends on the tokens of its own sequence alone; what is left to
choose is how matrix kernels group the rows of a step.

- Rows of a prompt are computed ``many``, always: then cuts, company and what was stored do not
  change them.
- A row of a reply is computed ``any`` way, which is ``alone`` where it is the only one.
- Tokens of a reply that are computed again are many rows at once. ``alone`` gives them the numbers
  that they had, one after the other, the first time; that is as slow as generating them.
- Every row of a request that is always exact is computed ``many``: whatever else there is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from actors.kv.restore_cost import Speeds
from actors.messages.exact import Exact
from native.backend import Rows

FREE_S: Final = 0.005
FREE_SHARE: Final = 0.02
"""What ``prefix`` may cost, where it was not asked for: seconds, and share of a request."""


def level_of(asked: Exact | None, model: Exact) -> Exact:
    """The level that a request must have, by what was asked for and how the model was loaded."""
    return model if asked is None or model is Exact.ALWAYS else asked


@dataclass(frozen=True, slots=True)
class Work:
    """What a request may have to compute, in tokens."""

    n_prompt: int
    n_reply: int
    n_again: int
    """Of the reply, those that are computed again at most if it is interrupted."""


def level_in_effect(asked: Exact | None, level: Exact, work: Work, speeds: Speeds | None) -> Exact:
    """``prefix`` in place of ``repeat`` where it costs next to nothing; else the level itself.

    Not where a request has asked for ``repeat`` by name.
    """
    if level is not Exact.REPEAT or asked is not None or speeds is None:
        return level
    extra = work.n_again * (speeds.row_s - speeds.prompt_token_s)
    whole = work.n_prompt * speeds.prompt_token_s + work.n_reply * speeds.row_s
    return Exact.PREFIX if extra <= min(FREE_S, FREE_SHARE * whole) else level


def rows_needed(exact: Exact, *, n_kv: int, n_prompt: int, n_tokens: int) -> Rows:
    """How the next rows of a request are computed, of which ``n_kv`` tokens are in the context.

    Of its ``n_tokens`` tokens, those behind the first ``n_prompt`` are its reply.
    """
    if exact is Exact.ALWAYS or n_kv < n_prompt:
        return "many"
    if n_tokens - n_kv <= 1:
        return "any"
    return "alone" if exact is Exact.PREFIX else "many"


def rows_of_step(needed: Iterable[Rows]) -> Rows:
    """How all rows of a step are computed; ``alone`` and ``many`` are never in the same one."""
    kinds = {*needed}
    if "many" in kinds:
        return "many"
    return "alone" if "alone" in kinds else "any"


def is_computed_singly(rows: Rows, n_rows: int) -> bool:
    """Whether each row of a step takes the time of a step of its own."""
    return rows == "alone" or (rows == "any" and n_rows == 1)
