"""What a soak kills, in which order, and how fast it may: values only, all from one seed."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass

MODELS = ("a", "b")
MODEL_IDS = tuple(f"model:{model}" for model in MODELS)
ROOT_CHILDREN = ("cache", "registry", "inflight", "models", "residency", "scheduler")
CACHE_CHILDREN = ("cache_meta", "ram_tier", "tier:disk", "writer")
STATIC_IDS = (*ROOT_CHILDREN, *CACHE_CHILDREN)
NODE_PARTS = ("root", "admin")
"""Their death restarts the node."""
HOST = "host"
"""The host process of a second node."""

MARGIN = 1
"""Kills below a supervisor's intensity: a death of its own making has room, too."""
BUCKETS: dict[str, tuple[int, float]] = {
    "launcher": (5 - MARGIN, 61.0),
    "root": (5 - MARGIN, 31.0),
    "cache": (5 - MARGIN, 31.0),
    **dict.fromkeys(MODEL_IDS, (5 - MARGIN, 31.0)),
    HOST: (1, 5.0),
}
"""Supervisor (or child of a dynamic one) → kills, within seconds: the node's own intensities."""
ROUND = {"launcher": 2, "root": 4, "cache": 4, **dict.fromkeys(MODEL_IDS, 4), HOST: 1}
"""Kills per round; in proportion to what the buckets bear, so that none holds up the others."""
SUPERVISORS = ("cache", "models", *NODE_PARTS)
FORGETS: dict[str, tuple[str, ...]] = {
    "root": ("root", "cache", *MODEL_IDS),
    "admin": ("root", "cache", *MODEL_IDS),
    "cache": ("cache",),
    "models": MODEL_IDS,
}
"""Supervisors whose count of restarts is lost with them."""


@dataclass(frozen=True, slots=True)
class Kill:
    """One step of the plan."""

    n: int
    victim: str
    settle: bool
    """Wait until the tree is whole again; or only ``pause_s``: the next kill is in a restart."""
    pause_s: float


def bucket_of(victim: str) -> str:
    """The supervisor that counts this exit."""
    if victim in NODE_PARTS:
        return "launcher"
    if victim in ROOT_CHILDREN:
        return "root"
    return "cache" if victim in CACHE_CHILDREN else victim


def plan(seed: int, kills: int) -> list[Kill]:
    """``kills`` steps; the same for the same seed, and a prefix of any longer plan."""
    rng = random.Random(seed)
    steps: list[Kill] = []
    while len(steps) < kills:
        victims = [
            rng.choice(choices)
            for bucket, choices in (
                ("launcher", NODE_PARTS),
                ("root", ROOT_CHILDREN),
                ("cache", CACHE_CHILDREN),
                *((model, (model,)) for model in MODEL_IDS),
                (HOST, (HOST,)),
            )
            for _ in range(ROUND[bucket])
        ]
        rng.shuffle(victims)
        for victim in victims:
            # A supervisor that loses a child while it starts counts it as its own failure, which
            # its parent sees: no pacing could keep that below an intensity.
            settle = victim in SUPERVISORS or rng.random() < 0.6
            steps.append(Kill(len(steps) + 1, victim, settle, round(rng.uniform(0.0, 0.3), 3)))
    return steps[:kills]


class Pacer:
    """How long to wait before a kill, so that no supervisor gives up. Times are seconds."""

    def __init__(self) -> None:
        self._times: dict[str, deque[float]] = {bucket: deque() for bucket in BUCKETS}

    def wait_s(self, victim: str, now: float) -> float:
        bucket = bucket_of(victim)
        most, within_s = BUCKETS[bucket]
        times = self._times[bucket]
        return 0.0 if len(times) < most else max(0.0, times[-most] + within_s - now)

    def note(self, victim: str, now: float) -> None:
        self._times[bucket_of(victim)].append(now)
        for bucket in FORGETS.get(victim, ()):
            self._times[bucket].clear()

    def recent(self, victim: str, now: float) -> int:
        """Exits in the victim's bucket that its supervisor still counts."""
        bucket = bucket_of(victim)
        return sum(1 for one in self._times[bucket] if now - one < BUCKETS[bucket][1])
