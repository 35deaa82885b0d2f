"""Fingerprints: what they cover in each mode, and when a remembered one may be used."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from native import fingerprint as module
from native.errors import InvalidParam, ModelNotFound
from native.fingerprint import FINGERPRINT_MODES, Fingerprints, fingerprint
from tests.support.waiting import eventually

pytestmark = pytest.mark.pure

LATER = 1 << 62  # a clock far ahead, so that every file has settled


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file whose content is read, in order."""
    seen: list[Path] = []
    real: Callable[[Path, module.FingerprintMode], bytes] = module._digest

    def counted(path: Path, mode: module.FingerprintMode) -> bytes:
        seen.append(path)
        return real(path, mode)

    monkeypatch.setattr(module, "_digest", counted)
    return seen


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(range(256)) * 40)
    return path


@pytest.fixture
def prints(tmp_path: Path) -> Fingerprints:
    return Fingerprints(cache_file=str(tmp_path / "fingerprints"))


def let_the_clock_tick(path: Path) -> None:
    """Until the kernel's coarse clock, which stamps files, is past the last change of ``path``."""
    probe = path.with_name("probe")

    def is_later() -> bool:
        probe.write_bytes(b"")
        return probe.stat().st_ctime_ns > path.stat().st_ctime_ns

    eventually(is_later, within_s=5, every_s=0.001, what="the clock of files ticks")


def test_a_model_is_read_once(prints: Fingerprints, model: Path, reads: list[Path]) -> None:
    first = prints.of([model], now_ns=LATER)
    again = Fingerprints(cache_file=prints.cache_file).of([model], now_ns=LATER)
    assert first == again == blake3(model.read_bytes()).digest()
    assert reads == [model]


def test_the_digest_of_every_split_is_cached_and_their_order_counts(
    prints: Fingerprints, model: Path, reads: list[Path]
) -> None:
    other = model.with_name("other.gguf")
    other.write_bytes(b"GGUF two")
    both = prints.of([model, other], now_ns=LATER)
    assert both == fingerprint([model, other]) != prints.of([other, model], now_ns=LATER)
    assert reads.count(model) == reads.count(other) == 2  # one of them for fingerprint() itself


def test_a_change_of_the_same_size_is_noticed(
    prints: Fingerprints, model: Path, reads: list[Path]
) -> None:
    before = prints.of([model], now_ns=LATER)
    facts = model.stat()
    let_the_clock_tick(model)
    with model.open("r+b") as file:
        file.seek(100)
        file.write(b"!")
    assert model.stat().st_size == facts.st_size
    assert prints.of([model], now_ns=LATER) == blake3(model.read_bytes()).digest() != before
    let_the_clock_tick(model)
    # Also when the modification time is set back: the kernel's own change time cannot be set.
    facts = model.stat()
    with model.open("r+b") as file:
        file.seek(100)
        file.write(b"?")
    os.utime(model, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert prints.of([model], now_ns=LATER) == blake3(model.read_bytes()).digest()
    assert len(reads) == 3


def test_another_file_under_the_same_name_is_noticed(prints: Fingerprints, model: Path) -> None:
    before = prints.of([model], now_ns=LATER)
    facts = model.stat()
    new = model.with_name("new")
    new.write_bytes(model.read_bytes()[::-1])
    os.utime(new, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    new.replace(model)
    assert prints.of([model], now_ns=LATER) == blake3(model.read_bytes()).digest() != before


def test_two_files_never_share_by_accident(prints: Fingerprints, model: Path) -> None:
    """Same size, same times, same beginning: what is remembered belongs to one path."""
    twin = model.with_name("twin.gguf")
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    twin.write_bytes(content)
    facts = model.stat()
    os.utime(twin, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    for mode in FINGERPRINT_MODES:
        both = Fingerprints(mode, prints.cache_file)
        for _ in range(2):
            assert both.of([model], now_ns=LATER) != both.of([twin], now_ns=LATER)


def test_a_link_is_its_file(prints: Fingerprints, model: Path, reads: list[Path]) -> None:
    link = model.with_name("link.gguf")
    link.symlink_to(model)
    assert prints.of([model], now_ns=LATER) == prints.of([link], now_ns=LATER)
    assert len(reads) == 1


def test_the_digest_of_a_file_that_has_just_changed_is_not_cached_yet(
    prints: Fingerprints, model: Path, reads: list[Path]
) -> None:
    now = model.stat().st_ctime_ns + 1_000_000
    prints.of([model], now_ns=now)
    prints.of([model], now_ns=now)
    assert len(reads) == 2


def test_the_digest_of_a_file_that_changes_while_it_is_read_is_not_cached(
    prints: Fingerprints, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module._digest

    def slow(path: Path, mode: module.FingerprintMode) -> bytes:
        digest = real(path, mode)
        with path.open("ab") as file:
            file.write(b"more")
        return digest

    monkeypatch.setattr(module, "_digest", slow)
    prints.of([model], now_ns=LATER)
    monkeypatch.setattr(module, "_digest", real)
    assert prints.of([model], now_ns=LATER) == blake3(model.read_bytes()).digest()


def test_modes_never_give_equal_digests_and_do_not_use_each_others_cache(
    prints: Fingerprints, model: Path
) -> None:
    digests = [
        Fingerprints(mode, prints.cache_file).of([model], now_ns=LATER)
        for _ in range(2)
        for mode in FINGERPRINT_MODES
    ]
    assert len(set(digests)) == 3
    assert digests[:3] == digests[3:]


def test_the_chunked_mode_sees_size_head_tail_and_samples(tmp_path: Path) -> None:
    chunked = Fingerprints("gguf_chunked")
    big = tmp_path / "big.gguf"
    size = 48 << 20
    with big.open("wb") as file:
        file.truncate(size)

    def changed_at(offset: int) -> bool:
        before = chunked.of([big])
        with big.open("r+b") as file:
            file.seek(offset)
            file.write(b"x")
        after = chunked.of([big])
        with big.open("r+b") as file:
            file.seek(offset)
            file.write(b"\0")
        return before != after

    assert changed_at(0)
    assert changed_at((16 << 20) - 1)
    assert changed_at(32 << 20)
    assert changed_at(size - 1)
    assert not changed_at((32 << 20) + (1 << 20))  # as documented
    before = chunked.of([big])
    with big.open("ab") as file:
        file.write(b"\0")
    assert chunked.of([big]) != before


def test_the_unsafe_mode_reads_no_content(model: Path) -> None:
    unsafe = Fingerprints("fast_unsafe")
    model.chmod(0o000)
    first = unsafe.of([model])
    model.chmod(0o600)
    os.utime(model)
    assert unsafe.of([model]) != first


def damage_cut(raw: bytes) -> bytes:
    return raw[:-3]


def damage_flip(raw: bytes) -> bytes:
    return raw[:-5] + bytes([raw[-5] ^ 1]) + raw[-4:]


def damage_version(raw: bytes) -> bytes:
    return raw[:8] + struct.pack("<H", 0) + raw[10:]


def damage_foreign(raw: bytes) -> bytes:
    return b"not ours at all" * 10


def damage_empty(raw: bytes) -> bytes:
    return b""


def damage_extra(raw: bytes) -> bytes:
    return raw + b"x"


@pytest.mark.parametrize(
    "damage",
    [damage_cut, damage_flip, damage_version, damage_foreign, damage_empty, damage_extra],
)
def test_a_damaged_digest_cache_is_ignored_and_written_again(
    prints: Fingerprints, model: Path, reads: list[Path], damage: Callable[[bytes], bytes]
) -> None:
    expected = prints.of([model], now_ns=LATER)
    memory = Path(prints.cache_file or "")
    memory.write_bytes(damage(memory.read_bytes()))
    assert prints.of([model], now_ns=LATER) == expected
    assert len(reads) == 2
    assert prints.of([model], now_ns=LATER) == expected
    assert len(reads) == 2


def test_every_flipped_byte_of_the_digest_cache_costs_a_read_and_never_a_wrong_answer(
    prints: Fingerprints, model: Path, reads: list[Path]
) -> None:
    expected = prints.of([model], now_ns=LATER)
    memory = Path(prints.cache_file or "")
    good = memory.read_bytes()
    for at in range(len(good)):
        memory.write_bytes(good[:at] + bytes([good[at] ^ 0x41]) + good[at + 1 :])
        assert prints.of([model], now_ns=LATER) == expected
    assert len(reads) == 1 + len(good)


def test_the_digest_cache_is_private_and_files_of_others_are_ignored(
    prints: Fingerprints, model: Path, reads: list[Path]
) -> None:
    prints.of([model], now_ns=LATER)
    memory = Path(prints.cache_file or "")
    assert memory.stat().st_mode & 0o777 == 0o600
    memory.chmod(0o644)
    prints.of([model], now_ns=LATER)
    assert len(reads) == 2
    memory.chmod(0o600)
    memory.rename(memory.with_name("elsewhere"))
    memory.symlink_to(memory.with_name("elsewhere"))
    prints.of([model], now_ns=LATER)
    assert len(reads) == 3


def test_a_memory_that_cannot_be_kept_costs_only_time(model: Path) -> None:
    nowhere = Fingerprints(cache_file="/proc/1/nowhere/fingerprints")
    assert nowhere.of([model], now_ns=LATER) == blake3(model.read_bytes()).digest()


def test_the_oldest_are_forgotten(
    prints: Fingerprints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_ENTRIES", 3)
    for number in range(5):
        path = tmp_path / f"m{number}.gguf"
        path.write_bytes(b"GGUF" + bytes([number]))
        prints.of([path], now_ns=LATER)
    memory = Path(prints.cache_file or "").read_bytes()
    assert [f"m{number}.gguf".encode() in memory for number in range(5)] == [False] * 2 + [True] * 3


def test_a_missing_file_and_an_unknown_mode_are_named(prints: Fingerprints, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        prints.of([tmp_path / "none.gguf"])
    with pytest.raises(InvalidParam, match="gguf_chunked"):
        Fingerprints("fast")  # type: ignore[arg-type]
