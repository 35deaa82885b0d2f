"""A slice of the kill points; all of them by ``make killpoints``."""

from __future__ import annotations

from pathlib import Path

import pytest

from cache.answers import RAM
from tests.support import killpoints
from tests.support.killpoints import KillRig, Point, check, run_points

pytestmark = pytest.mark.fault


def test_no_process_that_dies_at_any_step_leaves_a_torn_row_a_lease_or_a_budget_broken() -> None:
    died = run_points(40, seed=3)
    assert sum(died.values()) == 40
    assert {"cache_meta", "writer", "model:m"} <= set(died)
    assert died["nobody"] < 15


def test_full_tiers_do_not_copy_the_same_rows_for_ever() -> None:
    """Found by this point: two full tiers of different kinds evicted each other's copies."""
    run_points(1, seed=1, first=134)


def test_a_check_that_finds_a_torn_row_says_so(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        rig = KillRig(tmp_path, patch, Point(10_000, 0), disk=8)
        key = rig.save(1, 2)[-1]
        assert check(rig) == 2
        row = rig.meta._index.facts(key)
        assert row is not None
        with open(rig.arena, "r+b") as arena:
            arena.seek((dict(row.tiers)[RAM] or 0) + killpoints.ROW_BYTES - 1)
            arena.write(b"\0")
        with pytest.raises(AssertionError, match="a torn row in RAM"):
            check(rig)


def test_what_a_dead_writer_left_is_counted_before_more_is_written(tmp_path: Path) -> None:
    """A temp file of it is in no account."""
    with pytest.MonkeyPatch.context() as patch:
        rig = KillRig(tmp_path, patch, Point(10_000, 0), disk=2)
        rig.point = Point(rig.operations + 5, 6)  # the fifth from here is the writer's
        rig.save(1, 2)
        assert rig.died == "writer"
        assert rig.tier("disk")["state"] == "closed"
        rig.wait(3.0)
        assert rig.tier("disk")["state"] == "open"
        assert len(rig.files("disk")) == 2
        check(rig)
