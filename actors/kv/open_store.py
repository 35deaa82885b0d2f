"""The store of one model, put together for the kind of memory that the model has."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from actors.kv.block_store import BlockStore
from actors.kv.checkpoint_store import CheckpointStore
from actors.kv.reader import RowReader
from actors.kv.restore_cost import Rates
from actors.kv.row_plan import RowPlan
from actors.kv.row_writer import RowWriter
from actors.kv.store import KvStore, RowStore
from cache.answers import MissReason
from cache.policy import SAVE_ALL, SavePolicy
from native.backend import Backend


def open_store(
    backend: Backend,
    *,
    root: bytes,
    holder: str,
    label: str,
    arena_path: str | None,
    tier_dirs: Mapping[str, str],
    granted_by: Callable[[], int | None],
    policy: SavePolicy = SAVE_ALL,
) -> KvStore:
    """The store of the model of ``backend``, in the namespace ``root``.

    ``holder`` names this process in leases and reservations, and ``label`` the model in metadata.
    Without ``arena_path`` nothing is stored. ``granted_by`` returns the incarnation of cache_meta
    that is up, ``None`` if none is.
    """
    info = backend.info
    plan = RowPlan(info, backend.block_bytes, root=root, label=label, policy=policy)
    rates = Rates(policy.restore)
    reader = RowReader(backend, plan=plan, arena_path=arena_path, tier_dirs=tier_dirs, rates=rates)
    writer = RowWriter(backend, plan, arena_path=arena_path, granted_by=granted_by)
    unusable: MissReason | None = None
    if arena_path is None:
        unusable = MissReason.CACHE_OFF
    elif info.memory != "checkpoint" and not info.can_cut:
        unusable = MissReason.MODEL_CANNOT_BE_CUT
    rows: RowStore
    if info.memory == "checkpoint":
        rows = CheckpointStore(backend, plan, reader, writer, rates, unusable)
    else:
        rows = BlockStore(plan, reader, writer, unusable)
    return KvStore(rows, plan, reader, writer, rates, holder)
