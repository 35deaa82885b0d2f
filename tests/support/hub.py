"""A hub of models on the loopback: what ``huggingface_hub`` asks, with faults on demand.

Speaks the API of a repository with its files' digests (``/api/models/…?blobs=true``) and
``/resolve/``, which redirects to storage on another host name, as the real one does. Counts what it
is asked for and every byte that it sends.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

PIECE = 64 << 10


@dataclass
class Repo:
    """A repository: its files, and who may read it."""

    files: dict[str, bytes]
    token: str | None = None
    """Needed to see it at all."""
    is_gated: bool = False
    is_forbidden: bool = False
    in_git: frozenset[str] = frozenset()
    """Files that are kept in git itself, with a SHA-1."""
    revision: str = "1" * 40


@dataclass
class Hub:
    """What the server knows, what it shall do wrong, and what it has counted."""

    repos: dict[str, Repo] = field(default_factory=dict)
    port: int = 0
    cuts: list[int] = field(default_factory=list)
    """Each request for a file takes the first: after so many bytes the connection ends."""
    stalls_at: int | None = None
    """Requests for a file send so many bytes, then nothing until ``go_on``."""
    stalls_on: bytes | None = None
    """Only for the file of this content."""
    answers: list[int] = field(default_factory=list)
    """Each request for a file takes the first status; 0 answers as usual."""
    serves_ranges: bool = True
    garbles: bool = False
    go_on: threading.Event = field(default_factory=threading.Event)
    has_stalled: threading.Event = field(default_factory=threading.Event)
    asked: list[str] = field(default_factory=list)
    """Paths of requests."""
    ranges: list[str | None] = field(default_factory=list)
    """Of requests for a file."""
    tokens: list[tuple[str, str | None]] = field(default_factory=list)
    """Where a token was sent: ``hub`` or ``storage``."""
    sent: int = 0
    """Bytes of files."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def file(self, digest: str) -> bytes:
        files = (one for repo in self.repos.values() for one in repo.files.values())
        return next(one for one in files if hashlib.sha256(one).hexdigest() == digest)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(path)
        where = "storage" if path.startswith("/storage/") else "hub"
        self.hub.tokens.append((where, self.headers.get("Authorization")))
        if where == "storage":
            self._send_file(self.hub.file(path.removeprefix("/storage/")))
        elif path.startswith("/api/models/"):
            self._describe(path.removeprefix("/api/models/"))
        elif "/resolve/" in path:
            name, _, rest = path[1:].partition("/resolve/")
            self._resolve(name, rest.partition("/")[2])
        else:
            self._refuse(404)

    # ── the hub ─────────────────────────────────────────────────────────────────────────────────

    def _repo(self, name: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        token = self.headers.get("Authorization")
        if repo is None:
            self._refuse(401 if token is None else 404, "RepoNotFound")
        elif repo.token is not None and token != f"Bearer {repo.token}":
            self._refuse(401, "RepoNotFound")
        elif repo.is_forbidden:
            self._refuse(403)
        else:
            return repo
        return None

    def _describe(self, name: str) -> None:
        repo = self._repo(name)
        if repo is not None:
            files = [_sibling(repo, path, data) for path, data in sorted(repo.files.items())]
            self._answer({"id": name, "sha": repo.revision, "siblings": files, "tags": []})

    def _resolve(self, name: str, path: str) -> None:
        repo = self._repo(name)
        if repo is None:
            return
        if repo.is_gated:
            self._refuse(403, "GatedRepo")
        elif path not in repo.files:
            self._refuse(404, "EntryNotFound")
        else:
            data = repo.files[path]
            digest = hashlib.sha256(data).hexdigest()
            self._headers(
                302,
                {
                    "Location": f"http://localhost:{self.hub.port}/storage/{digest}",
                    "X-Repo-Commit": repo.revision,
                    "X-Linked-Etag": f'"{digest}"',
                    "X-Linked-Size": str(len(data)),
                    "Content-Length": "0",
                },
            )

    # ── storage ─────────────────────────────────────────────────────────────────────────────────

    def _send_file(self, data: bytes) -> None:
        hub = self.hub
        wanted = self.headers.get("Range")
        hub.ranges.append(wanted)
        status = hub.answers.pop(0) if hub.answers else 0
        if status:
            self._refuse(status)
            return
        start = 0
        if wanted is not None and hub.serves_ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        cut = hub.cuts.pop(0) if hub.cuts else None
        if hub.garbles:
            data = bytes(len(data))
        headers = {"Content-Length": str(len(data) - start), "ETag": '"x"'}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._headers(206 if start else 200, headers)
        if self.command == "GET":
            is_meant = hub.stalls_on in (None, data)
            self._send(data[start:], cut, hub.stalls_at if is_meant else None)

    def _send(self, data: bytes, cut: int | None, stall: int | None) -> None:
        hub = self.hub
        end = min(one for one in (len(data), cut, stall) if one is not None)
        try:
            for at in range(0, end, PIECE):
                piece = data[at : min(end, at + PIECE)]
                self.wfile.write(piece)
                hub.sent += len(piece)
            self.wfile.flush()
            if stall is not None and end == stall < len(data):
                hub.has_stalled.set()
                hub.go_on.wait(60)
        except OSError:
            pass  # the client is gone
        if end < len(data):
            self.close_connection = True

    # ── answers ─────────────────────────────────────────────────────────────────────────────────

    def _answer(self, plain: dict[str, Any]) -> None:
        body = json.dumps(plain).encode()
        self._headers(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        if self.command == "GET":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str = "") -> None:
        self._headers(status, {"Content-Length": "0"} | ({"X-Error-Code": code} if code else {}))

    def _headers(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _sibling(repo: Repo, path: str, data: bytes) -> dict[str, Any]:
    about: dict[str, Any] = {"rfilename": path, "size": len(data)}
    if path in repo.in_git:
        blob = b"blob %d\0" % len(data) + data
        return about | {"blobId": hashlib.sha1(blob).hexdigest()}
    sha256 = hashlib.sha256(data).hexdigest()
    lfs = {"sha256": sha256, "size": len(data), "pointerSize": 134}
    return about | {"blobId": "0" * 40, "lfs": lfs}


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that runs in threads of this process, until the end of the block."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = False
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()
