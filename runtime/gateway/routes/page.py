"""The observer page: one document at ``/``, and its files. Nothing of it comes from elsewhere."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Final

from runtime.gateway.call import Call
from runtime.gateway.wire.failure import Failure, Fault, Refused

FOLDER: Final = Path(__file__).resolve().parent.parent / "page"
DOCUMENT: Final = "index.html"
OLLAMA_RUNS: Final = b"Ollama is running"
"""Clients of Ollama compare this text."""
TYPES: Final = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
POLICY: Final = (
    b"default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    b"object-src 'none'"
)
HEADERS: Final = (
    (b"content-security-policy", POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-cache"),
)


@lru_cache(maxsize=1)
def files() -> dict[str, bytes]:
    """The files of the page, by their names; read once."""
    return {one.name: one.read_bytes() for one in FOLDER.iterdir() if one.suffix in TYPES}


def is_browser(accept: bytes) -> bool:
    """Whether a client prefers a document for people."""
    return b"text/html" in accept.lower()


async def root(call: Call) -> None:
    """The page, for a browser; for others that the gateway runs, in the words of Ollama."""
    varies = (b"vary", b"Accept")
    if is_browser(call.headers.get(b"accept", b"")):
        body, kind = files()[DOCUMENT], TYPES[".html"]
        await call.answer(body, content_type=kind, headers=(*HEADERS, varies))
        return
    await call.answer(OLLAMA_RUNS, content_type=b"text/plain; charset=utf-8", headers=(varies,))


async def file(call: Call) -> None:
    """A file of the page."""
    name = call.request.path_params["name"]
    body = files().get(name)
    if body is None:
        raise Refused(Failure(Fault.NOT_FOUND, f"the page has no file {name!r}"))
    await call.answer(body, content_type=TYPES[Path(name).suffix], headers=HEADERS)


ROUTES: Final = (
    ("GET", "/", root),
    ("GET", "/llama/ui/{name}", file),
)
