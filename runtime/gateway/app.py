"""The gateway as an ASGI application: every route, over one ``Service``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from starlette.applications import Starlette
from starlette.routing import Route, compile_path

from runtime.gateway.call import Call, Endpoint, Handler, Receive, Send
from runtime.gateway.keys import Keys
from runtime.gateway.openapi import document
from runtime.gateway.routes import (
    anthropic,
    health,
    native,
    observe,
    ollama,
    openai,
    own,
    own_cache,
    own_pull,
    own_replies,
    page,
    responses,
    streams,
)
from runtime.gateway.service import Service
from runtime.gateway.wire.failure import Failure, Fault, Refused

MODULES: Final[tuple[Any, ...]] = (
    openai, responses, anthropic, ollama, native, streams, own, own_cache, own_replies,
    own_pull, observe, page, health,
)  # fmt: skip
"""Each has ROUTES: methods (several with blanks between them), path, handler; and may have BODIES:
the struct of a JSON body, by path."""


class App:
    """All routes. A path without parameters is looked up; Starlette matches the others."""

    def __init__(self, service: Service, keys: Callable[[], Keys | None] = lambda: None) -> None:
        """``keys`` returns the keys that count now; None: no key is needed."""
        endpoints = {
            path: Endpoint(_by_method(handlers), service, keys, path)
            for path, handlers in route_table().items()
        }
        self._exact = {path: one for path, one in endpoints.items() if "{" not in path}
        rest = Endpoint(_not_found, service, keys)
        routes = [Route(path, one) for path, one in endpoints.items() if "{" in path]
        self._matched = Starlette(routes=[*routes, Route("/{rest:path}", rest)])
        self._matched.router.redirect_slashes = False

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        found = self._exact.get(scope["path"]) if scope["type"] == "http" else None
        await (found or self._matched)(scope, receive, send)


def route_table() -> dict[str, dict[str, Handler]]:
    """Handlers by path and method."""
    routes: dict[str, dict[str, Handler]] = {}
    for module in MODULES:
        for methods, path, handler in module.ROUTES:
            for method in methods.split():
                routes.setdefault(path, {})[method] = handler
    routes["/openapi.json"] = {"GET": _openapi}
    return routes


async def _openapi(call: Call) -> None:
    bodies: dict[str, Any] = {}
    for module in MODULES:
        bodies |= getattr(module, "BODIES", {})
    await call.answer_json(document(route_table(), bodies))


def find_route(method: str, path: str) -> tuple[Handler, dict[str, Any], str] | None:
    """The handler of a request, the parameters in its path, and the pattern it matches."""
    for pattern, handlers in route_table().items():
        expression, _, convertors = compile_path(pattern)
        found = expression.match(path)
        if found and method in handlers:
            values = found.groupdict()
            parameters = {name: convertors[name].convert(one) for name, one in values.items()}
            return handlers[method], parameters, pattern
    return None


def _by_method(handlers: dict[str, Handler]) -> Handler:
    allowed = sorted({*handlers, "OPTIONS", *(("HEAD",) if "GET" in handlers else ())})

    async def handle(call: Call) -> None:
        method = call.scope["method"]
        handler = handlers.get("GET" if method == "HEAD" else method)
        if method == "OPTIONS":
            await call.answer_options(allowed)
        elif handler is None:
            detail = f"{call.scope['path']} has no {method}; it has {', '.join(allowed)}"
            raise Refused(Failure(Fault.NO_METHOD, detail, allow=", ".join(allowed)))
        else:
            await handler(call)

    return handle


async def _not_found(call: Call) -> None:
    path = call.scope["path"]
    raise Refused(
        Failure(Fault.NOT_FOUND, f"there is no {path}; /openapi.json lists what there is")
    )
