"""Namespaces of requests: their roots, and the keys that their callers have."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.kv.namespace import PLAIN, Namespace
from actors.messages.completion import MAX_SALT_BYTES
from actors.messages.errors import InvalidRequest
from actors.messages.salt import checked_salt
from cache import keys

pytestmark = pytest.mark.pure

ROOT = b"r" * 32
NAMESPACES = st.builds(Namespace, st.booleans(), st.binary(max_size=MAX_SALT_BYTES))
KEYS = st.binary(min_size=32, max_size=32)


@given(NAMESPACES, NAMESPACES, KEYS, KEYS)
def test_roots_are_equal_only_for_equal_namespaces_of_one_model(
    one: Namespace, other: Namespace, root: bytes, other_root: bytes
) -> None:
    is_same = one == other and root == other_root
    assert (one.root_in(root) == other.root_in(other_root)) is is_same


def test_without_a_salt_the_roots_are_those_that_rows_have_always_had() -> None:
    assert PLAIN.root_in(ROOT) == ROOT
    apart = keys.namespace_key([("model", ROOT), ("exact", "always")])
    assert Namespace(is_apart=True).root_in(ROOT) == apart


@given(NAMESPACES, NAMESPACES, KEYS)
def test_a_key_means_the_same_row_with_its_own_salt_only(
    one: Namespace, other: Namespace, key: bytes
) -> None:
    """Requests that are always exact may continue the others, and the other way round."""
    shown = one.exchanged(key)
    assert one.exchanged(shown) == key
    assert (other.exchanged(shown) == key) is (one.salt == other.salt)
    assert (shown == key) is (one.salt == b"")


@pytest.mark.parametrize("key", [None, b"", b"abc", b"k" * 33])
def test_what_is_no_key_stays_as_it_is(key: bytes | None) -> None:
    assert Namespace(salt=b"s").exchanged(key) == key


def test_a_salt_that_cannot_be_used_is_refused_and_not_shown() -> None:
    assert checked_salt(b"s" * MAX_SALT_BYTES) == b"s" * MAX_SALT_BYTES
    for wrong, why in ((b"secret" * 11, "66 bytes"), ("secret", "type str"), (None, "NoneType")):
        with pytest.raises(InvalidRequest, match=why) as refused:
            checked_salt(wrong)
        assert "secret" not in str(refused.value)
