"""Whether a model can do what a request wishes of its thinking.

Agents send ``thinking`` and an effort to every model. The runtime refuses what the chat template
has no way for, so that no caller is misled; for these APIs it is left out, and remarked on.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import replace
from typing import Any, Final

from runtime import errors
from runtime.client.async_client import AsyncClient
from runtime.gateway.call import Call
from runtime.gateway.wire.wanted import Wanted

WISHES: Final = ("enable_thinking", "reasoning_effort")
KEPT: Final = 256
KNOWN_S: Final = 60.0
"""How long an answer counts: another file may be loaded under the model's name."""
_ASKED: Final = ({"role": "user", "content": "Hello"},)


async def possible(call: Call, model: str, wanted: Wanted) -> Wanted:
    """The request as this model can answer it."""
    client = await call.service.client()
    return await call.service.own(Wishes).possible(client, model, wanted)


class Wishes:
    """What the models of a node made of the wishes so far, for the requests of one worker."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[object, ...], tuple[float, str]] = OrderedDict()

    async def possible(self, client: AsyncClient, model: str, wanted: Wanted) -> Wanted:
        """The request without what this model cannot do, and a remark on that."""
        wishes = {name: wanted.options[name] for name in WISHES if name in wanted.options}
        if not wishes:
            return wanted
        refusal = await self._refusal(client, model, wishes)
        if not refusal:
            return wanted
        options = {name: one for name, one in wanted.options.items() if name not in wishes}
        return replace(wanted, options=options, remarks=(*wanted.remarks, refusal))

    async def _refusal(self, client: AsyncClient, model: str, wishes: dict[str, Any]) -> str:
        """Why it cannot be; empty: it can."""
        place = (model, *(str(wishes.get(name)) for name in WISHES))
        at, found = self._kept.get(place, (float("-inf"), ""))
        if time.monotonic() - at < KNOWN_S:
            return found
        try:
            await client.apply_chat_template(model, _ASKED, **wishes)
            found = ""
        except errors.NotSupported as error:
            found = str(error)
        self._kept[place] = time.monotonic(), found
        self._kept.move_to_end(place)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return found
