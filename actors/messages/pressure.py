"""The pressure scheduler: between callers and the actor ``scheduler``."""

from __future__ import annotations

from actors.messages.pressure_settings import PressureSettings
from supervision.frozen import frozen


@frozen
class SetPressure:
    """Anyone → scheduler: change what is not ``None``, now and until the scheduler restarts.

    Answered by ``PressureSet`` or ``PressureRefused``.
    """

    ref: str
    enabled: bool | None = None
    source: str | None = None
    high: float | None = None
    low: float | None = None
    stall_high: float | None = None
    interval_s: float | None = None
    timeout_s: float | None = None
    min_evict_bytes: int | None = None
    tiers: tuple[str, ...] | None = None


@frozen
class PressureSet:
    """Scheduler → asker: what holds from now on."""

    ref: str
    settings: PressureSettings


@frozen
class PressureRefused:
    """Scheduler → asker: nothing was changed, because of this setting."""

    ref: str
    key: str
    detail: str


@frozen
class CheckPressure:
    """Anyone → scheduler: read the source now and act on it. Answered by ``PressureChecked``."""

    ref: str


@frozen
class PressureChecked:
    """Scheduler → asker: the end of that check.

    ``outcome`` is ``disabled | source_failed | evicted | nothing_to_evict`` or a value of
    ``actors.node.pressure_policy.Verdict``.
    """

    ref: str
    outcome: str
    used: int
    total: int
    rows: int
    returned: int
