"""Memory-pressure scheduler: in the tree, off by default, and without a pressure source so far.

Owns: its settings. Answers: ``ReportStatus``. A process of its own because a pressure source may
block (a vendor's query tool, a slow file system) and must never hold up the cache.
"""

from __future__ import annotations

from supervision import Worker


class SchedulerActor(Worker):
    """Says that it is off; nothing is evicted by pressure, only by the budgets of the tiers."""

    def status(self) -> dict[str, object]:
        return {"enabled": False, "pressure_source": "noop"}
