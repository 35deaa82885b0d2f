"""A slice of the kill soak; the whole of it is ``python -m tests.support.soak``."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from native.backend import Logprobs
from tests.support.soak import SoakFailed, run
from tests.support.soak_plan import BUCKETS, FORGETS, Pacer, bucket_of, plan
from tests.support.soak_replies import (
    Known,
    Reply,
    SoakModel,
    difference,
    make_jobs,
    packed,
)

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


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    folder = tmp_path_factory.mktemp("reference")
    return Known.compute(SoakModel(exact="always"), make_jobs(1, 60), folder)


def test_random_kills_while_requests_run(tmp_path: Path, known: Known) -> None:
    log = tmp_path / "soak.jsonl"
    # How soon it heals is for the whole soak on a quiet machine; here, that it does.
    soak = run(1, kills=25, folder=tmp_path, log=log, known=known, seconds_limit=20, patience=15.0)
    # How many is a matter of speed; that both kinds come through the kills is not.
    assert soak.load.ends["complete: ok"] > 0
    assert soak.load.ends["stream: ok"] + soak.load.ends["long stream: ok"] > 0
    assert soak.load.n_compared > 0


def test_a_soak_fails_when_one_bit_of_one_logarithm_differs(tmp_path: Path, known: Known) -> None:
    other = Known(known.model, {job: _flipped(reply) for job, reply in known.replies.items()})
    log = tmp_path / "soak.jsonl"
    with pytest.raises(SoakFailed, match="the logarithms of token 0 differ"):
        run(1, kills=3, folder=tmp_path, log=log, known=other, seconds_limit=20, patience=15.0)


def _flipped(reply: Reply) -> Reply:
    """With another last bit in the first logarithm of its first token."""
    first, *rest = reply.logprobs
    assert first is not None
    return replace(reply, logprobs=(bytes([first[0] ^ 1]) + first[1:], *rest))


# ── what counts as the same reply ───────────────────────────────────────────────────────────────

ROW = packed([Logprobs(-0.5, ((7, -0.5), (8, -1.5)))])[0]
WHOLE = Reply((7, 8), "ab", (ROW, ROW), "length")
BEGINNING = Reply((7,), "a", (ROW,))


def test_a_reply_is_the_known_one_or_a_beginning_of_it() -> None:
    assert difference(WHOLE, WHOLE, may_lack=False) is None
    assert difference(BEGINNING, WHOLE, may_lack=False) is None
    assert difference(Reply(), WHOLE, may_lack=False) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tokens": (7, 9)}, "token 1 is 9, not 8"),
        ({"tokens": (7,), "logprobs": (ROW,)}, "1 tokens, not 2"),
        ({"tokens": (7, 8, 9)}, "3 tokens, not 2"),
        ({"text": "aB"}, "its text"),
        ({"finish_reason": "stop"}, "ended with stop"),
        ({"logprobs": (ROW,)}, "1 of 2 tokens"),
        ({"logprobs": (ROW, None)}, "of token 1 are missing"),
        ({"logprobs": (ROW, ROW[:-1] + bytes([ROW[-1] ^ 1]))}, "of token 1 differ"),
        ({"logprobs": (ROW, ROW[:-16])}, "their number, 5 and 3|their number, 3 and 5"),
    ],
)
def test_everything_else_is_a_difference(changes: dict[str, object], reason: str) -> None:
    found = difference(replace(WHOLE, **changes), WHOLE, may_lack=False)  # type: ignore[arg-type]
    assert found is not None
    assert re.search(reason, found)


def test_logarithms_may_be_missing_only_where_a_process_has_died() -> None:
    lacking = replace(WHOLE, logprobs=(None, ROW))
    assert difference(lacking, WHOLE, may_lack=True) is None
    assert difference(lacking, WHOLE, may_lack=False) is not None


def test_the_text_of_a_beginning_is_a_beginning_of_the_text() -> None:
    assert difference(replace(BEGINNING, text="b"), WHOLE, may_lack=False) is not None


def test_jobs_are_a_function_of_their_seed_and_differ() -> None:
    assert make_jobs(3, 40) == make_jobs(3, 40)
    assert make_jobs(3, 40) != make_jobs(4, 40)
    assert len(set(make_jobs(3, 40))) == 40
