"""``/openapi.json``: the routes, and the bodies that they read, from the types that read them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Final

import msgspec

from runtime.gateway.call import Handler

_PARAMETER: Final = re.compile(r"\{(\w+)(?::\w+)?\}")
_ERRORS: Final = {
    "400": "the request is wrong: the message names the place",
    "401": "a key is missing, or not known",
    "404": "there is no such model, or no such thing",
    "503": "too many requests, or the node is being started or stopped; retry-after has the time",
}


def document(
    routes: Mapping[str, Mapping[str, Handler]], bodies: Mapping[str, Any]
) -> dict[str, Any]:
    """OpenAPI 3.1: every path and method; ``bodies`` are the structs of JSON bodies, by path."""
    kinds = list(bodies.values())
    found, parts = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    schemas = dict(zip(bodies, found, strict=True))
    return {
        "openapi": "3.1.0",
        "info": {"title": "llama-actors", "version": version("llama-actors")},
        "paths": {
            _PARAMETER.sub(r"{\1}", path): {
                method.lower(): _operation(path, method, handler, schemas.get(path))
                for method, handler in handlers.items()
            }
            for path, handlers in sorted(routes.items())
        },
        "components": {
            "schemas": parts,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _operation(path: str, method: str, handler: Handler, schema: Any) -> dict[str, Any]:
    about = (handler.__doc__ or "").strip().partition("\n")[0]
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(path)
    ]
    operation: dict[str, Any] = {
        "operationId": f"{method.lower()} {path}",
        "summary": about or handler.__name__.replace("_", " "),
        "responses": {
            "200": {"description": "the answer, or a stream of it"},
            **{status: {"description": text} for status, text in _ERRORS.items()},
        },
    }
    if parameters:
        operation["parameters"] = parameters
    if schema is not None and method == "POST":
        content = {"application/json": {"schema": schema}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation
