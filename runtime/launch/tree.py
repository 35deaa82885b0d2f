"""The tree of a node, as one literal. Start order is reading order; stop order is the reverse."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Final

from actors.messages.actor_ids import RESIDENCY, tier_actor_id
from actors.messages.pressure_settings import PressureSettings
from actors.node.registry import RegistryArgs
from actors.storage.cache_meta import CacheMetaArgs
from actors.storage.file_tier import FileTierArgs
from actors.storage.ram_tier import RamTierArgs
from actors.storage.writer import STOP_S, WriterArgs
from cache.policy import SAVE_ALL, SavePolicy
from native.fingerprint import Fingerprints
from runtime.residency.settings import ResidencyArgs
from runtime.settings.gateway import GatewaySettings, HttpWorkerArgs, LedgerArgs
from supervision import (
    INFINITY,
    Backoff,
    ChildKind,
    ChildSpec,
    Restart,
    Strategy,
    SupervisorSpec,
)

MODEL_LOAD_TIMEOUT_S: Final = 600.0  # a 100 GB file from a slow disk; a crash is noticed at once
MODEL_UNLOAD_TIMEOUT_S: Final = 5.0  # to end requests and notify callers, then SIGKILL

HTTP_STOP_EXTRA_S: Final = 5.0
HTTP_LOOP_S: Final = 30.0  # it shows life each second, unless something blocks its event loop
EXPECTED_S: Final = 60.0  # from the start until the first model's load begins, at most
MODEL_STEP_TIMEOUT_S: Final = 600.0  # one decode of a huge model on a slow machine stays below it


@dataclass(frozen=True, slots=True)
class FileTier:
    """One directory that holds rows: its tier name, path and budget in bytes."""

    name: str
    root_dir: str
    budget_bytes: int
    device: int = 0
    """``st_dev`` of the directory; 0: unknown."""
    lock_inode: int = 0
    """Of the file by whose lock this launcher holds the directory; 0: it holds none."""


def build_tree(  # noqa: PLR0913 - what its leaves are started with
    *,
    wanted_path: str,
    arena_path: str | None,
    ram_bytes: int,
    file_tiers: tuple[FileTier, ...],
    absent_tiers: tuple[tuple[str, str], ...] = (),
    cache_salt: str = "",
    fingerprints: Fingerprints | None = None,
    pressure: PressureSettings | None = None,
    save: SavePolicy = SAVE_ALL,
    signing_key: bytes = b"",
    gateway: GatewaySettings | None = None,
    node_dir: str = "",
    models: tuple[str, ...] = (),
    residency: ResidencyArgs | None = None,
) -> SupervisorSpec:
    """What the root supervises. ``models``: ids of those that are loaded when it has started."""
    budgets = tuple((tier.name, tier.budget_bytes) for tier in file_tiers)
    directories = tuple((tier.name, tier.root_dir) for tier in file_tiers)
    return SupervisorSpec(
        Strategy.ONE_FOR_ONE,
        (
            ChildSpec(
                "cache",
                "supervision.supervisor.Supervisor",
                kind=ChildKind.SUPERVISOR,
                shutdown=INFINITY,
                args=SupervisorSpec(
                    # Meta first: the tiers report to it, and after its crash they must do so again.
                    Strategy.REST_FOR_ONE,
                    (
                        ChildSpec(
                            "cache_meta",
                            "actors.storage.cache_meta.CacheMetaActor",
                            CacheMetaArgs(
                                arena_path,
                                ram_bytes,
                                budgets,
                                save.tail_disk_delay_s,
                                absent_tiers,
                            ),
                        ),
                        ChildSpec(
                            "ram_tier",
                            "actors.storage.ram_tier.RamTierActor",
                            RamTierArgs(arena_path, directories, ram_bytes),
                        ),
                        *(
                            ChildSpec(
                                tier_actor_id(tier.name),
                                "actors.storage.file_tier.FileTierActor",
                                FileTierArgs(
                                    tier.name,
                                    tier.root_dir,
                                    tier.budget_bytes,
                                    tier.device,
                                    tier.lock_inode,
                                ),
                            )
                            for tier in file_tiers
                        ),
                        ChildSpec(
                            "writer",
                            "actors.storage.writer.WriterActor",
                            WriterArgs(arena_path, directories),
                            shutdown=STOP_S,
                        ),
                    ),
                ),
            ),
            ChildSpec(
                "registry",
                "actors.node.registry.RegistryActor",
                RegistryArgs(
                    wanted_path,
                    arena_path,
                    directories,
                    cache_salt,
                    fingerprints,
                    save,
                    signing_key,
                ),
            ),
            ChildSpec("inflight", "actors.requests.inflight.InflightActor"),
            ChildSpec(
                "models",
                "supervision.supervisor.Supervisor",
                kind=ChildKind.SUPERVISOR,
                shutdown=INFINITY,
                args=SupervisorSpec(
                    Strategy.SIMPLE_ONE_FOR_ONE,
                    template=ChildSpec(
                        "model",
                        "actors.model.model.ModelActor",
                        restart=Restart.TRANSIENT,
                        # A file that does not load would not load the next time either: its error
                        # goes to the caller. A model that crashed after it was ready is restarted.
                        restart_if_never_ready=False,
                        backoff=Backoff(first_s=0.05, factor=3.0, max_s=10.0),
                        init_timeout_s=MODEL_LOAD_TIMEOUT_S,
                        shutdown=MODEL_UNLOAD_TIMEOUT_S,
                        engine_heartbeat_s=MODEL_STEP_TIMEOUT_S,
                    ),
                ),
            ),
            *(
                ()
                if residency is None
                else (ChildSpec(RESIDENCY, "runtime.residency.actor.ResidencyActor", residency),)
            ),
            ChildSpec(
                "scheduler", "actors.node.pressure_scheduler.PressureSchedulerActor", pressure
            ),
            *(
                (_gateway(gateway, node_dir, signing_key, models),)
                if gateway and gateway.is_on
                else ()
            ),
        ),
    )


def _gateway(
    settings: GatewaySettings, node_dir: str, signing_key: bytes, models: tuple[str, ...]
) -> ChildSpec:
    """HTTP, last: it is the first to stop, while all that it asks still runs."""
    until = time.time() + EXPECTED_S
    secret = hashlib.blake2b(b"namespaces of keys", key=signing_key[:64]).digest()
    workers = tuple(
        ChildSpec(
            f"http:{number}",
            "runtime.gateway.worker.HttpWorker",
            HttpWorkerArgs(node_dir, settings, number, secret, models, until),
            shutdown=settings.drain_s + HTTP_STOP_EXTRA_S,
            engine_heartbeat_s=HTTP_LOOP_S,
        )
        for number in range(settings.workers)
    )
    return ChildSpec(
        "gateway",
        "supervision.supervisor.Supervisor",
        kind=ChildKind.SUPERVISOR,
        shutdown=INFINITY,
        args=SupervisorSpec(
            Strategy.ONE_FOR_ONE,
            # First, and so the last to stop: the workers' last reports go there.
            (
                ChildSpec(
                    "gateway_ledger",
                    "runtime.gateway.ledger.LedgerActor",
                    LedgerArgs(node_dir, settings.store_bytes),
                ),
                *workers,
            ),
            # They hold nothing that a restart loses, so they may be restarted often.
            intensity=60,
            preload=(
                "runtime.gateway.server",
                "runtime.gateway.ledger",
                "runtime.client.loop_transport",
            ),
        ),
    )
