"""Our own API: what the observer page reads and does; see docs/observer.md."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import Final

import msgspec

from runtime.client.tree import TreeNode
from runtime.gateway.call import Call
from runtime.gateway.observer import Events, place_of
from runtime.gateway.why import why as why_of_any
from runtime.gateway.wire.bodies import read
from runtime.gateway.wire.failure import Failure, Fault, Refused, invalid

_LOG: Final = logging.getLogger("supervision.http")


class KillBody(msgspec.Struct, kw_only=True):
    """The body of ``POST /llama/v1/tree/kill``."""

    id: str
    """Of a process in the tree."""
    incarnation: int | None = None
    """Only if it is still this one."""


async def events(call: Call) -> None:
    """Requests as they change, and for administrators the node once a second: a stream of events.

    A key that is no administrator's reads of its own requests.
    """
    watch = call.service.watch
    if watch.is_full:
        detail = "this worker has as many streams of events open as it may; close one"
        raise Refused(Failure(Fault.OVERLOADED, detail, retry_after_s=5.0))
    last = call.headers.get(b"last-event-id", b"").decode("latin-1")
    await call.show(Events(call, watch, place_of(last)))


async def kill(call: Call) -> None:
    """End a process of the node with SIGKILL, so that it can be watched to heal."""
    call.require_admin()
    asked = read(await call.body(), KillBody)
    client = await call.service.client()
    if call.logged is not None:
        # The worker that had begun this is gone, which may be what it has done.
        await call.answer_json({"id": asked.id, "pid": None, "incarnation": asked.incarnation})
        return
    found = _killable(await client.tree(), asked)
    pid = int(found.pid or 0)
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        raise _gone(asked.id) from None
    try:
        if _killable(await client.tree(), asked).pid != pid:
            raise _gone(asked.id)  # its number may be another process's now
        who = f"the key {call.key.name!r}" if call.key.name else "a caller without a key"
        _LOG.warning("%s (process %d) is killed: %s asked for it", asked.id, pid, who)
        answer = {"id": asked.id, "pid": pid, "incarnation": found.incarnation}
        if pid == os.getpid():
            await call.answer_json(answer)
            loop, own = asyncio.get_running_loop(), os.dup(fd)
            loop.call_later(_OWN_END_S, signal.pidfd_send_signal, own, signal.SIGKILL)
            return
        signal.pidfd_send_signal(fd, signal.SIGKILL)
    except ProcessLookupError:
        raise _gone(asked.id) from None
    finally:
        os.close(fd)
    await call.answer_json(answer)


_OWN_END_S: Final = 0.1
"""The worker that answers ends a moment after its answer was written."""


def _killable(tree: TreeNode, asked: KillBody) -> TreeNode:
    """The process that is meant; Refused."""
    found = tree.find(asked.id)
    if found is None:
        raise Refused(Failure(Fault.NOT_FOUND, f"the tree has no {asked.id!r}", "id"))
    if found.kind == "launcher":
        raise invalid("the launcher is what starts the others again; it is not killed here", "id")
    if asked.incarnation not in (None, found.incarnation) or found.pid is None:
        raise _gone(asked.id)
    return found


def _gone(name: str) -> Refused:
    return Refused(Failure(Fault.CONFLICT, f"{name!r} has no such process any more", "id"))


async def why(call: Call) -> None:
    """The parts of a request's prompt, and why no more of it was warm, with gateway.prompts."""
    call.require_admin()
    service, name = call.service, call.request.path_params["name"]
    if not service.settings.prompts:
        detail = "prompts are not kept here; set gateway.prompts = true to see their parts"
        raise Refused(Failure(Fault.FORBIDDEN, detail))
    found = await why_of_any(service, name)
    if found is None:
        detail = f"no prompt of {name!r} is kept: only the last ones of each worker are"
        raise Refused(Failure(Fault.NOT_FOUND, detail))
    await call.answer(found)


BODIES: Final = {"/llama/v1/tree/kill": KillBody}
ROUTES: Final = (
    ("GET", "/llama/v1/events", events),
    ("POST", "/llama/v1/tree/kill", kill),
    ("GET", "/llama/v1/requests/{name}/why", why),
)
