"""The gateway's settings as one frozen value, and the addresses at which it may listen."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import field
from typing import Final, Literal

from runtime.errors import ConfigError
from supervision.frozen import frozen

GATEWAY_VARIABLE: Final = "LLAMA_ACTORS_GATEWAY"
DEFAULT_ADDRESS: Final = "127.0.0.1:8080"
UNIX: Final = "unix:"
SYSTEMD: Final = "systemd"
LISTENER: Final = "gateway/listener/"
"""Beginning of the names under which its sockets lie on the descriptor shelf."""
CANONICAL_RULES: Final = (
    "claude-billing", "sort-tools", "date-to-end", "stable-system", "strip-ids",
)  # fmt: skip
UNKNOWN_MODEL_WAYS: Final = ("only", "reject")
UnknownModel = Literal["only", "reject"]
METRICS_ALIASES: Final = ("llamacpp", "vllm")
MetricsAlias = Literal["llamacpp", "vllm"]
_PORT: Final = re.compile("[0-9]{1,5}")
# What llama-server samples with where a request names nothing; its clients rely on that.
DEFAULT_SAMPLING: Final = (
    ("temperature", 0.8), ("top_k", 40.0), ("top_p", 0.95), ("min_p", 0.05),
)  # fmt: skip


@frozen
class Listen:
    """One address of the gateway."""

    host: str = ""
    """An IP address, or a name; empty for a Unix socket and for what systemd hands over."""
    port: int = 0
    path: str = ""
    """Of a Unix socket."""

    @property
    def is_systemd(self) -> bool:
        """Whether systemd has opened the socket."""
        return not self.host and not self.path

    @property
    def is_local(self) -> bool:
        """Whether only processes of this machine reach it."""
        if self.path:
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def url(self) -> str:
        """Where a client finds it."""
        return str(self) if self.path or self.is_systemd else f"http://{self}"

    def __str__(self) -> str:
        if self.path:
            return f"{UNIX}{self.path}"
        if self.is_systemd:
            return SYSTEMD
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@frozen
class GatewaySettings:
    """The table ``[gateway]``; what each key means is in ``schema.Gateway``."""

    listen: tuple[Listen, ...] = ()
    """Where it listens; empty: the node has no gateway."""
    workers: int = 1
    keys_file: str | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    """Patterns and ids, in the order of the file."""
    unknown_model: UnknownModel = "only"
    sampling: tuple[tuple[str, float], ...] = DEFAULT_SAMPLING
    canonicalise: tuple[str, ...] = ("claude-billing",)
    explain: bool = True
    prompts: bool = False
    slots: bool = False
    metrics: bool = True
    metrics_alias: tuple[MetricsAlias, ...] = ("llamacpp",)
    access_log: bool = True
    max_body: int = 32 << 20
    max_bodies: int = 256 << 20
    max_header_bytes: int = 64 << 10
    max_headers: int = 100
    max_connections: int = 1024
    max_per_address: int = 64
    max_running: int = 256
    store_bytes: int = 64 << 20
    head_s: float = 10.0
    body_s: float = 30.0
    idle_s: float = 75.0
    stalled_s: float = 60.0
    keepalive_s: float = 1.0
    drain_s: float = 10.0
    log_ttl_s: float = 300.0
    log_bytes: int = 64 << 20
    tls_certificate: str | None = None
    tls_key: str | None = None

    @property
    def is_on(self) -> bool:
        return bool(self.listen)


@frozen
class HttpWorkerArgs:
    """What an HTTP worker is started with."""

    node_dir: str
    """The node's own folder."""
    settings: GatewaySettings
    number: int = 0
    secret: bytes = field(default=b"", repr=False)
    """What the namespaces of keys are derived from; kept beside the rows."""
    expected: tuple[str, ...] = ()
    """Ids of the models that are loaded once the node has started."""
    expected_until: float = 0.0
    """Unix time until which they are waited for before anything is known of them."""


@frozen
class LedgerArgs:
    """What the gateway's ledger is started with."""

    node_dir: str
    store_bytes: int


def listen_from(text: str, key: str = "gateway.listen") -> Listen:
    """``HOST:PORT``, ``[IPv6]:PORT``, ``unix:/path`` or ``systemd``; ConfigError for others."""
    if text == SYSTEMD:
        return Listen()
    if text.startswith(UNIX):
        path = text.removeprefix(UNIX)
        if not path.startswith("/"):
            raise ConfigError(key, f"{text!r}: give the socket's whole path, as in unix:/run/x")
        return Listen(path=path)
    host, _, port = text.rpartition(":")
    host = host.strip("[]") if host.startswith("[") and host.endswith("]") else host
    is_bare_ipv6 = ":" in host and not text.startswith("[")
    if not host or is_bare_ipv6 or not _PORT.fullmatch(port) or int(port) > 65_535:
        raise ConfigError(
            key, f"{text!r} is no address; write {DEFAULT_ADDRESS}, [::1]:8080 or unix:/path"
        )
    return Listen(host, int(port))


def check(settings: GatewaySettings) -> None:
    """Raises ConfigError where settings contradict each other."""
    for one in settings.listen:
        if not one.is_local and not one.is_systemd and settings.keys_file is None:
            raise ConfigError(
                "gateway.listen",
                f"{one} can be reached by other machines, and there are no keys: name a file of "
                "keys with gateway.keys_file (`llama-actors gateway key NAME` makes one), or "
                "listen on a loopback address",
            )
    if "*" in settings.origins and settings.keys_file is None:
        raise ConfigError(
            "gateway.origins",
            "* lets every web page that a browser here shows call this gateway, and there are no "
            "keys: name a file of keys with gateway.keys_file, or list the pages' origins",
        )
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        raise ConfigError("gateway.tls_certificate", "needs gateway.tls_key, and the other way")
    for key in ("head_s", "body_s", "idle_s", "stalled_s", "keepalive_s"):
        if getattr(settings, key) <= 0:
            raise ConfigError(f"gateway.{key}", "must be more than 0 seconds")
    if settings.max_bodies < settings.max_body:
        raise ConfigError(
            "gateway.max_bodies", "is less than gateway.max_body: one body must fit into it"
        )
    for key in ("workers", "max_body", "max_header_bytes", "max_headers", "max_connections",
                "max_per_address", "max_running", "log_bytes", "store_bytes"):  # fmt: skip
        if getattr(settings, key) < 1:
            raise ConfigError(f"gateway.{key}", "must be at least 1")


def addresses(given: str | Sequence[str]) -> tuple[Listen, ...]:
    """One address or several."""
    ones = [given] if isinstance(given, str) else given
    return tuple(listen_from(one) for one in ones)
