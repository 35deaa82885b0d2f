"""Counters of the index. They only grow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cache.answers import RefusalReason, Snapshot, TierUse
from cache.rows import SaveReason


@dataclass(slots=True)
class Counters:
    """Mutable counts; ``snapshot`` freezes them together with the present sizes."""

    hits_exact: int = 0
    hits_partial: int = 0
    hits_resume: int = 0
    misses: int = 0
    adopted: int = 0
    persisted: int = 0
    duplicate_dropped: int = 0
    saves: dict[str, int] = field(
        default_factory=lambda: {reason.name.lower(): 0 for reason in SaveReason}
    )
    refused: dict[str, int] = field(
        default_factory=lambda: {reason.value: 0 for reason in RefusalReason}
    )

    def count_lookup(self, matched: int, wanted: int) -> None:
        if not matched:
            self.misses += 1
        elif matched == wanted:
            self.hits_exact += 1
        else:
            self.hits_partial += 1

    def count_save(self, reason: SaveReason) -> None:
        self.saves[reason.name.lower()] += 1

    def count_refusal(self, reason: RefusalReason) -> None:
        self.refused[reason.value] += 1
        if reason in (RefusalReason.ALREADY_PRESENT, RefusalReason.WRITE_IN_PROGRESS):
            self.duplicate_dropped += 1

    def snapshot(
        self,
        *,
        rows: int,
        leases: int,
        reservations: int,
        evictions: int,
        lost: int,
        tails_removed: int,
        tiers: Mapping[str, TierUse],
    ) -> Snapshot:
        return Snapshot(
            rows=rows,
            leases=leases,
            reservations=reservations,
            hits_exact=self.hits_exact,
            hits_partial=self.hits_partial,
            hits_resume=self.hits_resume,
            misses=self.misses,
            saves=dict(self.saves),
            evictions=evictions,
            lost=lost,
            tails_removed=tails_removed,
            adopted=self.adopted,
            persisted=self.persisted,
            duplicate_dropped=self.duplicate_dropped,
            refused=dict(self.refused),
            tiers=dict(tiers),
        )
