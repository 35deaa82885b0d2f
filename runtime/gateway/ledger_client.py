"""What one HTTP worker tells and asks the ledger.

A request of a key without limits asks nothing: it is counted here, and all counts are sent once a
second and after the end of requests. The ledger may be killed at any time: what it has not
acknowledged is sent again, and who asks waits for its next process.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from typing import Final

from runtime.client.transport import Transport
from runtime.gateway import ledger_messages as lm
from runtime.gateway.accounts import Incarnation, Now
from runtime.gateway.keys import Key
from runtime.gateway.wire.diagnose import Parts
from runtime.gateway.wire.failure import Failure, Fault, Refused
from runtime.gateway.wire.metrics import Counts
from runtime.gateway.wire.rates import Rates
from runtime.gateway.wire.series import Series
from supervision.errors import NodeRestarted, SupervisionError, TargetDown
from supervision.messages import new_ref

WAIT_S: Final = 10.0
"""How long a request waits for a ledger that is being restarted."""
CONTINUED_S: Final = 1.0
"""The same for one that was allowed before: it goes on in any case."""
EVERY_S: Final = 1.0
SOON_S: Final = 0.25
"""Requests that end within this time are reported together, but those of keys with limits, which
are reported at once: the report takes the worker a tenth of the time of a short request."""
BUSY_S: Final = 0.03
"""A request that ended at another worker just now may not be noted yet."""
PARTS_S: Final = 1.0
"""A request does not wait longer to learn why an earlier one is not warm."""
MAX_PARTS_BYTES: Final = 48 << 10
"""Of one message; a longer conversation is known to its own worker alone."""
_RETRY_S: Final = 0.02
_LAST_S: Final = 1.0


class LedgerGone(Exception):
    """It, or another worker that was asked, has not answered in time."""


class LedgerClient:
    """Of one worker, on its loop."""

    def __init__(
        self,
        who: Incarnation,
        connect: Callable[[], Awaitable[Transport]],
        counted: Callable[[], tuple[Counts, Now]],
        *,
        series: Series | None = None,
        has_peers: bool = False,
    ) -> None:
        """``counted`` returns what replies have cost so far, and what this worker does.

        ``has_peers``: there are other workers, of whose requests it is to know.
        """
        self.who = who
        self.others = 0
        """Requests that run in other workers, as far as is known."""
        self.is_watched = False
        """Whether a page that shows requests is open at some worker, as far as is known."""
        self.on_watched: Callable[[], None] | None = None
        """Called with each report while one is."""
        self._connect = connect
        self._counted = counted
        self._series = series or Series()
        self._has_peers = has_peers
        self._turn = 0
        self._uses: set[str] = set()
        self._ended: dict[str, int] = {}
        self._continued: tuple[str, ...] | None = ()
        self._wake = asyncio.Event()
        self._soon: asyncio.TimerHandle | None = None
        self._reporting = asyncio.Lock()
        self._reported: tuple[Counts, Now, int] | None = None

    # ── uses of keys ────────────────────────────────────────────────────────────────────────────

    async def begin(self, use: str, key: Key, *, is_checked: bool = True) -> Rates | None:
        """A request of a limited key begins: what is left to the key; Refused.

        Unchecked, it goes on in any case; None: the ledger does not answer.
        """
        self._uses.add(use)
        try:
            answer = await self._begun(use, key, is_checked=is_checked)
            if isinstance(answer, lm.UseRefused) and answer.is_busy:
                await asyncio.sleep(BUSY_S)
                answer = await self._begun(use, key, is_checked=is_checked)
        except LedgerGone:
            if not is_checked:
                return None
            self.end(use, 0)
            raise gone("counts the requests of keys") from None
        except BaseException:
            self.end(use, 0)
            raise
        if isinstance(answer, lm.UseRefused):
            self._uses.discard(use)
            raise Refused(answer.failure)
        return answer.rates if isinstance(answer, lm.UseBegun) else None

    async def _begun(self, use: str, key: Key, *, is_checked: bool) -> object:
        limits = key.limits()
        ended: dict[str, int] = {}

        def message(ref: str) -> object:
            ended.update(self._ended)
            return lm.BeginUse(
                ref, self.who, self._next(), use, limits, tuple(ended.items()), is_checked
            )

        answer = await self.ask(message, WAIT_S if is_checked else CONTINUED_S)
        self._acknowledged(ended)
        return answer

    def claim(self, uses: Collection[str]) -> None:
        """These began in a predecessor, and go on here; each is ended by ``end``."""
        self._uses.update(uses)

    def end(self, use: str, n_tokens: int) -> None:
        """A request has ended, after so many tokens that were computed."""
        if use in self._uses:
            self._uses.discard(use)
            self._ended[use] = n_tokens
            self._wake.set()  # its key may begin another one now

    def _acknowledged(self, ended: dict[str, int]) -> None:
        for use in ended:
            self._ended.pop(use, None)

    def _next(self) -> int:
        self._turn += 1
        return self._turn

    # ── reports ─────────────────────────────────────────────────────────────────────────────────

    def goes_on_with(self, responses: Collection[str]) -> None:
        """Before the first report: responses in the background that a predecessor had begun."""
        self._continued = tuple(responses)

    def changed(self) -> None:
        """A request has ended, or its costs were noted: they are reported soon."""
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_later(SOON_S, self._tell_soon)

    def _tell_soon(self) -> None:
        self._soon = None
        self._wake.set()

    async def run(self) -> None:
        """Report again and again, until the task is cancelled."""
        while True:
            self._wake.clear()
            with contextlib.suppress(LedgerGone):
                await self.report()
            while not self._wake.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(EVERY_S):
                        await self._wake.wait()
                if self._has_news():
                    break

    def _state(self) -> tuple[Counts, Now, int]:
        """Also the version of the series."""
        counts, now = self._counted()
        return replace(counts), now, self._series.version

    def _has_news(self) -> bool:
        """Whether a report would change anything there, or here."""
        is_told = self._reported == self._state() and not self._ended and self._continued is None
        return self._has_peers or not is_told

    async def report(self, within_s: float = WAIT_S) -> None:
        """Tell the ledger all that has changed; LedgerGone."""
        async with self._reporting:
            ended: dict[str, int] = {}
            state, continued = self._state(), self._continued

            def message(ref: str) -> object:
                nonlocal state
                state = self._state()
                ended.update(self._ended)
                counts, now, version = state
                uses, turn = tuple(self._uses), self._next()
                is_known = self._reported is not None and self._reported[2] == version
                series = b"" if is_known else self._series.packed()
                return lm.ReportWorker(
                    *(ref, self.who, turn, now, counts, uses, tuple(ended.items()), continued),
                    series=series,
                )

            try:
                answer = await self.ask(message, within_s)
            except LedgerGone:
                self.others = 0  # nothing is known of them
                raise
            self._acknowledged(ended)
            self._reported, self._continued = state, None
            if isinstance(answer, lm.WorkerReported):
                self.others, self.is_watched = answer.others, answer.is_watched
                if self.is_watched and self.on_watched is not None:
                    self.on_watched()

    async def leave(self) -> None:
        """The last report of a worker that stops."""
        if self._soon is not None:
            self._soon.cancel()
        with contextlib.suppress(LedgerGone):
            await self.report(_LAST_S)

    async def totals(self) -> lm.TotalsRead:
        """What all workers have counted, and what they do; Refused."""
        try:
            await self.report()
            answer = await self.ask(lm.ReadTotals, WAIT_S)
        except LedgerGone:
            raise gone("counts what replies cost") from None
        if not isinstance(answer, lm.TotalsRead):
            raise gone("counts what replies cost")
        return answer

    # ── digests of requests ─────────────────────────────────────────────────────────────────────

    async def note_parts(self, key: Key, answer_id: str, parts: Parts) -> None:
        """A request was answered; another worker may be asked about it."""
        if parts.n_bytes <= MAX_PARTS_BYTES:
            await self.tell(lm.NoteParts(key.name, answer_id, parts))

    async def parts_of(self, key: Key, answer_id: str) -> Parts | None:
        """The request that any worker has answered with this id, as far as is known."""
        with contextlib.suppress(LedgerGone):
            answer = await self.ask(lambda ref: lm.FindParts(ref, key.name, answer_id), PARTS_S)
            if isinstance(answer, lm.PartsFound):
                return answer.parts
        return None

    # ── messages ────────────────────────────────────────────────────────────────────────────────

    async def ask(
        self, message: Callable[[str], object], within_s: float, target: str = lm.LEDGER
    ) -> object:
        """The answer to ``message(ref)``; asked again when its process ends; LedgerGone."""
        ends_at = time.monotonic() + within_s
        transport = await self._connect()
        while True:
            left_s = max(0.0, ends_at - time.monotonic())
            try:
                return await transport.ask(target, message(new_ref()), timeout_s=left_s)
            except (TargetDown, NodeRestarted) as error:
                if time.monotonic() + _RETRY_S > ends_at:
                    raise LedgerGone(str(error)) from error
                await asyncio.sleep(_RETRY_S)
            except SupervisionError as error:
                raise LedgerGone(str(error)) from error

    async def tell(self, message: object) -> None:
        """Send without an answer; it may be lost."""
        with contextlib.suppress(SupervisionError):
            (await self._connect()).notify(lm.LEDGER, message, timeout_s=EVERY_S)


def gone(what: str) -> Refused:
    """The ledger has not answered; raise it."""
    detail = f"the process that {what} does not answer at present; try again"
    return Refused(Failure(Fault.UNAVAILABLE, detail, retry_after_s=2.0))
