"""Restoring must be faster than computing: measured speeds, and which rows are read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.kv.restore_cost import Average, Piece, Rates
from cache.errors import InvalidPolicy
from cache.policy import RestorePolicy

pytestmark = pytest.mark.pure

EAGER = RestorePolicy(min_samples=1, min_saved_s=0.0001, probe_every=1_000_000)


def learned(policy: RestorePolicy = EAGER, *, token_s: float, byte_s: dict[str, float]) -> Rates:
    rates = Rates(policy)
    for _ in range(policy.min_samples):
        rates.record_step(100, 100 * token_s)
        for tier, seconds in byte_s.items():
            rates.record_restore([Piece(tier, 1000, 64)], 1000 * seconds)
    return rates


tiers = st.sampled_from(["ram", "disk"])
pieces = st.lists(st.builds(Piece, tiers, st.integers(1, 10_000), st.integers(1, 64)), max_size=20)


@given(pieces, st.floats(1e-5, 1e-2), st.floats(1e-9, 1e-4), st.floats(1e-9, 1e-4))
def test_the_rows_that_are_read_are_the_fastest_choice(
    stored: list[Piece], token_s: float, ram_s: float, disk_s: float
) -> None:
    byte_s = {"ram": ram_s, "disk": disk_s}
    rates = learned(token_s=token_s, byte_s=byte_s)

    def seconds(n: int) -> float:
        read = sum(byte_s[one.tier] * one.n_bytes for one in stored[:n])
        return read + sum(token_s * one.n_tokens for one in stored[n:])

    chosen = rates.worth_restoring(stored)
    assert 0 <= chosen <= len(stored)
    fastest = min(seconds(n) for n in range(len(stored) + 1))
    assert seconds(chosen) <= fastest + EAGER.min_saved_s * 1.01 + 1e-9


def test_everything_is_restored_while_nothing_is_known() -> None:
    stored = [Piece("disk", 10**9, 64)] * 3
    assert Rates().worth_restoring(stored) == 3
    few = Rates()
    few.record_step(100, 0.001)
    few.record_restore(stored, 100.0)
    assert few.worth_restoring(stored) == 3  # one sample may be a hiccup
    few.record_restore(stored, 100.0)
    few.record_restore(stored, 100.0)
    assert few.worth_restoring(stored) == 0


def test_a_slow_disk_behind_fast_memory_is_computed_instead() -> None:
    rates = learned(token_s=1e-4, byte_s={"ram": 1e-9, "disk": 1e-3})
    stored = [Piece("ram", 1000, 64)] * 2 + [Piece("disk", 1000, 64)] * 2
    assert rates.worth_restoring(stored) == 2
    assert rates.worth_restoring(stored[2:]) == 0
    assert rates.worth_restoring(stored[:2]) == 2


def test_what_saves_next_to_nothing_is_not_decided_at_all() -> None:
    policy = RestorePolicy(min_samples=1, min_saved_s=0.005)
    rates = learned(policy, token_s=1e-6, byte_s={"ram": 2e-9})
    assert rates.worth_restoring([Piece("ram", 100_000, 64)]) == 1


def test_a_slow_tier_is_tried_again_once_in_a_while() -> None:
    policy = RestorePolicy(min_samples=1, min_saved_s=0.001, probe_every=4)
    rates = learned(policy, token_s=1e-6, byte_s={"disk": 1e-3})
    stored = [Piece("disk", 1000, 64)]
    assert [rates.worth_restoring(stored) for _ in range(8)] == [0, 0, 0, 1, 0, 0, 0, 1]
    for _ in range(40):
        rates.record_restore(stored, 1e-6)  # it is quick again
    assert rates.worth_restoring(stored) == 1


def test_small_steps_and_mixed_tiers_are_not_measured() -> None:
    rates = Rates(EAGER)
    rates.record_step(1, 1.0)
    rates.record_restore([Piece("ram", 10, 64), Piece("disk", 10, 64)], 1.0)
    rates.record_restore([Piece("ram", 10, 1)], 1.0)
    assert rates.figures() == {}


def test_where_some_rows_were_in_ram_the_others_are_measured_by_what_is_left() -> None:
    rates = Rates(RestorePolicy(min_samples=1))
    mixed = [Piece("ram", 1 << 20, 64), Piece("disk", 1 << 20, 64)]
    rates.record_restore(mixed, 1.0)
    assert rates.figures() == {}
    rates.record_restore([Piece("ram", 1 << 20, 64)], 0.5)
    rates.record_restore(mixed, 1.0)
    assert rates.figures() == {"restore_mib_per_s_ram": 2.0, "restore_mib_per_s_disk": 2.0}
    rates.record_restore([*mixed, Piece("disk2", 1 << 20, 64)], 9.0)
    assert "restore_mib_per_s_disk2" not in rates.figures()


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=50))
def test_an_average_stays_within_what_it_saw(values: list[float]) -> None:
    average = Average(0.2)
    for value in values:
        average.add(value)
    assert min(values) - 1e-6 <= average.value <= max(values) + 1e-6


def test_a_policy_that_makes_no_sense_stops_the_boot() -> None:
    with pytest.raises(InvalidPolicy, match="probe_every"):
        RestorePolicy(probe_every=0)
    with pytest.raises(InvalidPolicy, match="weight"):
        RestorePolicy(weight=0)
