"""A slice of the kill points; all of them by ``make killpoints``."""

from __future__ import annotations

from pathlib import Path

import pytest

from cache.answers import RAM
from cache.keys import child_key
from cache.tokens import pack
from tests.support import killpoints
from tests.support.killpoints import KillRig, Point, check, run_points
from tests.support.tier_rig import block

pytestmark = pytest.mark.fault


def test_no_process_killed_at_any_step_leaves_a_torn_row_a_lease_or_a_budget_broken() -> None:
    died = run_points(40, seed=3)
    assert sum(died.values()) == 40
    assert {"cache_meta", "writer", "model:m"} <= set(died)
    assert died["none"] < 15


def test_full_tiers_do_not_copy_the_same_rows_endlessly() -> None:
    """Found by this point: two full tiers of different kinds evicted each other's copies."""
    run_points(1, seed=1, first=134)


def test_a_check_reports_a_torn_row(tmp_path: Path) -> None:
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


class Watched(KillRig):
    """Records at the kill whether the tail or the longer row is where the tail was."""

    places: tuple[bytes, bytes] | None = None

    def restart(self, role: str) -> None:
        if self.places is not None and role == self.died:
            for stored in (self.files("disk"), {row.key for row in self.found_in_arena()}):
                assert stored & set(self.places), "the tail went before the longer row was there"
        super().restart(role)


@pytest.mark.parametrize("role", ["model:m", "cache_meta", "writer", "tier:disk"])
def test_at_no_step_of_a_removal_both_the_tail_and_the_longer_row_are_gone(
    tmp_path: Path, role: str
) -> None:
    """Afterwards only the longer row is there, in RAM and on disk, and again after a start."""
    deaths = 0
    for operation in range(1, 6):
        for step in (0, 1, 2, 4, 6, 8, 40):
            home = tmp_path / f"{operation}-{step}"
            home.mkdir()
            with pytest.MonkeyPatch.context() as patch:
                rig = Watched(home, patch, Point(10_000, 0), disk=8)
                tail = rig.save(1, 2, tail=20)[-1]
                assert tail in rig.files("disk")
                rig.places = (tail, child_key(rig.save(1)[0], pack(block(2))))
                rig.point = Point(rig.by_role[role] + operation, step, role)
                rig._save([1, 2])
                deaths += rig.died == role
                rig.places = None
                rig.died = "none left"
                rig.settle()
                longer = rig.save(1, 2)[-1]  # if its writer died, it is written now
                rig.settle()
                check(rig)
                facts = rig.meta._index.facts(longer)
                assert facts is not None
                assert {name for name, _ in facts.tiers} == {RAM, "disk"}
                assert rig.meta._index.facts(tail) is None
                assert rig.files("disk") == {longer, facts.parent}
    assert deaths >= 7


@pytest.mark.parametrize("role", ["cache_meta", "tier:disk"])
def test_a_start_removes_the_tails_that_were_left_beside_longer_rows(
    tmp_path: Path, role: str
) -> None:
    """The files of both were there when the processes ended."""
    with pytest.MonkeyPatch.context() as patch:
        rig = KillRig(tmp_path, patch, Point(10_000, 0), disk=8)
        tails = [rig.save(1, 2, tail=n)[-1] for n in (5, 20)]
        kept = {path: path.read_bytes() for path in rig.roots["disk"].rglob("*.kvb")}
        block_key, longer = rig.save(1, 2)
        for path, content in kept.items():
            path.write_bytes(content)
        assert rig.files("disk") == {tails[1], block_key, longer}
        rig.restart(role)
        rig.run()
        assert rig.files("disk") == {block_key, longer}
        check(rig)
