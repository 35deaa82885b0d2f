"""The rows and the bytes they take: the state of the index, changed only consistently.

Four structures are kept consistent: the rows by key, the tree (children of a key, sorted by their
token bytes), the accounts of the tiers, and the pins of readers. Every change is made by ``hold``
and ``drop``, which update all four. Rows are slots of ``cache.nodes``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Final

from cache import eviction, siblings
from cache.allocation import ArenaMap
from cache.answers import RAM, BlockRef, Evicted, RowRequest
from cache.finish_keys import FinishKeys
from cache.keys import KEY_BYTES, child_key
from cache.nodes import NIL, SUPERSEDED, Nodes
from cache.rows import RowIdentity
from cache.tiers import Tier, place
from cache.tokens import TIP, TOKEN_BYTES, pack

SPARED: Final = 16  # rows that wait for a copy and are skipped before one of them is evicted
MAX_START: Final = 1 << 31  # tokens; columns of 32 bits hold it
MAX_TIERS: Final = 31  # bits of a 32-bit mask
MAX_BLOCK_TOKENS: Final = (1 << 16) - 1
MAX_PAGES: Final = 1 << 32
MAX_SIBLINGS: Final = 64  # longer siblings of one tail that are tried until a tier holds one
_TIP: Final = pack([TIP])


class RowTable:
    """Rows, tree, tiers and pins. Private to the index; changed by one process only."""

    def __init__(
        self,
        block_tokens: int,
        budgets: Mapping[str, int],
        page_bytes: int,
        tail_delay_s: float = 0.0,
    ) -> None:
        if not 1 <= block_tokens <= MAX_BLOCK_TOKENS or len(budgets) > MAX_TIERS:
            raise ValueError(
                f"an index has blocks of 1 .. {MAX_BLOCK_TOKENS} tokens, not {block_tokens}, "
                f"and at most {MAX_TIERS} tiers, not {len(budgets)}"
            )
        if budgets.get(RAM, 0) // page_bytes >= MAX_PAGES:
            raise ValueError(f"an arena has fewer than {MAX_PAGES} pages")
        self.block_tokens = block_tokens
        self.nodes = Nodes(block_tokens)
        self.tail_delay_s = tail_delay_s
        self.tiers: dict[str, Tier] = {}
        for number, (name, budget) in enumerate(budgets.items()):
            arena = ArenaMap(budget, page_bytes) if name == RAM else None
            self.tiers[name] = Tier(name, budget, arena, self.nodes, 1 << number)
        kinds = sorted({tier.durability for tier in self.file_tiers()})
        self._kinds = [[t for t in self.file_tiers() if t.durability == kind] for kind in kinds]
        self.n_rows = 0  # nodes that at least one tier holds
        self.roots: dict[int, int] = {}  # root -> number of its rows
        self.leases: dict[int, int] = {}  # row -> number of readers and copiers that pin it
        self.doomed: dict[int, list[tuple[Tier, int | None, int]]] = {}  # freed with the last lease
        self.now = 0.0
        self.lost = 0  # evicted before they were copied to the slower tier meant for them
        self.tails_removed = 0  # copies dropped because a longer row contains them
        self.finish_keys = FinishKeys()

    def is_well_formed(self, request: RowRequest) -> bool:
        """Whether sizes, position, parent and key of a request are consistent."""
        row = request.id
        n_tokens, odd = divmod(len(row.tokens), TOKEN_BYTES)
        return (
            not odd
            and 1 <= n_tokens <= self.block_tokens
            and 0 <= row.start <= MAX_START
            and row.start % self.block_tokens == 0
            and len(row.parent) == len(row.root) == KEY_BYTES
            and (row.parent == row.root) == (row.start == 0)
            and 0 < request.row_bytes < 1 << 63
            and child_key(row.parent, row.tokens) == row.key
        )

    def advance(self, now: float) -> None:
        self.now = max(self.now, now)

    def find(self, key: bytes) -> int:
        """The row with this key, or NIL."""
        at = self.nodes.find(key)
        return at if at and self.nodes.copies[at] else NIL

    def ref(self, at: int, tier: Tier, n_used: int) -> BlockRef:
        """A row's copy as an answer to a lookup."""
        nodes = self.nodes
        return BlockRef(
            nodes.key(at),
            tier.name,
            tier.location(at),
            nodes.row_bytes[at],
            nodes.start[at],
            n_used,
            nodes.n_tokens[at],
        )

    def queue_copies(self, at: int, above: int = 0) -> tuple[str, ...]:
        """Queue a row for one open tier of every more durable kind that lacks it; their names.

        ``above``: only of kinds more durable than this. A row that was just copied to one kind is
        not queued for a lesser one: two full tiers would copy and evict the same rows endlessly.
        A tail waits for ``tail_delay_s`` first: a block that contains it may be stored meanwhile.
        """
        is_tail = self.nodes.n_tokens[at] < self.block_tokens
        queued: list[str] = []
        for kind in self._kinds:
            if kind[0].durability <= above or any(
                tier.holds(at) or tier.is_queued(at) for tier in kind
            ):
                continue
            is_open = [tier for tier in kind if tier.is_open]
            if is_open and self.source_for(at, kind[0]) is not None:
                tier = place(self.nodes.key(at), is_open)
                if is_tail and self.tail_delay_s:
                    tier.late[at] = self.now + self.tail_delay_s
                else:
                    tier.unpersisted[at] = None
                queued.append(tier.name)
        return tuple(queued)

    def source_for(self, at: int, tier: Tier) -> Tier | None:
        """Where a copy for ``tier`` is read: the fastest tier that holds the row.

        A file tier is filled from less durable tiers only; the arena from any tier.
        """
        for other in self.tiers.values():
            is_source = other is not tier and (
                tier.arena is not None or other.durability < tier.durability
            )
            if is_source and other.holds(at):
                return other
        return None

    def file_tiers(self) -> Iterable[Tier]:
        return (tier for tier in self.tiers.values() if tier.arena is None)

    def is_superseded(self, at: int) -> bool:
        """Whether a longer sibling contains all of this row's tokens."""
        return bool(self.nodes.mark[at] & SUPERSEDED)

    # ── adding and removing ──────────────────────────────────────────────────────────────────

    def hold(self, request: RowRequest, tier: Tier, location: int | None, nbytes: int) -> int:
        """Record that a tier holds a row, whose bytes and place among the children are claimed."""
        at = self.nodes.use(request.id.key)
        if not self.nodes.copies[at]:
            self._enter(at, request)
        tier.add(at, location, nbytes)
        if at in self.leases:
            tier.pinned_bytes += nbytes
        return at

    def _enter(self, at: int, request: RowRequest) -> None:
        nodes, row = self.nodes, request.id
        parent, root = nodes.use(row.parent), nodes.use(row.root)
        nodes.fill(at, request, parent, root, eviction.first_heat(self.now))
        self.n_rows += 1
        self.roots[root] = self.roots.get(root, 0) + 1
        before, after = siblings.insert(nodes, parent, at)
        # In the sorted children, rows that contain or are contained in this one are its neighbours.
        if before:
            for shorter in siblings.beginnings(nodes, parent, row.tokens):
                self._supersede(shorter)
        if after and nodes.tokens(after).startswith(row.tokens):
            self._supersede(at)

    def _supersede(self, at: int) -> None:
        self.nodes.mark[at] |= SUPERSEDED  # and it is not copied to files any more
        for tier in self.file_tiers():
            tier.unqueue(at)
        self.offer(at)

    def drop(self, at: int, tier: Tier) -> list[Evicted]:
        """Remove one copy. A leased slab is freed by its last reader; files may be unlinked."""
        nodes = self.nodes
        key, parent = nodes.key(at), nodes.parent[at]
        location, nbytes = tier.take(at)
        for other in self.file_tiers():  # what was to be copied from here may have no source now
            if other.is_queued(at) and self.source_for(at, other) is None:
                other.unqueue(at)
        if not nodes.copies[at]:
            self._forget(at)
        self.remove_child(tier, parent)
        is_leased = at in self.leases
        if is_leased and tier.arena is not None:
            # Readers map the slab: its bytes stay claimed until the last of them is done.
            self.doomed.setdefault(at, []).append((tier, location, nbytes))
            return []
        tier.unclaim(location, nbytes)
        if is_leased:
            tier.pinned_bytes -= nbytes
        self._free_if_unused(at)
        return [Evicted(key, tier.name, location, nbytes)]

    def _forget(self, at: int) -> None:
        """Remove a row without copies from the tree; its node stays while it is referred to."""
        nodes = self.nodes
        root = nodes.root[at]
        self.n_rows -= 1
        if nodes.n_tokens[at] < self.block_tokens:
            self.keep_finish_key(eviction.last_used(nodes.heat[at], self.now), nodes.identity(at))
        parent = nodes.parent[at]
        siblings.remove(nodes, parent, at)
        # Tails that only this row contained are needed again, in files too.
        for shorter in list(siblings.beginnings(nodes, parent, nodes.tokens(at))):
            if not any(siblings.extensions(nodes, parent, nodes.tokens(shorter))):
                nodes.mark[shorter] &= ~SUPERSEDED
                self.queue_copies(shorter)
        self.roots[root] -= 1
        if not self.roots[root]:
            del self.roots[root]
            self._free_if_unused(root)
        for child in siblings.of(nodes, at):
            self.offer(child)  # unreachable now, so worth nothing

    # ── tails that a longer row contains ─────────────────────────────────────────────────────

    def is_contained(self, tail: RowIdentity, tier: Tier, by: int = NIL) -> bool:
        """Whether a tier of this kind holds a longer row that begins with all of these tokens.

        Only such a row is as durable as this tier's copy. The state of a whole sequence (a row
        that begins with ``TIP``) is contained in no other: it cannot be cut out of a longer one.
        ``by``: a longer sibling that is tried first.
        """
        nodes = self.nodes
        parent, root = nodes.find(tail.parent), nodes.find(tail.root)
        is_whole = len(tail.tokens) == self.block_tokens * TOKEN_BYTES
        if is_whole or not parent or not nodes.child[parent] or tail.tokens.startswith(_TIP):
            return False
        kind = [other for other in self.tiers.values() if other.durability == tier.durability]
        longer = islice(siblings.extensions(nodes, parent, tail.tokens), MAX_SIBLINGS)
        return any(
            nodes.start[at] == tail.start
            and nodes.root[at] == root
            and any(other.holds(at) for other in kind)
            for at in ((by, *longer) if by else longer)
        )

    def keep_finish_key(self, used: float, row: RowIdentity) -> None:
        """Keep the key of a tail that was used at this time last; see ``cache.finish_keys``.

        Callers have that key whether the tail itself was stored, refused or evicted.
        """
        if len(row.tokens) < self.block_tokens * TOKEN_BYTES:
            self.finish_keys.add(used, row)

    def drop_superseded(self, at: int) -> list[Evicted]:
        """Drop the tails that an added row contains, or the row itself where it is contained.

        It inherits the heat of the tails that it replaces: their uses were uses of its tokens.
        """
        nodes = self.nodes
        parent = nodes.parent[at]
        if nodes.child[parent] == at and not (nodes.left[at] or nodes.right[at]):
            return []  # the only child, as most rows are
        gone: list[Evicted] = []
        for row in list(siblings.beginnings(nodes, parent, nodes.tokens(at))):
            heat = nodes.heat[row]
            if dropped := self.drop_contained(row, at):
                gone += dropped
                nodes.heat[at] = max(nodes.heat[at], heat)
        return gone + self.drop_contained(at)

    def drop_contained(self, at: int, by: int = NIL) -> list[Evicted]:
        """Drop the copies of a tail in tiers of every kind that holds a longer row with its tokens.

        Not while it is leased; ``unpin`` tries again. ``by``: as for ``is_contained``.
        """
        if not self.is_superseded(at) or at in self.leases:
            return []
        gone: list[Evicted] = []
        tail = self.nodes.identity(at)
        for tier in self.tiers.values():
            if self.is_evictable(at, tier) and self.is_contained(tail, tier, by):
                self.finish_keys.add(self.now, tail)
                gone += self.drop(at, tier)
                self.tails_removed += 1
        return gone

    def is_unused(self, at: int) -> bool:
        """Whether nothing refers to this node any more."""
        nodes = self.nodes
        return (
            not nodes.copies[at]
            and not nodes.child[at]
            and at not in self.roots
            and at not in self.leases
            and not any(tier.n_children[at] for tier in self.tiers.values())
        )

    def _free_if_unused(self, at: int) -> None:
        if self.is_unused(at):
            self.nodes.free(at)

    def add_child(self, tier: Tier, parent: bytes) -> int:
        """Count one more row under ``parent`` here, held or being written; the parent's node."""
        at = self.nodes.use(parent)
        tier.n_children[at] += 1
        tier.queue.discard(at)  # otherwise one eviction would have to skip all inner rows
        return at

    def remove_child(self, tier: Tier, parent: int) -> None:
        """Count one row less under ``parent`` in this tier; the parent may be evictable now."""
        tier.n_children[parent] -= 1
        if self.nodes.copies[parent]:
            self.offer(parent)
        else:
            self._free_if_unused(parent)

    # ── readers ──────────────────────────────────────────────────────────────────────────────

    def pin(self, at: int) -> None:
        """Pin a row for a reader: its bytes cannot be evicted meanwhile."""
        readers = self.leases.get(at, 0)
        self.leases[at] = readers + 1
        if not readers:
            for tier in self.tiers.values():
                if tier.holds(at):
                    tier.pinned_bytes += tier.nbytes(at)

    def unpin(self, at: int) -> list[Evicted]:
        """End one pin; the last one frees slabs of copies dropped meanwhile."""
        self.leases[at] -= 1
        if self.leases[at]:
            return []
        del self.leases[at]
        freed = []
        for tier, location, nbytes in self.doomed.pop(at, ()):
            tier.unclaim(location, nbytes)
            tier.pinned_bytes -= nbytes
            freed.append(Evicted(self.nodes.key(at), tier.name, location, nbytes))
        for tier in self.tiers.values():
            if tier.holds(at):
                tier.pinned_bytes -= tier.nbytes(at)
        if self.nodes.copies[at]:
            self.offer(at)
            freed += self.drop_contained(at)
        else:
            self._free_if_unused(at)
        return freed

    @property
    def evictions(self) -> int:
        """Copies that were evicted since the start."""
        tiers = self.tiers.values()
        return sum(one.evicted_for_room + one.evicted_on_request for one in tiers)

    # ── eviction ─────────────────────────────────────────────────────────────────────────────

    def make_room(
        self,
        tier: Tier,
        nbytes: int,
        found: tuple[Callable[[], float], int | None] | None,
        evicted: list[Evicted],
        promoted: int = NIL,
    ) -> tuple[bool, int | None]:
        """Claim bytes, evicting the least valuable rows until they fit: (done, arena offset).

        A row ``found`` by a scan (its rank, its location) displaces only rows of lower rank. So
        does ``promoted``, a row of a slower tier; rows not yet copied to files stay, too.
        """
        if not tier.could_fit(nbytes):
            return False, None
        while True:
            if found is None:
                done, location = tier.claim(nbytes)
            else:
                location = found[1]
                done = tier.claim_at(location, nbytes)
            if done or (found is not None and tier.arena is not None):
                return done, location  # a slab found in the arena has its place, or none at all
            victim = self._victim(tier)
            if not victim:
                return False, None
            would_be_lost = self._would_be_lost(victim, tier)
            if (found and self.rank(victim) > found[0]()) or (
                promoted and (would_be_lost or self.rank(victim) > self.rank(promoted))
            ):
                self.offer(victim)
                return False, None
            self.lost += would_be_lost
            evicted += self.drop(victim, tier)
            tier.evicted_for_room += 1

    def evict_one(self, tier: Tier) -> list[Evicted] | None:
        """Evict the least valuable row of a tier; None if none may be evicted."""
        victim = self._victim(tier)
        if not victim:
            return None
        if self._would_be_lost(victim, tier):
            self.lost += 1
        tier.evicted_on_request += 1
        return self.drop(victim, tier)

    def _victim(self, tier: Tier) -> int:
        """The row of lowest rank; one still queued for a slower tier only if there is no other."""
        spared: list[int] = []
        at = self._cheapest(tier)
        while at and self._would_be_lost(at, tier):
            spared.append(at)
            at = self._cheapest(tier) if len(spared) < SPARED else NIL
        if not at and spared:
            at = spared.pop(0)
        for other in spared:
            self.offer(other)
        return at

    def _would_be_lost(self, at: int, tier: Tier) -> bool:
        """Whether this tier holds the only copy of a row that is meant for a more durable one."""
        return (
            self.nodes.copies[at] == tier.bit
            and not self.is_superseded(at)
            and any(
                other.durability > tier.durability
                and (other.is_queued(at) or not other.is_open or other.fillings)
                for other in self.file_tiers()
            )
        )

    def _cheapest(self, tier: Tier) -> int:
        while (queued := tier.queue.pop()) is not None:
            rank, at = queued
            if not self.is_evictable(at, tier):
                continue  # ``offer`` queues it again when that changes
            current = self.rank(at)
            if current <= rank:
                return at
            tier.queue.offer(at, current)
        return NIL

    def rank(self, at: int) -> float:
        """The value of a row per byte, see ``cache.eviction``."""
        nodes = self.nodes
        parent = nodes.parent[at]
        is_reachable = parent == nodes.root[at] or nodes.copies[parent]
        if not is_reachable or nodes.mark[at] & SUPERSEDED:
            return eviction.WORTHLESS
        return eviction.rank(
            nodes.heat[at], nodes.start[at], nodes.n_tokens[at], nodes.row_bytes[at]
        )

    def rank_found(self, request: RowRequest, heat: float) -> float:
        """The same for a row that is not in the table yet."""
        row = request.id
        if row.parent != row.root and not self.find(row.parent):
            return eviction.WORTHLESS
        return eviction.rank(heat, row.start, row.n_tokens, request.row_bytes)

    def is_evictable(self, at: int, tier: Tier) -> bool:
        """Whether this tier may drop its copy: it is not leased, and no child depends on it."""
        copies = self.nodes.copies[at]
        if not copies & tier.bit or tier.n_children[at] or at in self.leases:
            return False
        with_children = [other for other in self.tiers.values() if other.n_children[at]]
        if not with_children:
            return True
        if not copies & copies - 1:
            return False
        # A parent must be as durable as its children: one such copy has to stay.
        needed = [t.durability for t in with_children if t.durability <= tier.durability]
        return not needed or any(
            other is not tier and other.durability >= max(needed) and other.holds(at)
            for other in self.tiers.values()
        )

    def offer(self, at: int) -> None:
        """Queue a row for eviction wherever it may be evicted now."""
        for tier in self.tiers.values():
            if self.is_evictable(at, tier):
                tier.queue.offer(at, self.rank(at))
