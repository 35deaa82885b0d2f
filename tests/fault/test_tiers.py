"""Disks that fill up, break, hang, vanish and come back, under a real index and real files."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from actors import messages as m
from actors.storage.tier_directory import LONGEST_PAUSE_S, TierDirectory
from actors.storage.write_behind import STALLED_S
from cache.filesystem import PosixFilesystem, lock_directory
from cache.keys import child_key
from cache.publish import row_path
from cache.tokens import pack
from supervision import SHUTDOWN, Down
from tests.support.tier_rig import ROOT, ROW_BYTES, Rig, stored_bytes, up

pytestmark = pytest.mark.fault

Start = Callable[..., Rig]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    return lambda **tiers: Rig(tmp_path, monkeypatch, **tiers)


# ── write-behind, promotion, demotion ────────────────────────────────────────────────────────


def test_a_row_is_written_once_to_each_kind_of_tier(start: Start) -> None:
    rig = start(ram_file=64, disk=64, disk2=64)
    keys = {key for number in range(20) for key in rig.save(number, number + 100)}
    assert rig.files("ram_file") == keys
    assert rig.files("disk") | rig.files("disk2") == keys
    assert not rig.files("disk") & rig.files("disk2")
    assert min(len(rig.files("disk")), len(rig.files("disk2"))) > 8  # of 40, by their hashes
    assert rig.status()["all_persisted"]
    assert rig.status()["lost"] == 0


def test_several_disks_are_filled_in_proportion_to_their_budgets(start: Start) -> None:
    rig = start(ram_rows=300, disk=300, disk2=900)
    for number in range(200):
        rig.save(number)
    assert 30 <= len(rig.files("disk")) <= 70  # 50 of 200 expected


def test_a_hit_on_disk_brings_the_row_back_into_ram(start: Start) -> None:
    rig = start(ram_rows=8, disk=64)
    rig.save(1, 2, 3)
    for number in range(10, 18):  # pushes the first prompt out
        rig.save(number)
    assert rig.sources(1, 2, 3) == ["disk"] * 3
    rig.run()
    assert rig.sources(1, 2, 3) == ["ram"] * 3
    assert rig.status()["promoted"] == 3
    assert rig.status()["saves"]["cold"] == 11  # a promotion is no save


def test_a_promotion_never_evicts_hotter_rows(start: Start) -> None:
    rig = start(ram_rows=4, disk=64)
    rig.save(1)
    for number in range(10, 14):
        rig.save(number)
    for _ in range(9):
        for number in range(10, 14):
            assert rig.sources(number) == ["ram"]
    assert rig.sources(1) == ["disk"]
    rig.run()
    assert rig.sources(1) == ["disk"]
    assert rig.status()["promoted"] == 0
    assert rig.status()["not_promoted"] >= 1
    assert [rig.sources(number) for number in range(10, 14)] == [["ram"]] * 4


def test_a_rotten_file_is_quarantined_when_it_is_promoted_and_can_be_saved_again(
    start: Start,
) -> None:
    rig = start(ram_rows=4, disk=64)
    (key,) = rig.save(1)
    for number in range(10, 14):
        rig.save(number)
    path = row_path(rig.roots["disk"], key)
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    assert rig.sources(1) == ["disk"]
    rig.run()
    assert rig.sources(1) == []
    assert rig.tier("disk")["state"] == "open"
    rig.save(1)
    assert key in rig.files("disk")
    assert rig.sources(1) == ["ram"]


def test_rows_that_a_slower_tier_holds_are_evicted_before_those_that_would_be_lost(
    start: Start,
) -> None:
    rig = start(ram_rows=8, disk=64)
    for number in range(4):
        rig.save(number)
    rig.hung.add("disk")
    for number in range(4, 12):  # the last four push four out while nothing can be written
        rig.save(number)
        rig.look_up(0)  # a row on disk is the hottest
        rig.run()
    assert rig.status()["lost"] == 0
    assert [rig.sources(number) for number in range(4)] == [["disk"]] * 4
    rig.hung.clear()
    rig.run()
    assert all(rig.sources(number) for number in range(12))


def test_rows_that_no_slower_tier_got_in_time_are_counted_as_lost(start: Start) -> None:
    rig = start(ram_rows=8, disk=64)
    rig.hung.add("disk")
    for number in range(20):
        rig.save(number)
    status = rig.status()
    stored = sum(bool(rig.sources(number)) for number in range(20))
    refused = sum(status["refused"].values())
    assert status["lost"] > 0
    assert stored + status["lost"] + refused == 20


def test_rows_evicted_from_ram_file_are_on_disk(start: Start) -> None:
    rig = start(ram_rows=4, ram_file=6, disk=64)
    for number in range(20):
        rig.save(number)
    assert len(rig.files("ram_file")) == 6
    assert [bool(rig.sources(number)) for number in range(20)] == [True] * 20
    assert rig.status()["lost"] == 0


def test_rows_of_ram_file_reach_a_disk_that_lacked_them(start: Start) -> None:
    start(ram_file=64).save(1, 2)
    rig = start(ram_rows=64, ram_file=64, disk=64)
    os.unlink(rig.arena)
    rig = start(ram_file=64, disk=64)
    rig.run()
    assert rig.files("disk") == rig.files("ram_file")
    assert len(rig.files("disk")) == 2


# ── budgets ──────────────────────────────────────────────────────────────────────────────────


def test_a_directory_never_holds_more_than_its_budget_not_even_for_an_instant(
    start: Start,
) -> None:
    rig = start(ram_rows=6, ram_file=5, disk=7, disk2=9)  # the rig's file systems check each call
    for number in range(60):
        rig.save(number, number + 1000, run=number % 3 == 0)
        rig.sources(max(0, number - 7))
    rig.run()
    for name in rig.roots:
        assert 0 < stored_bytes(rig.roots[name]) <= rig.budgets[name]
        assert rig.tier(name)["used_bytes"] == stored_bytes(rig.roots[name])


def test_a_budget_that_was_shrunk_holds_after_the_rescan(start: Start) -> None:
    rig = start(disk=20)
    for number in range(20):
        rig.save(number)
    os.unlink(rig.arena)
    rig = start(disk=5)
    assert stored_bytes(rig.roots["disk"]) <= 5 * ROW_BYTES
    assert rig.tier("disk")["rows"] == len(rig.files("disk")) == 5


def test_a_new_file_waits_for_the_removal_of_those_it_displaces(start: Start) -> None:
    rig = start(ram_rows=8, disk=4)
    for number in range(4):
        rig.save(number)
    rig.hung.add("tier:disk")
    (key,) = rig.save(9)
    assert key not in rig.files("disk")
    assert rig.tier("disk")["being_removed"] == 1
    rig.hung.clear()
    rig.run()
    assert key in rig.files("disk")


# ── disks that fail ──────────────────────────────────────────────────────────────────────────

SICK = [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT]


@pytest.mark.parametrize("error", SICK, ids=errno.errorcode.get)
def test_a_disk_that_refuses_costs_one_warning_and_comes_back_by_itself(
    start: Start, error: int
) -> None:
    rig = start(disk=200)
    rig.save(1, 2)
    rig.disks["disk"].write_error = error
    for number in range(10, 30):
        rig.save(number)
        rig.wait(1)
    assert len(rig.log.warnings) == 1
    assert os.strerror(error) in rig.log.warnings[0]
    assert "disk" in rig.log.warnings[0]
    assert rig.tier("disk")["state"] == "closed"
    assert rig.sources(15) == ["ram"]  # the node continues with the tiers it has
    assert rig.sources(1, 2) == ["ram", "ram"]
    rig.disks["disk"].write_error = None
    rig.wait(2 * LONGEST_PAUSE_S)
    assert rig.tier("disk")["state"] == "open"
    assert len(rig.files("disk")) == 22
    assert rig.status()["all_persisted"]
    assert len(rig.log.warnings) == 1
    assert len(rig.log.infos) == 1


def test_rows_on_a_disk_that_only_refuses_writes_are_still_read(start: Start) -> None:
    rig = start(ram_rows=8, disk=64)
    for number in range(1, 10):
        rig.save(number)
    rig.disks["disk"].write_error = errno.EROFS
    rig.save(20)
    assert rig.tier("disk")["state"] == "closed"
    assert rig.sources(1) == ["disk"]
    rig.run()
    assert rig.sources(1) == ["ram"]


def test_a_disk_is_tried_again_at_growing_pauses(start: Start) -> None:
    rig = start(disk=64)
    rig.disks["disk"].write_error = errno.EIO
    rig.save(1)
    rig.wait(600)
    assert 5 <= rig.disks["disk"].probes <= 600 / LONGEST_PAUSE_S + 10
    assert rig.keepers["disk"].wait_s() is not None


def test_a_disk_that_takes_the_probe_but_not_the_rows_is_tried_less_and_less(start: Start) -> None:
    rig = start(disk=64)
    lane = rig.lanes["disk"]
    lane._files = type(rig.disks["disk"])(rig.roots["disk"], 1 << 40)
    lane._files.write_error = errno.ENOSPC  # type: ignore[attr-defined]
    rig.save(1)
    rig.wait(600)
    assert rig.tier("disk")["outages"] <= 20
    assert len(rig.log.warnings) == 1


def test_rows_for_a_broken_disk_go_to_the_others(start: Start) -> None:
    rig = start(disk=64, disk2=64)
    rig.disks["disk"].write_error = errno.EIO
    keys = {key for number in range(30) for key in rig.save(number)}
    assert rig.files("disk2") == keys
    assert len(rig.log.warnings) == 1
    rig.disks["disk"].write_error = None
    rig.wait(30)
    rig.save(*range(100, 120))
    assert rig.files("disk")


def test_a_disk_that_hangs_gets_no_rows_and_the_other_continues(start: Start) -> None:
    rig = start(disk=64, disk2=64)
    rig.hung |= {"disk", "tier:disk"}
    keys = {key for number in range(20) for key in rig.save(number)}
    assert rig.tier("disk")["state"] == "open"
    rig.wait(STALLED_S + 10)
    assert rig.tier("disk")["state"] == "closed"
    assert rig.tier("disk")["trouble"].startswith("no write has ended")
    assert len(rig.log.warnings) == 1
    assert len(rig.files("disk2")) + rig.tier("disk")["being_written"] == len(keys)
    rig.hung.clear()
    rig.run()
    rig.wait(2)
    assert rig.tier("disk")["state"] == "open"
    assert rig.files("disk") | rig.files("disk2") == keys


# ── directories that vanish ──────────────────────────────────────────────────────────────────


def test_a_directory_that_was_deleted_is_made_again(start: Start) -> None:
    rig = start(disk=64)
    rig.save(1)
    shutil.rmtree(rig.roots["disk"])
    (key,) = rig.save(2)
    assert rig.tier("disk")["state"] == "gone"
    assert rig.tier("disk")["rows"] == 0
    assert len(rig.log.warnings) == 1
    rig.wait(2)
    assert rig.tier("disk")["state"] == "open"
    assert key in rig.files("disk")
    assert len(rig.files("disk")) == 2  # the first row still lay in RAM


def test_a_directory_that_comes_back_brings_its_rows(start: Start) -> None:
    rig = start(ram_rows=4, disk=64)
    rig.save(1, 2)
    root, away = rig.roots["disk"], rig.roots["disk"].with_name("away")
    root.rename(away)
    root.write_text("something else")
    for number in range(10, 16):
        rig.save(number)
    assert rig.sources(1, 2) == []  # no request is sent to a tier that is not there
    assert rig.tier("disk")["state"] == "gone"
    root.unlink()
    away.rename(root)
    rig.wait(LONGEST_PAUSE_S)
    assert rig.sources(1, 2) == ["disk", "disk"]
    assert len(rig.log.warnings) == 1


def test_nothing_is_written_to_the_bare_mount_point_of_a_disk_that_was_taken_out(
    start: Start,
) -> None:
    rig = start(disk=64)
    rig.save(1)
    shutil.rmtree(rig.roots["disk"])
    rig.disks["disk"].other_device = True  # what lies there now is another file system
    rig.save(2)
    rig.wait(10)
    assert not rig.roots["disk"].exists()
    assert rig.tier("disk")["state"] == "gone"
    assert "not mounted" in rig.tier("disk")["trouble"]
    rig.disks["disk"].other_device = False
    rig.wait(LONGEST_PAUSE_S)
    assert len(rig.files("disk")) == 2


def test_a_directory_that_is_gone_at_the_start_of_a_tier_does_not_stop_the_others(
    start: Start,
) -> None:
    rig = start(disk=64, disk2=64)
    shutil.rmtree(rig.roots["disk"])
    rig.disks["disk"].other_device = True
    rig.keepers["disk"].start()
    keys = {key for number in range(10) for key in rig.save(number)}
    assert rig.files("disk2") == keys


def test_a_directory_that_another_node_took_meanwhile_is_left_to_it(
    start: Start, tmp_path: Path
) -> None:
    rig = start(disk=64)
    root = rig.roots["disk"]
    fd = lock_directory(str(root.parent))
    keeper = TierDirectory(
        "disk",
        str(root),
        0,
        PosixFilesystem(),
        rig.report,
        clock=lambda: rig.now,
        lock_inode=os.fstat(fd).st_ino,
    )
    rig.keepers["disk"] = keeper
    keeper.start()
    assert keeper.is_open
    shutil.rmtree(root.parent)
    root.mkdir(parents=True)  # another node comes first
    other = lock_directory(str(root.parent))
    rig.save(1)
    rig.report(m.CopyFailed(b"k" * 32, "disk", "ram", "gone", False, "disk"))
    rig.run()
    rig.wait(10)
    assert rig.tier("disk")["state"] == "closed"
    assert "another node uses it" in rig.tier("disk")["trouble"]
    os.close(other)
    rig.wait(LONGEST_PAUSE_S)
    assert rig.tier("disk")["state"] == "open"
    with pytest.raises(BlockingIOError):  # and now it is this node's again
        lock_directory(str(root.parent))
    keeper.close()
    os.close(fd)


def test_a_writer_that_stops_gets_all_that_waits_and_then_the_end_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, monkeypatch, ram_rows=64, disk=64)
    rig.hung.add("disk")  # what was ordered before lies in the writer's queue
    rig.save(*range(1, 50))
    ordered = sum(isinstance(order, m.CopyRow) for _, order in rig.queue)
    assert 0 < ordered < 49
    rig.report(m.WriterStops(1))
    assert m.NoMoreCopies() not in rig.replies
    rig.hung.clear()
    rig.run()  # and now the rest comes to the address of the writer, as it makes room
    while rig.replies and rig.replies[-1] != m.NoMoreCopies():
        order = next(one for one in rig.replies if isinstance(one, m.CopyRow))
        rig.replies.remove(order)
        (answer,) = rig.lanes["disk"].write([order])
        rig.report(answer)
        rig.run()
    assert [type(one) for one in rig.replies] == [m.NoMoreCopies]
    assert len(rig.files("disk")) == 49


def test_a_writer_that_restarts_gets_no_more_than_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, monkeypatch, ram_rows=64, disk=64)
    rig.meta.directory["models"] = rig.meta.directory["writer"]  # an entry that is up
    rig.hung.add("disk")
    rig.save(*range(1, 50))
    rig.report(m.WriterStops(1))
    assert rig.replies == [m.NoMoreCopies()]


def test_rows_of_a_model_that_is_stopping_are_taken_until_it_has_ended(start: Start) -> None:
    rig = start(disk=64)
    child = rig.holder.partition("#")[0]
    change(rig, child, "up")
    tokens = pack(range(64))
    key, other = child_key(ROOT, tokens), child_key(ROOT, tokens[4:])
    wanted = (
        m.RowWanted(key, ROOT, 0, tokens, ROW_BYTES),
        m.RowWanted(other, ROOT, 0, tokens[4:], ROW_BYTES - 4),
    )
    rig.report(m.ReserveRows("ref", rig.holder, ROOT, 1, wanted))
    granted = dict(rig.replies.pop().offsets)
    assert change(rig, child, "stopping") == [child]
    assert rig.status()["reservations"] == 2
    rig.report(m.WriterStops(1))
    assert rig.replies == []  # more may come
    rig._fill(wanted[0], granted[key])
    rig.report(m.RowsWritten(rig.holder, (key,), ()))
    assert [one.key for one in rig.replies if isinstance(one, m.CopyRow)] == [key]
    rig.report(m.RowCopied(key, "disk"))
    change(rig, child, "down")
    rig.meta.handle_down(Down("ref", child, 1, SHUTDOWN))
    assert rig.replies[-1] == m.NoMoreCopies()
    assert rig.status()["reservations"] == 0


@pytest.mark.parametrize("by", ["the end of the writer", "the end of the index"])
def test_a_stop_that_was_too_short_logs_how_many_rows_were_not_written(
    start: Start, by: str
) -> None:
    rig = start(disk=256, ram_rows=512)
    rig.hung.add("disk")
    rig.save(*range(100))
    rig.report(m.WriterStops(1))
    change(rig, "writer", "stopping")
    if by == "the end of the writer":
        change(rig, "writer", "down")
        rig.meta.handle_down(Down("ref", "writer", 1, SHUTDOWN))
    rig.meta.terminate(SHUTDOWN)
    (line,) = rig.log.warnings
    assert line.startswith("100 copies of rows were not written")


def test_a_stop_after_which_all_is_in_files_logs_nothing(start: Start) -> None:
    rig = start(disk=64)
    rig.save(1, 2, 3)
    rig.meta.terminate(SHUTDOWN)
    assert rig.log.warnings == []


def change(rig: Rig, child: str, state: str) -> list[str]:
    """Let the directory have news; the children that cache_meta began to monitor."""
    watched: list[str] = []
    rig.meta.monitor = lambda one: watched.append(one) or "ref"  # type: ignore[method-assign]
    entry = replace(up(child), state=state)
    is_news = state != "down"  # one that was stopping was not up before
    rig.meta.directory[child] = entry
    if is_news:
        rig.meta.directory_changed((entry,))
    return watched
