"""The gateway as an ASGI application: every route, over one ``Service``."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from starlette.applications import Starlette
from starlette.routing import Route

from runtime.gateway.call import Call, Endpoint, Handler
from runtime.gateway.keys import Keys
from runtime.gateway.routes import health, native, openai
from runtime.gateway.service import Service
from runtime.gateway.wire.failure import Failure, Fault, Refused

Table = Iterable[tuple[str, str, Handler]]
"""Methods (several with blanks between them), path, handler."""
TABLES: tuple[Table, ...] = (openai.ROUTES, native.ROUTES, health.ROUTES)


def build_app(service: Service, keys: Callable[[], Keys | None] = lambda: None) -> Starlette:
    """All routes. ``keys`` returns the keys that count now; None: no key is needed."""
    routes: dict[str, dict[str, Handler]] = {}
    for table in TABLES:
        for methods, path, handler in table:
            for method in methods.split():
                routes.setdefault(path, {})[method] = handler

    def endpoint(handler: Handler) -> Endpoint:
        return Endpoint(handler, service, keys)

    found = [Route(path, endpoint(_by_method(handlers))) for path, handlers in routes.items()]
    found.append(Route("/{rest:path}", endpoint(_not_found)))
    app = Starlette(routes=found)
    app.router.redirect_slashes = False
    return app


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
