"""The stored responses of all workers, as one of them asks the ledger for them."""

from __future__ import annotations

import asyncio
import os
from typing import Final

import msgspec

from actors.messages.payload import PayloadKeeper
from runtime.gateway import ledger_messages as lm
from runtime.gateway.ledger_client import WAIT_S, LedgerClient, LedgerGone, gone
from runtime.gateway.responses_store import Stored
from runtime.gateway.stream_log import content

SETTLE_S: Final = 2.0
"""How long the last frame of a response waits until it is stored."""
_AGAIN_S: Final = 1.0


class KeptResponses:
    """Of one worker. What the ledger has not acknowledged is kept here until it has."""

    def __init__(self, ledger: LedgerClient) -> None:
        self._ledger = ledger
        self._unsaved: dict[str, Stored] = {}
        self._saving: dict[str, asyncio.Task[None]] = {}

    async def keep(self, one: Stored) -> None:
        """Store it. Returns when it is, or when the ledger takes too long; it is retried then."""
        self._unsaved[one.id] = one
        task = self._saving.get(one.id)
        if task is None or task.done():
            task = self._saving[one.id] = asyncio.create_task(self._save(one.id))
        await asyncio.wait({task}, timeout=SETTLE_S)

    async def _save(self, name: str) -> None:
        try:
            while (one := self._unsaved.get(name)) is not None:
                try:
                    await self._put(one)
                except LedgerGone:
                    await asyncio.sleep(_AGAIN_S)
                    continue
                if self._unsaved.get(name) is one:
                    del self._unsaved[name]
        finally:
            del self._saving[name]

    async def _put(self, one: Stored) -> None:
        keeper = PayloadKeeper(msgspec.msgpack.encode(one))
        try:
            await self._ledger.ask(lambda ref: lm.KeepResponse(ref, keeper.payload), WAIT_S)
        finally:
            keeper.close()

    async def find(self, name: str, owner: str) -> Stored | None:
        """The response with this id, for the key that it belongs to."""
        found, _ = await self._found(name, owner, has_history=False)
        return found[-1] if found else None

    async def chain(self, name: str, owner: str) -> tuple[list[Stored], str | None]:
        """A response and all that it continues, oldest first; and the id that is missing."""
        return await self._found(name, owner, has_history=True)

    async def _found(
        self, name: str, owner: str, *, has_history: bool
    ) -> tuple[list[Stored], str | None]:
        own: list[Stored] = []
        wanted: str | None = name
        while wanted is not None and (one := self._unsaved.get(wanted)) is not None:
            if one.owner != owner:
                return [], wanted
            own.insert(0, one)
            wanted = one.previous if has_history else None
        if wanted is None:
            return own, None
        found, missing = await self._asked(wanted, owner, has_history)
        return ([], missing) if missing is not None else ([*found, *own], None)

    async def _asked(
        self, name: str, owner: str, has_history: bool
    ) -> tuple[list[Stored], str | None]:
        fd = os.memfd_create("llama-actors-response", os.MFD_CLOEXEC)
        try:
            room = f"/proc/{os.getpid()}/fd/{fd}"
            answer = await self._ledger.ask(
                lambda ref: lm.FindResponse(ref, name, owner, room, has_history), WAIT_S
            )
            if not isinstance(answer, lm.ResponseFound):
                raise gone("keeps responses")
            packed = answer.content or content(fd)[: answer.n_bytes]
        except LedgerGone:
            raise gone("keeps responses") from None
        finally:
            os.close(fd)
        return msgspec.msgpack.decode(packed, type=list[Stored]), answer.missing

    async def forget(self, name: str, owner: str) -> tuple[bool, int | None]:
        """Drop it: whether it was there, and the number of the worker where it runs still."""
        task = self._saving.get(name)
        if task is not None:
            await asyncio.wait({task}, timeout=SETTLE_S)
        mine = self._unsaved.get(name)
        if mine is not None and mine.owner == owner:
            del self._unsaved[name]
        try:
            answer = await self._ledger.ask(lambda ref: lm.ForgetResponse(ref, name, owner), WAIT_S)
        except LedgerGone:
            raise gone("keeps responses") from None
        if not isinstance(answer, lm.ResponseForgotten):
            raise gone("keeps responses")
        return answer.was_there or mine is not None, answer.running_at
