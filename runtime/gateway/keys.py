"""Keys of the gateway: a file of their hashes, and which of them a request carries.

The file is TOML, of mode 0600::

    [keys.alice]
    sha256 = "…"                 # of the key; the key itself is nowhere
    models = ["mine*"]           # patterns of ids; default: all
    namespace = "private"        # "shared", or a name that several keys have in common
    admin = false                # may see and change the node
    expires = 2027-01-31         # the last day on which it is valid
    requests_per_min = 60
    tokens_per_min = 20000
    running = 4                  # requests at the same time
    rules = ["stable-system"]    # canonical rules, besides those of the gateway

A key has 256 random bits, so a plain hash of it cannot be reversed, and needs no salt.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import secrets
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final, Literal

import msgspec

from runtime.settings.gateway import CANONICAL_RULES

KEY_PREFIX: Final = "la-"
KEY_BYTES: Final = 32
PRIVATE: Final = "private"
SHARED: Final = "shared"
SALT_BYTES: Final = 16


class BadKeys(Exception):
    """The file of keys is no such file; the text names the place."""


class _Entry(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    sha256: str
    models: list[str] = msgspec.field(default_factory=lambda: ["*"])
    namespace: str | None = None
    admin: bool = False
    expires: datetime.date | None = None
    requests_per_min: int | None = None
    tokens_per_min: int | None = None
    running: int | None = None
    rules: list[Literal[CANONICAL_RULES]] = msgspec.field(default_factory=list)  # type: ignore[valid-type]


class _File(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    keys: dict[str, _Entry]


@dataclass(frozen=True, slots=True)
class Key:
    """One key, by its name; or the caller of a gateway without keys."""

    name: str = ""
    models: tuple[str, ...] = ("*",)
    namespace: str = SHARED
    is_admin: bool = False
    expires: datetime.date | None = None
    requests_per_min: int | None = None
    tokens_per_min: int | None = None
    running: int | None = None
    rules: tuple[str, ...] = ()
    """Canonical rules, besides those of the gateway."""

    def may_use(self, model: str) -> bool:
        return any(fnmatchcase(model, pattern) for pattern in self.models)

    def is_valid(self, today: datetime.date) -> bool:
        return self.expires is None or today <= self.expires

    @property
    def is_limited(self) -> bool:
        """Whether its requests are counted."""
        return (self.requests_per_min, self.tokens_per_min, self.running) != (None,) * 3

    def limits(self) -> Key:
        """What of it is needed to count."""
        return Key(
            self.name,
            requests_per_min=self.requests_per_min,
            tokens_per_min=self.tokens_per_min,
            running=self.running,
        )


ANYONE: Final = Key(is_admin=True)
"""Who calls a gateway that only this machine reaches, and that has no keys."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one file, by the hash of each."""

    by_hash: Mapping[bytes, Key] = field(default_factory=dict)

    def find(self, given: str) -> Key | None:
        """The key that a request carries. Takes the same time whatever is wrong with it."""
        digest = hashlib.sha256(given.encode("utf-8", "replace")).digest()
        found: Key | None = None
        for known, key in self.by_hash.items():
            if hmac.compare_digest(known, digest):
                found = key
        return found


def new_key() -> tuple[str, str]:
    """A new key, and its hash for the file."""
    key = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    return key, hashlib.sha256(key.encode()).hexdigest()


def keys_from(text: str) -> Keys:
    """The keys of a file's text; BadKeys."""
    try:
        found = msgspec.convert(tomllib.loads(text), _File)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise BadKeys(str(error)) from error
    # One key alone has no other to share with; from the second on each has rows of its own.
    usual = PRIVATE if len(found.keys) > 1 else SHARED
    return Keys(dict(_key(name, entry, usual) for name, entry in found.keys.items()))


def _key(name: str, entry: _Entry, usual: str) -> tuple[bytes, Key]:
    try:
        digest = bytes.fromhex(entry.sha256)
    except ValueError:
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise BadKeys(f"keys.{name}.sha256 is no SHA-256 in hex; `gateway key` prints one")
    for what in ("requests_per_min", "tokens_per_min", "running"):
        amount = getattr(entry, what)
        if amount is not None and amount < 1:
            raise BadKeys(f"keys.{name}.{what} is {amount}; it is 1 or more, or not there")
    rest: dict[str, Any] = {
        key: getattr(entry, key)
        for key in ("expires", "requests_per_min", "tokens_per_min", "running")
    }
    rest["rules"] = tuple(entry.rules)
    return digest, Key(
        name, tuple(entry.models), entry.namespace or usual, is_admin=entry.admin, **rest
    )


def salt_of(key: Key, secret: bytes, own: str = "") -> bytes:
    """What separates the rows of this key's requests from those of others; empty: nothing.

    ``secret``: the node's. ``own``: what the caller adds below it, to separate its own users.
    """
    if key.namespace == SHARED and not own:
        return b""
    space = "" if key.namespace == SHARED else f"key:{key.name}"
    if key.namespace not in (SHARED, PRIVATE):
        space = f"name:{key.namespace}"
    about = f"{space}\0{own}".encode("utf-8", "replace")
    return hmac.digest(secret, about, "sha256")[:SALT_BYTES]


def given_key(headers: Mapping[bytes, bytes]) -> str | None:
    """The key that a request carries, in any of the forms that clients have; None: none."""
    bearer = headers.get(b"authorization", b"").decode("latin-1")
    scheme, _, token = bearer.partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    for name in (b"x-api-key", b"api-key"):
        if value := headers.get(name, b"").decode("latin-1").strip():
            return value
    return None
