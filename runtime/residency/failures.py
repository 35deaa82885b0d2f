"""Models that did not load: the answer for those who ask, and until when it is given. No clock."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from actors import messages as m
from runtime.residency.policy import Limits, Refusal, Why
from runtime.settings.sizes import format_size

FIRST_PAUSE_S: Final = 1.0
MAX_PAUSE_S: Final = 60.0
"""Until a model that did not load is tried again; the pause doubles from the first to this."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A model that did not load lately."""

    answer: m.ModelNotLoaded
    until: float
    times: int


class Failures:
    """By model; times are monotonic seconds."""

    def __init__(self) -> None:
        self._failed: dict[str, Failed] = {}

    def note(self, model: str, failed: m.ModelNotLoaded, now: float) -> m.ModelNotLoaded:
        """It did not load; returns the answer, with the pause until it may be tried again."""
        before = self._failed.get(model)
        times = 1 if before is None else before.times + 1
        pause_s = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(times - 1, 10))
        answer = replace(failed, retry_after_s=pause_s)
        self._failed[model] = Failed(answer, now + pause_s, times)
        return answer

    def answer(self, model: str, now: float) -> m.ModelNotLoaded | None:
        """For one who asks during the pause; None: it may be tried."""
        failed = self._failed.get(model)
        if failed is None or failed.until <= now:
            return None
        return replace(failed.answer, retry_after_s=failed.until - now)

    def detail(self, model: str) -> str | None:
        """Why it did not load the last time; None: it did, or was not tried."""
        failed = self._failed.get(model)
        return None if failed is None else failed.answer.detail

    def forget(self, model: str) -> None:
        """It has loaded, or is another file now."""
        self._failed.pop(model, None)


def unknown(model: str) -> m.ModelNotLoaded:
    """The answer for a name that no model has."""
    detail = f"no model {model!r} is known; load it first (`load {model}=PATH`)"
    return m.ModelNotLoaded("", m.LoadFailure.UNKNOWN, "ModelUnknown", detail)


def why_no_room(refusal: Refusal, limits: Limits) -> str:
    """Why a wish cannot be, and what to do."""
    wish = refusal.wish
    if refusal.why is Why.PINNED:
        names = ", ".join(refusal.pinned)
        return (
            f"no room for model {wish.model!r}: it needs {format_size(wish.n_bytes)}, and the "
            f"pinned models ({names}) do not leave memory; unpin or unload one, or raise "
            "models_memory or models_max"
        )
    most = min(one for one in (limits.max_bytes, limits.room, wish.n_bytes) if one is not None)
    return (
        f"model {wish.model!r} needs {format_size(wish.n_bytes)} of memory, and "
        f"{format_size(max(0, most))} may be used; lower its n_ctx, or raise models_memory"
    )
