"""Ids of actors and names of their processes: made and read by the same functions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.messages.actor_ids import (
    actor_of,
    holder_name,
    model_actor_id,
    model_of,
    tier_actor_id,
    tier_of,
)
from cache.answers import Miss, MissReason

pytestmark = pytest.mark.pure

NAMES = st.text(max_size=12)


@given(NAMES, st.integers(min_value=0))
def test_what_an_id_is_made_of_can_be_read_from_it(name: str, incarnation: int) -> None:
    assert model_of(model_actor_id(name)) == tier_of(tier_actor_id(name)) == name
    assert model_of(tier_actor_id(name)) is tier_of(model_actor_id(name)) is None
    for actor_id in (model_actor_id(name), tier_actor_id(name), "writer"):
        assert actor_of(holder_name(actor_id, incarnation)) == actor_id


@pytest.mark.parametrize("actor_id", ["models", "registry", "writer", "ram_tier", "", "m"])
def test_other_actors_have_no_model_and_no_tier(actor_id: str) -> None:
    assert model_of(actor_id) is None
    assert tier_of(actor_id) is None


@pytest.mark.parametrize(
    ("miss", "text"),
    [
        (Miss(MissReason.DIVERGES, 0), "diverges:0"),
        (Miss(MissReason.CACHE_OFF), "cache_off"),
        (Miss(MissReason.NOT_RESTORED, detail="NativeError"), "not_restored:NativeError"),
    ],
    ids=str,
)
def test_a_miss_is_shown_as_its_reason_and_its_position(miss: Miss, text: str) -> None:
    assert str(miss) == text
