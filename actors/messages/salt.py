"""The salt of a request, checked where it arrives. ``actors.kv.namespace``: what it separates."""

from __future__ import annotations

from actors.messages.completion import MAX_SALT_BYTES
from actors.messages.errors import InvalidRequest


def checked_salt(salt: object) -> bytes:
    """The salt of a message, or InvalidRequest, which does not show it."""
    if not isinstance(salt, bytes):
        raise InvalidRequest(f"the salt is of type {type(salt).__name__}; send bytes, or none")
    if len(salt) > MAX_SALT_BYTES:
        raise InvalidRequest(
            f"the salt has {len(salt)} bytes; at most {MAX_SALT_BYTES} are taken, so send a digest"
        )
    return salt
