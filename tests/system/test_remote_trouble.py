"""Commands on a gateway that is not there, is not ours, breaks off, or is reached in other ways."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import RuntimeConfig
from runtime.cli.main import main
from runtime.errors import (
    ConfigError,
    GatewayRefused,
    GatewayUnreachable,
    InvalidRequest,
    ModelUnknown,
    NotAGateway,
)
from runtime.remote import connection
from runtime.remote.address import parse_address
from runtime.remote.node import RemoteNode
from runtime.settings.gateway import GatewaySettings, Listen
from tests.support.nodes import ROOT, free_port
from tests.support.runtime_nodes import LeakCheck, started

pytestmark = pytest.mark.system

TLS = ROOT / "tests" / "support" / "tls"
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
TOKEN = {
    "reply": 0, "index": 0, "tokens": [5], "text": "Once", "logprobs": [], "kind": "text",
}  # fmt: skip


def frame(name: str, value: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps(value)}\n\n".encode()


def answer(status: str, body: bytes, *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", "connection: close", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


@contextlib.contextmanager
def serving(reply: bytes, *, holds: bool = False) -> Iterator[str]:
    """A server that answers anything with these bytes, and then closes the connection, or holds."""
    listener = socket.create_server(("127.0.0.1", 0))
    with listening(listener, reply, holds=holds):
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def listening(listener: socket.socket, reply: bytes, *, holds: bool = False) -> Iterator[None]:
    ended = threading.Event()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                taken, _ = listener.accept()
                with taken:
                    taken.recv(1 << 16)
                    taken.sendall(reply)
                    if holds:
                        ended.wait()

    with listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def asked(url: str, **more: object) -> RemoteNode:
    return RemoteNode(parse_address(url, **more))  # type: ignore[arg-type]


OWN_ERROR = {"message": "said so", "type": "x", "param": None, "code": None}


def refused(status: str, error: dict[str, object], *headers: str) -> bytes:
    return answer(status, json.dumps({"error": OWN_ERROR | error}).encode(), *headers)


OURS = ("x-request-id: req_0", "request-id: req_0", "content-type: application/json")


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", NotAGateway, "its answer is no HTTP"),
        (b"", GatewayUnreachable, "closed without an answer"),
        (answer("200 OK", b"<html>"), NotAGateway, "its answer is no JSON"),
        (answer("200 OK", b'{"data": []}'), NotAGateway, "the models cannot be read"),
        (answer("200 OK", b"[]"), NotAGateway, "its answer cannot be read"),
        (answer("404 Not Found", b"nothing"), NotAGateway, "it answered 404"),
        (
            answer("404 Not Found", b'{"error":{"message":"File Not Found","code":404}}'),
            NotAGateway, "no llama-actors gateway (it answered 404)",
        ),
        (
            refused("404 Not Found", {}, *OURS),
            NotAGateway, "another version of llama-actors",
        ),
        (
            refused("404 Not Found", {"code": "model_not_found"}, *OURS),
            ModelUnknown, "said so",
        ),
        (
            refused("400 Bad", {"kind": "ConfigError", "message": "n_ctx: no"}),
            ConfigError, "n_ctx: no",
        ),
        (
            refused("400 Bad", {"kind": "SystemExit"}),
            InvalidRequest, "said so",
        ),
        (answer("301 Moved", b"", "location: https://x.example/"), NotAGateway, "redirects to https://x.example/"),
        (answer("502 Bad Gateway", b"<html>"), GatewayUnreachable, "a proxy before the gateway"),
        (
            refused("503 Unavailable", {}, "retry-after: 7"),
            GatewayUnreachable, "cannot answer now (said so); try again after 7 s",
        ),
        (answer("504 Timeout", b""), GatewayUnreachable, "timed out"),
        (
            refused("429 Too Many", {}),
            GatewayRefused, "the limit of this key",
        ),
    ],
)  # fmt: skip
def test_an_answer_that_is_none_is_explained(
    reply: bytes, kind: type[Exception], words: str
) -> None:
    with serving(reply) as url, pytest.raises(kind) as caught:
        asked(url).models()
    assert words in str(caught.value)


def test_a_stream_that_breaks_shows_what_came_and_fails(
    capsys: pytest.CaptureFixture[str],
) -> None:
    half = STREAM + b":\n\n" + frame("token", TOKEN) + b"event: token\ndata: {"
    with serving(half) as url:
        assert main(["complete", "demo", "x", "--url", url]) == 1
    out, err = capsys.readouterr()
    assert out == "Once"
    assert "broke in the middle of the answer; what came is incomplete" in err
    chunked = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    part = frame("token", TOKEN)
    with serving(chunked + b"%x\r\n%b\r\n" % (len(part), part)) as url:
        assert main(["complete", "demo", "x", "--url", url]) == 1
    assert "broke in the middle" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (frame("error", {"error": OWN_ERROR}), "said so"),
        (frame("error", "what"), "without a reason"),
        (frame("token", {"reply": 0}), "cannot be read"),
        (frame("token", ["x"]), "cannot be read"),
        (b"event: token\ndata: {{\n\n", "an event is no JSON"),
        (frame("end", {}), "without its result"),
    ],
)
def test_a_stream_of_something_else_is_explained(
    frames: bytes, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(STREAM + frames) as url:
        assert main(["complete", "demo", "x", "--url", url]) == 1
    assert words in capsys.readouterr().err


def test_events_that_are_not_known_are_skipped() -> None:
    later = frame("weather", {"reply": 0}) + frame("token", TOKEN | {"colour": "red"})
    with serving(STREAM + later + frame("error", {"error": OWN_ERROR})) as url:
        events = asked(url).stream("demo", "x")
        assert next(events).text == "Once"  # type: ignore[union-attr]
        with pytest.raises(GatewayRefused, match="said so"):
            next(events)


def test_a_cancelled_stream_ends_with_what_has_come() -> None:
    with serving(STREAM + frame("token", TOKEN), holds=True) as url:
        events = asked(url).stream("demo", "x")
        next(events)
        threading.Timer(0.01, events.cancel).start()
        done = next(events).completion  # type: ignore[union-attr]
        assert (done.text, done.tokens, done.finish_reason) == ("Once", (5,), "cancelled")
        assert list(events) == []


def test_nothing_there_and_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GatewayUnreachable, match="nothing listens there; start a gateway"):
        asked(f"http://127.0.0.1:{free_port()}").models()
    with pytest.raises(GatewayUnreachable, match="no such socket"):
        asked("unix:/nowhere/socket").models()
    monkeypatch.setattr(connection, "WHOLE_S", 0.05)
    with serving(b"", holds=True) as url, pytest.raises(GatewayUnreachable, match="in time"):
        asked(url).models()
    with serving(b"HTTP/1.1 400 no TLS\r\n\r\n") as url:
        secure = url.replace("http:", "https:")
        with pytest.raises(GatewayUnreachable, match="speaks no TLS"):
            asked(secure).models()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://x", "write http://HOST:PORT"),
        ("http://", "write http://HOST:PORT"),
        ("http://x:99999", "write http://HOST:PORT"),
        ("http://me:secret@x", "a key goes into --key-file"),
        ("http://x\nhost: y", "other characters"),
    ],
)
def test_an_address_that_is_none_is_refused(
    url: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "--url", url]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert "secret" not in err


def test_a_key_that_is_none_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("one\ntwo\n")
    for words in (["--key-file", str(file)], ["--key", "a b"], ["--key-file", str(tmp_path)]):
        assert main(["models", "--url", "http://127.0.0.1:1", *words]) == 2
    assert main(["models", "--key", "x"]) == 2
    assert "two" not in capsys.readouterr().err


def test_addresses_as_people_write_them() -> None:
    assert parse_address("127.0.0.1:8080/v1").url == "http://127.0.0.1:8080"
    assert parse_address("https://[::1]/llm/").url == "https://[::1]/llm"
    assert parse_address("https://x", "secret").port == 443
    assert "secret" not in repr(parse_address("https://x", "secret"))


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    with listening(listener, answer("200 OK", b'{"models": []}')):
        assert asked(f"unix:{path}").models() == []


def test_tls(tmp_path: Path) -> None:
    port = free_port()
    settings = GatewaySettings(
        listen=(Listen("127.0.0.1", port),),
        drain_s=0.5,
        tls_certificate=str(TLS / "cert.pem"),
        tls_key=str(TLS / "key.pem"),
    )
    with LeakCheck() as leaks, started(tmp_path, config=RuntimeConfig(gateway=settings)) as node:
        node.load("stub", "stub", backend="stub")
        leaks.watch(node)
        url = f"https://localhost:{port}"
        trusted = asked(url, ca_file=TLS / "cert.pem")
        assert [one.id for one in trusted.models()] == ["stub"]
        with trusted.stream("stub", "x", max_tokens=2) as events:
            assert list(events)[-1].completion.usage.completion_tokens == 2  # type: ignore[union-attr]
        with pytest.raises(GatewayUnreachable, match=r"is not trusted .* --ca FILE"):
            asked(url).models()
        with pytest.raises(GatewayUnreachable, match="write https://"):
            asked(f"http://localhost:{port}").models()
        with pytest.raises(ConfigError, match="holds no certificates"):
            asked(url, ca_file=TLS / "README.md").models()
