"""Where a gateway is, and the key that it wants: from options, else from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from runtime.errors import ConfigError
from runtime.settings.ports import KEY_VARIABLE, URL_VARIABLE
from runtime.settings.user_paths import user_path
from supervision.frozen import frozen

UNIX: Final = "unix:"
MAX_KEY_CHARS: Final = 4096
_PORTS: Final = {"http": 80, "https": 443}


@frozen
class GatewayAddress:
    """A gateway: by TCP, with TLS or without, or by a Unix socket."""

    url: str
    """As people know it; never with a key in it."""
    host: str = ""
    port: int = 0
    has_tls: bool = False
    prefix: str = ""
    """Of every path, where a proxy has the gateway below one; without a slash at its end."""
    socket: str = ""
    """Path of a Unix socket; empty: TCP."""
    key: str = field(default="", repr=False)
    ca_file: Path | None = None
    """Certificates that are trusted in place of the system's."""


def address_from(given: Mapping[str, Any]) -> GatewayAddress | None:
    """The gateway that the parameters of a command name; None: they mean a node of this machine.

    An admin port that is given counts more than the environment. Raises ConfigError.
    """
    url, port = given.get("url"), given.get("admin_port")
    if url is not None and port is not None:
        raise ConfigError("--url", "and --admin-port name two nodes; give one of them")
    if url is None and port is None:
        url = os.environ.get(URL_VARIABLE) or None
    if url is None:
        for name, flag in (("gateway_key", "--key"), ("key_file", "--key-file"), ("ca", "--ca")):
            if given.get(name) is not None:
                raise ConfigError(flag, f"is for a gateway; name it with --url or {URL_VARIABLE}")
        return None
    return parse_address(url, key_from(given), given.get("ca"))


def key_from(given: Mapping[str, Any]) -> str:
    """The key that the parameters or the environment name; empty: none. Raises ConfigError."""
    key, file = given.get("gateway_key"), given.get("key_file")
    if key is not None and file is not None:
        raise ConfigError("--key", "and --key-file exclude each other; give one of them")
    if key is not None:
        return _checked_key("--key", key)
    if file is not None:
        try:
            return _checked_key("--key-file", file.read_text(encoding="utf-8").strip())
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError("--key-file", f"cannot read {file}: {error}") from None
    return _checked_key(KEY_VARIABLE, os.environ.get(KEY_VARIABLE, ""), may_be_empty=True)


def _checked_key(name: str, key: str, *, may_be_empty: bool = False) -> str:
    """It goes into a header; its text is in no message."""
    is_right = key.isascii() and key.isprintable() and " " not in key
    if not is_right or len(key) > MAX_KEY_CHARS or not (key or may_be_empty):
        raise ConfigError(
            name, "is no key: one line of letters, digits and signs, as `gateway key` prints it"
        )
    return key


def parse_address(url: str, key: str = "", ca_file: Path | None = None) -> GatewayAddress:
    """The gateway at a URL, ``HOST:PORT`` or ``unix:PATH``. Raises ConfigError."""
    if url.startswith(UNIX):
        path = str(user_path(url.removeprefix(UNIX), "--url"))
        return GatewayAddress(f"{UNIX}{path}", socket=path, key=key)
    parts = _split(url)
    scheme, host = parts.scheme, parts.hostname or ""
    try:
        port = parts.port or _PORTS.get(scheme, 0)
    except ValueError:
        port = 0
    if scheme not in _PORTS or not host or not port:
        raise _wrong(url, "write http://HOST:PORT, https://HOST or unix:PATH")
    if parts.username is not None or parts.query or parts.fragment:
        raise _wrong(url, "it is an address alone; a key goes into --key-file")
    if ca_file is not None and scheme != "https":
        raise ConfigError("--ca", "is for https:// addresses")
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    shown = f"[{host}]" if ":" in host else host
    is_usual = port == _PORTS[scheme]
    name = f"{scheme}://{shown}{'' if is_usual else f':{port}'}{prefix}"
    return GatewayAddress(
        name, host, port, has_tls=scheme == "https", prefix=prefix, key=key, ca_file=ca_file
    )


def _split(url: str) -> SplitResult:
    if not url.isascii() or not url.isprintable() or " " in url:
        raise _wrong("that address", "it has other characters than addresses have")
    try:
        return urlsplit(url if "://" in url else f"http://{url}")
    except ValueError as error:
        raise _wrong(url, str(error)) from None


def _wrong(url: str, why: str) -> ConfigError:
    shown = url.rpartition("@")[2]  # what stands before it may be a password
    return ConfigError("--url", f"{shown!r} is no address of a gateway: {why}")
