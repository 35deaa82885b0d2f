"""One HTTP request, as routes see it: whose it is, its body, and how it is answered."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any, Final

from starlette.requests import ClientDisconnect, Request

from runtime import errors
from runtime.gateway.connection import CONNECTION, Connection, logged_head
from runtime.gateway.conversation_streams import Conversations
from runtime.gateway.explained import Explained
from runtime.gateway.generation import BrokenStream, ClientGone, Generation, Socket
from runtime.gateway.guard import check_host, check_key, check_origin, check_site
from runtime.gateway.keys import ANYONE, Key, Keys
from runtime.gateway.prompts import KeptPrompt, Prompts
from runtime.gateway.service import Birth, Service
from runtime.gateway.stream_log import MODEL, Logged, LoggedHead, Mark, StreamLog
from runtime.gateway.time_limit import ReplyStream, time_limit_of
from runtime.gateway.trace import Trace
from runtime.gateway.wire.bodies import encode
from runtime.gateway.wire.canonical import canonical
from runtime.gateway.wire.errors import Api, api_of, error_body, status_of
from runtime.gateway.wire.failure import Failure, Fault, Refused, failure_of, invalid
from runtime.gateway.wire.rates import Rates, rate_headers
from runtime.gateway.wire.wanted import Answer, Head, Wanted

Scope = Any
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]
JSON: Final = b"application/json"
_LOG: Final = logging.getLogger("supervision.http")


class Call:
    """One request."""

    def __init__(
        self, service: Service, scope: Scope, receive: Receive, send: Send, route: str = ""
    ) -> None:
        """``route``: the pattern that its path has matched."""
        self.service = service
        self.scope = scope
        self.request = Request(scope, receive)
        self.headers: Mapping[bytes, bytes] = dict(scope["headers"])
        self.id = f"req_{secrets.token_hex(12)}"
        self.key: Key = ANYONE
        has_version = b"anthropic-version" in self.headers
        self.api: Api = api_of(scope["path"], has_version=has_version)
        self.origin: bytes | None = None
        """The page that calls, where one does and may."""
        self.has_begun = False
        self.birth = Birth()
        self.log: StreamLog | None = None
        """Where the answer is logged, so that a successor can continue it."""
        self.logged: Logged | None = None
        """What a predecessor had logged of the answer that is continued here."""
        self.n_tokens = 0
        """Tokens that were computed for it: what a key's limits count."""
        self.rates: Rates | None = None
        """What is left to its key, where that has limits."""
        self.settle: Callable[[], Awaitable[None]] | None = None
        """What must have been done before the last bytes of the answer are sent."""
        self._receive = receive
        self._send = send
        self.trace = Trace(
            self.id,
            method=scope["method"],
            route=route,
            api=self.api,
            client=self.headers.get(b"user-agent", b"").decode("latin-1"),
            worker=service.number,
        )
        self.trace.part_of(self.headers)

    @property
    def is_unix(self) -> bool:
        """Whether it came by a Unix socket, where no browser is."""
        connection = self._connection
        return connection is not None and connection.is_unix

    @property
    def _connection(self) -> Connection | None:
        found: Connection | None = self.scope.get(CONNECTION)
        return found

    def check(self, keys: Keys | None) -> None:
        """Whether this caller may call at all; Refused."""
        settings = self.service.settings
        given = [value for name, value in self.scope["headers"] if name == b"host"]
        host = check_host(given, settings.hosts, is_unix=self.is_unix)
        origin = self.headers.get(b"origin")
        today = datetime.datetime.now(datetime.UTC).date()
        if self.scope["method"] == "OPTIONS":  # asks whether it may; the answer's headers tell
            with contextlib.suppress(Refused):
                self.origin = check_origin(origin, host, settings.origins)
        else:
            self.origin = check_origin(origin, host, settings.origins)
            check_site(self.headers, settings.origins)
            self.key = check_key(self.headers, keys, self.scope["path"], today)
            self.trace.called_by(self.key)

    async def begin_log(self) -> None:
        """Log the answer from here on, where that can be: the request has come, all of it."""
        connection = self._connection
        is_stream = self.scope["method"] == "POST" or b"stream=" in self.scope["query_string"]
        if connection is not None and is_stream:
            body = await self.body()
            self.log = connection.begin_log(self.id, self.scope, body, self.key, self.birth)

    async def logged_head(self, name: str) -> LoggedHead:
        """What the log of something begins with that outlives this request."""
        return logged_head(name, "", self.scope, await self.body(), self.key, self.birth)

    def end_log(self, *, is_complete: bool) -> None:
        """The answer is over."""
        if self.log is not None:
            self.scope[CONNECTION].end_log(self.log, is_complete=is_complete)

    def require_admin(self) -> None:
        """Refused where the caller may not change the node."""
        if not self.key.is_admin:
            raise Refused(Failure(Fault.FORBIDDEN, "only a key with admin = true may do that"))

    async def body(self) -> bytes:
        """All of it."""
        return await self.request.body()

    # ── answers ─────────────────────────────────────────────────────────────────────────────────

    def own_headers(self) -> list[tuple[bytes, bytes]]:
        """What every answer has; Anthropic's clients look for the second."""
        ours = self.id.encode()
        found = [(b"x-request-id", ours), (b"request-id", ours)]
        if self.origin is not None:
            found += [(b"access-control-allow-origin", self.origin), (b"vary", b"Origin")]
        if self.rates is not None:
            found += rate_headers(self.rates, self.api, time.time())
        return found

    async def answer(
        self,
        body: bytes,
        *,
        status: int = 200,
        content_type: bytes = JSON,
        headers: Headers = (),
    ) -> None:
        """Send a whole answer."""
        if self.settle is not None:
            await self.settle()
        self.has_begun = True
        self.trace.status = status
        found = [
            (b"content-type", content_type),
            (b"content-length", b"%d" % len(body)),
            *self.own_headers(),
            *headers,
        ]
        connection = self._connection
        if self.log is not None:
            self.log.note(-1, Mark("end"))
        if connection is not None:
            connection.tap.hold()  # a successor finds all of it in the log, or nothing
        try:
            await self._send({"type": "http.response.start", "status": status, "headers": found})
            await self._send({"type": "http.response.body", "body": body, "more_body": False})
        finally:
            if connection is not None:
                connection.tap.release()

    async def answer_options(self, allowed: Sequence[str]) -> None:
        """Send what the path has, and to a page that may call: that it may."""
        headers = [(b"allow", ", ".join(allowed).encode())]
        if self.origin is not None:
            asked = self.headers.get(b"access-control-request-headers", b"*")
            headers += [
                (b"access-control-allow-methods", b"GET, POST, DELETE, OPTIONS"),
                (b"access-control-allow-headers", asked),
                (b"access-control-allow-credentials", b"true"),
                (b"access-control-max-age", b"600"),
            ]
        await self.answer(b"", headers=headers)

    async def answer_json(self, value: object, *, status: int = 200) -> None:
        """Send a value as JSON."""
        await self.answer(encode(value), status=status)

    async def answer_nothing(self) -> None:
        """Send that it is done, without a body."""
        self.has_begun = True
        self.trace.status = 204
        headers = self.own_headers()
        await self._send({"type": "http.response.start", "status": 204, "headers": headers})
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def fail(self, failure: Failure) -> None:
        """Send why there is no other answer, in the words of the API that was called."""
        headers: list[tuple[bytes, bytes]] = []
        self.rates = failure.rates or self.rates
        self.trace.error = failure.fault.value
        if failure.retry_after is not None:
            headers.append((b"retry-after", failure.retry_after.encode()))
        if failure.allow is not None:
            headers.append((b"allow", failure.allow.encode()))
        if failure.fault in (Fault.NO_KEY, Fault.FORBIDDEN, Fault.TOO_LARGE):
            headers.append((b"connection", b"close"))  # its body is not read
        body = error_body(failure, self.api, self.id)
        await self.answer(body, status=status_of(failure, self.api), headers=headers)

    async def fail_unless_begun(self, failure: Failure) -> bool:
        """``fail``, and True, unless another answer has begun."""
        if self.has_begun:
            return False
        await self.fail(failure)
        return True

    def counted(self) -> AbstractAsyncContextManager[None]:
        """Count it among the requests that run; Refused where it may not."""
        return self._counted(is_checked=True)

    @contextlib.asynccontextmanager
    async def _counted(self, *, is_checked: bool) -> AsyncIterator[None]:
        self.rates = await self.service.begin(self.id, self.key, is_checked=is_checked)
        try:
            yield
        finally:
            self.service.end(self.id, self.n_tokens)

    async def model(self, asked: str | None, *, is_exact: bool = False) -> str:
        """The id of the model that a name means; Refused. As ``Service.model``."""
        found = await self.service.model(asked, self.key, is_exact=is_exact)
        self.trace.model = found
        return found

    def head(self, wanted: Wanted, model: str) -> Head:
        """What is fixed of the answer by this model."""
        if self.log is not None:
            self.log.note(-1, Mark(MODEL + model))
        return self.service.head(self.birth, model, needs_pieces=wanted.needs_pieces)

    def canonical(self, wanted: Wanted) -> Wanted:
        """The request by the canonical rules of this gateway, and then of the key."""
        rules = self.service.settings.canonicalise
        return canonical(wanted, dict.fromkeys((*rules, *self.key.rules)))

    async def marked(self, wanted: Wanted) -> Wanted:
        """The request, marked where it is a side request of an agent."""
        n_bytes = len(await self.body())
        return self.service.agents.marked(wanted, self.key, n_bytes, time.monotonic())

    async def generate(
        self,
        wanted: Wanted,
        make: Callable[[Head, Wanted], Answer],
        model: str | None = None,
        head: Head | None = None,
    ) -> None:
        """Answer by replies of a model, as a stream or as one object."""
        service, key, asked = self.service, self.key, wanted
        wanted = await self.marked(self.canonical(wanted))
        if wanted.n_replies > 1 and wanted.options.get("session"):
            raise invalid("a session has one reply at a time; leave session out, or n", "session")
        if head is None:
            head = self.head(wanted, model or await self.model(wanted.model))
        fixed = head
        client = await service.client()
        gone_s = 0.0 if self.logged is None else max(0.0, time.time() - self.logged.head.at)
        is_shown = wanted.is_stream and not wanted.fails_late
        limit = time_limit_of(wanted, is_shown=is_shown, gone_s=gone_s)
        conversations = service.own(Conversations)
        async with self.counted():
            answer = make(fixed, wanted)
            kept = conversations.begin(self, answer, is_stream=wanted.is_stream)

            def begin(number: int) -> ReplyStream:
                reply = service.stream(
                    client, fixed, wanted, number, key, limit, traceparent=self.trace.traceparent
                )
                return reply if kept is None else kept.begun(reply)

            trace = self.trace
            trace.answer_id, trace.is_stream = fixed.id, wanted.is_stream
            trace.asks(wanted, fixed.model)
            service.traces.asks(trace)
            if service.settings.prompts:
                await self._keep_prompt(asked, wanted, fixed)
            socket = self.socket()
            if kept is not None:  # it sees each part itself
                socket = replace(socket, writer=None)
            generation = Generation(
                service, wanted, fixed, answer, begin, self.own_headers(), socket, trace
            )
            try:
                if kept is None:
                    await self.show(generation)
                else:
                    await kept.run(generation, self._noting_begin, self.answer, self.log)
            finally:
                if kept is not None:
                    conversations.forget_unless_begun(kept)
                self.n_tokens += generation.n_computed
                service.own(Explained).note(key, self.id, fixed, wanted, generation.done)

    async def _keep_prompt(self, asked: Wanted, wanted: Wanted, head: Head) -> None:
        rules = (*self.service.settings.canonicalise, *self.key.rules)
        size = len(await self.body())
        one = KeptPrompt(self.id, head.id, self.key.name, head.model, asked, wanted, rules, size)
        self.service.own(Prompts).note(one)

    def socket(self, *, notes_events: bool = True) -> Socket:
        """What is known of the socket that the answer goes to."""
        connection = self._connection
        if connection is None:
            return Socket(logged=self.logged)
        return Socket(self.log, connection.is_paused, self.logged, notes_events, connection.writer)

    async def show(self, generation: Generation) -> None:
        """Answer by a generation. Raises what that fails with before it has begun, ClientGone."""
        await generation.run(self._receive, self._noting_begin, self.answer)

    async def _noting_begin(self, message: Any) -> None:
        self.has_begun = True
        if message["type"] == "http.response.start":
            self.trace.status = message["status"]
        is_last = message["type"] == "http.response.body" and not message.get("more_body")
        if is_last and self.settle is not None:
            await self.settle()
        await self._send(message)


Handler = Callable[[Call], Awaitable[None]]


class Endpoint:
    """A route: a handler as an ASGI application, whose errors are answers."""

    def __init__(
        self,
        handler: Handler,
        service: Service,
        keys: Callable[[], Keys | None],
        route: str = "",
    ) -> None:
        self._handler = handler
        self._service = service
        self._keys = keys
        self._route = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = Call(self._service, scope, receive, send, self._route)
        is_complete = False
        with tracing(call):
            try:
                call.check(self._keys())
                await call.begin_log()
                await self._handler(call)
                is_complete = True
            except (ClientGone, ClientDisconnect, BrokenStream, asyncio.CancelledError) as error:
                # No answer is read; uvicorn closes a connection whose answer is not whole.
                call.trace.outcome = outcome_of(error)
            except (Refused, errors.LlamaActorsError) as error:
                is_complete = await call.fail_unless_begun(failure_of(error))
            except Exception as error:  # noqa: BLE001 - a fault here is an answer, and a log line
                _LOG.exception("%s %s failed (%s)", scope["method"], scope["path"], call.id)
                is_complete = await call.fail_unless_begun(failure_of(error))
            finally:
                call.end_log(is_complete=is_complete)


@contextlib.contextmanager
def tracing(call: Call) -> Iterator[None]:
    """Its trace is among those that run, until its end."""
    traces, trace = call.service.traces, call.trace
    traces.begin(trace)
    try:
        yield
    except BaseException as error:
        trace.outcome = outcome_of(error)
        raise
    finally:
        failed = trace.error is not None or trace.status >= 400
        traces.end(trace, trace.outcome or ("failed" if failed else "ok"))


def outcome_of(error: BaseException) -> str:
    """How a request has ended whose answer is not whole."""
    match error:
        case ClientGone() | ClientDisconnect():
            return "client_gone"
        case asyncio.CancelledError():
            return "stopped"
        case _:
            return "broken"
