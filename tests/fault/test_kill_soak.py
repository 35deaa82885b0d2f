"""A slice of the kill soak; the whole of it is ``python -m tests.support.soak``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.soak import run
from tests.support.soak_plan import BUCKETS, FORGETS, Pacer, bucket_of, plan

pytestmark = pytest.mark.fault


def test_a_plan_is_a_function_of_its_seed() -> None:
    assert plan(7, 40) == plan(7, 60)[:40]
    assert plan(7, 40) != plan(8, 40)


def test_the_pacer_keeps_every_supervisor_below_its_intensity() -> None:
    pacer, now = Pacer(), 0.0
    counted: dict[str, list[float]] = {bucket: [] for bucket in BUCKETS}
    for kill in plan(3, 300):
        now += pacer.wait_s(kill.victim, now)
        pacer.note(kill.victim, now)
        bucket = bucket_of(kill.victim)
        most, within_s = BUCKETS[bucket]
        counted[bucket].append(now)
        assert sum(1 for one in counted[bucket] if now - one < within_s - 1e-6) <= most
        for forgotten in FORGETS.get(kill.victim, ()):
            counted[forgotten].clear()
        now += 0.1


def test_random_kills_while_requests_run(tmp_path: Path) -> None:
    log = tmp_path / "soak.jsonl"
    # How soon it heals is for the whole soak on a quiet machine; here, that it does.
    soak = run(seed=1, kills=25, folder=tmp_path, log=log, seconds_limit=20, patience=15.0)
    # How many is a matter of speed; that both kinds come through the kills is not.
    assert soak.load.ends["complete: ok"] > 0
    assert soak.load.ends["stream: ok"] + soak.load.ends["long stream: ok"] > 0
