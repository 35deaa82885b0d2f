"""What the routes ask of the node: models by their names, replies, and texts of tokens."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from actors import messages as m
from runtime import errors
from runtime.client.async_client import AsyncClient
from runtime.client.async_stream import AsyncStream
from runtime.client.transport import Transport
from runtime.gateway.access_log import log_request
from runtime.gateway.accounts import Incarnation, Now
from runtime.gateway.agents import Agents
from runtime.gateway.guard import check_model
from runtime.gateway.keys import Key, salt_of
from runtime.gateway.ledger_client import LedgerClient
from runtime.gateway.measures import Measures
from runtime.gateway.names import resolve
from runtime.gateway.response_runs import Responses
from runtime.gateway.snapshot import snapshot_of
from runtime.gateway.time_limit import LimitedStream, ReplyStream, TimeLimit
from runtime.gateway.trace import Traces
from runtime.gateway.watch import Watch
from runtime.gateway.wire.failure import Failure, Fault, Refused
from runtime.gateway.wire.metrics import Counts
from runtime.gateway.wire.rates import Rates
from runtime.gateway.wire.wanted import Head, Wanted
from runtime.settings.gateway import GatewaySettings
from supervision.messages import new_ref

if TYPE_CHECKING:
    from runtime.client.client import Client

BOOT_WAIT_S: Final = 10.0
"""How long a request waits for a node that is still starting."""
PROBE_S: Final = 1.0
"""How long a probe of the gateway's health waits for the node."""
_LOOK_S: Final = 0.05
_UP, _DOWN = "up", "down"
_GONE: Final = frozenset({_DOWN, "stopping"})
KEPT_VOCABULARIES: Final = 4
KNOWN_S: Final = 1.0
_SEEDS: Final = 1 << 64

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Birth:
    """What is fixed of an answer when its request has come; a successor goes on with it."""

    id: str = field(default_factory=lambda: secrets.token_hex(16))
    created: int = field(default_factory=lambda: int(time.time()))
    seed: int = field(default_factory=lambda: secrets.randbits(64))


class Service:
    """The node, for the routes of one worker."""

    def __init__(
        self,
        settings: GatewaySettings,
        connect: Callable[[], Transport],
        states: Callable[[], Mapping[str, str]],
        secret: bytes = b"",
        attach: Callable[[], Client] | None = None,
        number: int = 0,
    ) -> None:
        """``connect`` raises NodeNotRunning while the node starts.

        ``states``: the supervisor's, by ids of models. ``secret`` is the node's, for what
        separates keys. ``attach`` opens a client that blocks. ``number``: of this worker.
        """
        self.settings = settings
        self.number = number
        self.defaults: Mapping[str, float] = dict(settings.sampling)
        self.running = 0
        self.measures = Measures(Counts(), is_on=settings.metrics)
        self.connections: Callable[[], int] = int
        """How many are open."""
        self.began = time.time()
        self._expected: set[str] = set()
        self._expected_until = 0.0
        self.is_draining = False
        who = Incarnation(number, time.monotonic_ns())
        self.ledger = LedgerClient(
            who,
            self.transport,
            self._counted,
            series=self.measures.series,
            has_peers=settings.workers > 1,
        )
        self.traces = Traces()
        self.traces.on_end.append(self.measures.ended)
        if settings.access_log:
            self.traces.on_end.append(log_request)
        self.watch = Watch(self.ledger, self.traces, self._snapshot)
        self.responses = Responses(self)
        self.agents = Agents()
        self._connect = connect
        self._states = states
        self._secret = secret
        self._attach = attach
        self._transport: Transport | None = None
        self._client: AsyncClient | None = None
        self._pieces: OrderedDict[str, dict[int, bytes]] = OrderedDict()
        self._own: dict[type, Any] = {}
        self._known: dict[str, m.KnownModel] = {}
        self._known_at = float("-inf")

    def _counted(self) -> tuple[Counts, Now]:
        return self.measures.counts, Now(self.running, self.connections())

    async def client(self) -> AsyncClient:
        """What asks the node; waits while that starts."""
        if self._client is None:
            self._client = AsyncClient(await self.transport())
        return self._client

    async def transport(self) -> Transport:
        """The connection to the node; waits while that starts."""
        ends_at = time.monotonic() + BOOT_WAIT_S
        while self._transport is None:
            try:
                self._transport = self._connect()
            except errors.NodeNotRunning:
                if time.monotonic() > ends_at:
                    raise
                await asyncio.sleep(_LOOK_S)
        return self._transport

    async def _snapshot(self) -> bytes:
        return await snapshot_of(await self.client())

    def attach(self) -> Client:
        """A client that blocks, for a thread; the caller closes its connection."""
        if self._attach is None:
            raise errors.NotSupported("this gateway has no threads for work on the cache")
        return self._attach()

    def own(self, kind: type[T]) -> T:
        """The one value of a kind that the routes of this worker share; made at its first use."""
        if kind not in self._own:
            self._own[kind] = kind()
        found: T = self._own[kind]
        return found

    # ── models ──────────────────────────────────────────────────────────────────────────────────

    def loaded(self) -> list[str]:
        """Ids of models that are up, or on their way."""
        return [model for model, state in self._states().items() if state not in _GONE]

    def is_up(self, model: str) -> bool:
        """Whether it can answer now; else it is being started."""
        return self._states().get(model) == _UP

    async def is_loading(self) -> bool:
        """Whether models are wanted, or the node itself is being started, and none is up yet."""
        states = self._states()
        self._expected -= states.keys()  # from here on it is known whether they are wanted
        if _UP in states.values():
            return False
        try:
            async with asyncio.timeout(PROBE_S):
                wanted = await self._wanted()
        except (TimeoutError, errors.LlamaActorsError):
            return True
        if time.time() > self._expected_until:
            self._expected.clear()
        self._expected -= set(wanted)
        return bool(self._expected) or any(states.get(model) != _DOWN for model in wanted)

    def expect(self, models: Iterable[str], until: float) -> None:
        """These will be wanted; ``until`` (Unix time) they are waited for."""
        self._expected, self._expected_until = set(models), until

    def models(self, key: Key) -> list[str]:
        """Ids of the loaded models that a key may use, sorted."""
        return sorted(one for one in self.loaded() if key.may_use(one))

    async def known(self) -> dict[str, m.KnownModel]:
        """The models that are loaded or would be at their first use; at most a second old."""
        now = time.monotonic()
        if now - self._known_at > KNOWN_S:
            try:
                self._known = {one.model: one for one in await (await self.client()).known_models()}
            except errors.NodeError:
                self._known = {}  # the actor that knows them is restarting
            self._known_at = now
        return self._known

    async def listed(self, key: Key) -> list[str]:
        """Ids of all models that a key may use, loaded or not, sorted."""
        names = {*self.loaded(), *await self.known()}
        return sorted(one for one in names if key.may_use(one))

    async def model(self, asked: str | None, key: Key, *, is_exact: bool = False) -> str:
        """The id that a name means; Refused. ``is_exact``: the only model has no other name.

        A model that is loaded at its first use, or is being started again, counts as loaded: its
        requests wait for it.
        """
        if asked and asked in self.loaded():
            check_model(key, asked)  # else another would answer in its place
            return asked
        if asked and asked in await self.known():
            check_model(key, asked)
        names = await self.listed(key)
        try:
            return self._resolved(asked, key, names, is_exact=is_exact)
        except Refused:
            wanted = [one for one in await self._wanted() if key.may_use(one)]
            return self._resolved(asked, key, sorted({*names, *wanted}), is_exact=is_exact)

    def _resolved(self, asked: str | None, key: Key, names: list[str], *, is_exact: bool) -> str:
        settings = self.settings
        unknown = "reject" if is_exact else settings.unknown_model
        found = resolve(asked or "", names, settings.aliases, unknown)
        check_model(key, found)
        return found

    async def _wanted(self) -> tuple[str, ...]:
        """The models that are to be loaded, also while they are not."""
        answer = await (await self.client()).ask("registry", m.ListWantedModels(new_ref()))
        return answer.models if isinstance(answer, m.WantedModelsListed) else ()

    # ── replies ─────────────────────────────────────────────────────────────────────────────────

    def head(self, birth: Birth, model: str, *, needs_pieces: bool = False) -> Head:
        """What is fixed of an answer."""
        return Head(
            id=birth.id,
            created=birth.created,
            model=model,
            pieces=self._vocabulary(model) if needs_pieces else {},
            seed=birth.seed,
            explains=self.settings.explain,
        )

    async def begin(self, use: str, key: Key, *, is_checked: bool = True) -> Rates | None:
        """A request with the id ``use`` begins: what is left to its key, if that has limits.

        Refused where too many run, unless it was allowed before.
        """
        if is_checked:
            self._check_room()
        self.running += 1
        if not key.is_limited:
            return None
        try:
            return await self.ledger.begin(use, key, is_checked=is_checked)
        except BaseException:
            self.running -= 1
            raise

    def _check_room(self) -> None:
        if self.is_draining:
            raise Refused(
                Failure(Fault.UNAVAILABLE, "this gateway is being stopped; try another one")
            )
        running = self.running + self.ledger.others
        if running >= self.settings.max_running:
            raise Refused(
                Failure(Fault.OVERLOADED, f"{running} requests run here; try again later")
            )

    def end(self, use: str, n_tokens: int) -> None:
        """It has ended, after so many tokens that were computed."""
        self.running -= 1
        self.ledger.end(use, n_tokens)
        self.ledger.changed()

    def salt(self, key: Key, own: str = "") -> bytes:
        """What separates the rows of this key's requests."""
        return salt_of(key, self._secret, own)

    def stream(
        self,
        client: AsyncClient,
        head: Head,
        wanted: Wanted,
        number: int,
        key: Key,
        limit: TimeLimit | None = None,
        *,
        traceparent: str = "",
    ) -> ReplyStream:
        """The reply with this number, which is sent by its first step."""
        options: dict[str, Any] = dict(wanted.options)
        if traceparent:
            options["traceparent"] = traceparent
        if limit is None:
            return self._stream(client, head, wanted, number, key, options)
        options["timeout_s"] = limit.of_node
        stream = self._stream(client, head, wanted, number, key, options)
        return LimitedStream(stream, limit)

    def _stream(
        self,
        client: AsyncClient,
        head: Head,
        wanted: Wanted,
        number: int,
        key: Key,
        options: dict[str, Any],
    ) -> AsyncStream:
        given = wanted.inputs[number // wanted.n]
        salt = self.salt(key, options.pop("cache_salt", ""))
        if salt:
            options["salt"] = salt
        # The trace shows all three.
        options |= {"queue_events": True, "load_events": True, "resumed_events": True}
        seed = options.get("seed", -1)
        options["seed"] = ((head.seed if seed == -1 else seed) + number % wanted.n) % _SEEDS
        match wanted.kind:
            case "chat":
                return client.stream_chat(head.model, given, **options)
            case "infill":
                given = dict(given)
                prefix, suffix = given.pop("prefix"), given.pop("suffix")
                return client.stream_infill(head.model, prefix, suffix, **given, **options)
            case _:
                return client.stream(head.model, given, **{"parse_special": True, **options})

    # ── tokens as texts ─────────────────────────────────────────────────────────────────────────

    def _vocabulary(self, model: str) -> dict[int, bytes]:
        known = self._pieces.setdefault(model, {})
        self._pieces.move_to_end(model)
        while len(self._pieces) > KEPT_VOCABULARIES:
            self._pieces.popitem(last=False)
        return known

    def forget_vocabulary(self, model: str) -> None:
        """Another file may be loaded under this name."""
        self._pieces.pop(model, None)

    async def need_pieces(self, model: str, tokens: Iterable[int]) -> dict[int, bytes]:
        """The texts of at least these tokens."""
        known = self._vocabulary(model)
        missing = sorted({one for one in tokens if one not in known})
        if missing:
            client = await self.client()
            known.update(zip(missing, await client.token_pieces(model, missing), strict=True))
        return known
