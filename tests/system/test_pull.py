"""``pull`` against a hub on the loopback: what is fetched, continued, verified and refused."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

import runtime.embedded
from runtime.catalog.fetching import require_space
from runtime.catalog.hub import Hub
from runtime.catalog.names import HubName, hub_name
from runtime.catalog.pulling import Elsewhere, planned, pull
from runtime.catalog.store import PARTIAL, RECORDS, Store, StoredModel
from runtime.errors import FetchFailed
from tests.support import hub as hubs
from tests.support.nodes import ROOT
from tests.support.split_gguf import split_gguf

pytestmark = pytest.mark.system

NAME = "org/story-GGUF"
NO_PAUSES = (0.0, 0.0)


@pytest.fixture(scope="module")
def demo() -> bytes:
    return runtime.embedded.path().read_bytes()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, demo: bytes) -> dict[str, bytes]:
    """The embedded model under other names: whole, and in three parts."""
    parts = split_gguf(
        runtime.embedded.path(), tmp_path_factory.mktemp("parts"), "story-Q8_0", tensors_each=25
    )
    assert len(parts) == 3
    return {
        "README.md": b"a story\n",
        "mmproj-F16.gguf": b"GGUF of another kind",
        "story-Q4_K_M.gguf": demo,
        **{f"Q8_0/{one.name}": one.read_bytes() for one in parts},
    }


@pytest.fixture
def hub(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[hubs.Hub]:
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with hubs.serving() as served:
        served.repos[NAME] = hubs.Repo(dict(files))
        try:
            yield served
        finally:
            huggingface_hub.close_session()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def pulled(hub: hubs.Hub, store: Store, name: str = NAME) -> StoredModel:
    wanted = hub_name(name)
    assert wanted is not None
    asked = Hub(wanted, hub.url)
    return pull(asked, planned(asked, wanted, store), store, pauses_s=NO_PAUSES)


def partial_files(store: Store) -> list[Path]:
    return [one for one in store.root.rglob("*") if PARTIAL in one.parts and one.is_file()]


# ── what is fetched ─────────────────────────────────────────────────────────────────────────────


def test_the_usual_quantisation_is_fetched_once(hub: hubs.Hub, store: Store, demo: bytes) -> None:
    model = pulled(hub, store)
    assert model.name == f"{NAME}:Q4_K_M"
    assert model.path.read_bytes() == demo
    assert store.models() == [model] == [store.find(HubName(NAME))]
    assert (model.revision, model.endpoint) == ("1" * 40, hub.url)
    assert model.files[0].digest == f"sha256:{hashlib.sha256(demo).hexdigest()}"
    assert sorted(one.name for one in model.folder.iterdir()) == [RECORDS, "story-Q4_K_M.gguf"]
    assert hub.sent == len(demo)
    pulled(hub, store)  # as the hub has it: nothing is sent
    assert hub.sent == len(demo)


def test_all_parts_of_a_split_model(hub: hubs.Hub, store: Store, files: dict[str, bytes]) -> None:
    model = pulled(hub, store, f"hf.co/{NAME}:q8_0")
    parts = {path: data for path, data in files.items() if path.startswith("Q8_0/")}
    assert [one.path for one in model.files] == sorted(parts)
    for path, data in parts.items():
        assert (model.folder / path).read_bytes() == data
    assert hub.sent == sum(map(len, parts.values()))
    (model.folder / model.files[1].path).unlink()
    hub.sent = 0
    pulled(hub, store, f"{NAME}:Q8_0")  # only what is missing
    assert hub.sent == len(parts[model.files[1].path])


def test_a_file_that_git_itself_holds(hub: hubs.Hub, store: Store) -> None:
    hub.repos["org/small"] = hubs.Repo({"m.gguf": b"tiny"}, in_git=frozenset({"m.gguf"}))
    model = pulled(hub, store, "org/small")
    assert model.files[0].digest.startswith("git-sha1:")
    assert model.path.read_bytes() == b"tiny"


def test_another_content_replaces_the_file(hub: hubs.Hub, store: Store, demo: bytes) -> None:
    pulled(hub, store)
    changed = bytes(reversed(demo))  # of the same size
    hub.repos[NAME].files["story-Q4_K_M.gguf"] = changed
    hub.repos[NAME].revision = "2" * 40
    model = pulled(hub, store)
    assert model.path.read_bytes() == changed
    assert [one.revision for one in store.models()] == ["2" * 40]


def test_the_token_goes_to_the_hub_and_not_to_its_storage(
    hub: hubs.Hub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos[NAME].token = "hf_secret"
    with pytest.raises(FetchFailed, match="or it is private: check the name, or set HF_TOKEN"):
        pulled(hub, store)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.tokens.clear()
    pulled(hub, store)
    assert set(hub.tokens) == {("hub", "Bearer hf_secret"), ("storage", None)}


# ── what other programs have ────────────────────────────────────────────────────────────────────


def test_a_file_that_another_program_has_is_linked(
    hub: hubs.Hub, store: Store, demo: bytes, tmp_path: Path
) -> None:
    digest = hashlib.sha256(demo).hexdigest()
    ollama = tmp_path / "ollama" / "blobs" / f"sha256-{digest}"
    cached = tmp_path / "hub" / "models--org--story-GGUF" / "blobs" / digest
    name = HubName(NAME)
    elsewhere = Elsewhere([tmp_path / "ollama"], [tmp_path / "hub"])
    asked = Hub(name, hub.url)
    for copy in (ollama, cached):
        copy.parent.mkdir(parents=True)
        copy.write_bytes(demo)
        model = pull(asked, planned(asked, name, store, elsewhere), store)
        assert model.path.samefile(copy)
        store.remove(model)
        copy.unlink()
    assert hub.sent == 0
    ollama.write_bytes(bytes(len(demo)))  # damaged
    model = pull(asked, planned(asked, name, store, elsewhere), store)
    assert model.path.read_bytes() == demo
    assert hub.sent == len(demo)


# ── broken connections ──────────────────────────────────────────────────────────────────────────


def test_a_broken_connection_is_continued_where_it_broke(
    hub: hubs.Hub, store: Store, demo: bytes
) -> None:
    hub.cuts = [1_000_000, 500_000, 0]
    assert pulled(hub, store).path.read_bytes() == demo
    assert hub.ranges == [None, "bytes=1000000-", "bytes=1500000-", "bytes=1500000-"]
    assert hub.sent == len(demo)


def test_a_busy_hub_is_asked_again(hub: hubs.Hub, store: Store, demo: bytes) -> None:
    hub.answers = [503, 429]
    assert pulled(hub, store).path.read_bytes() == demo


def test_a_hub_that_cannot_continue_begins_again(hub: hubs.Hub, store: Store, demo: bytes) -> None:
    hub.cuts = [1_000_000]
    hub.serves_ranges = False
    assert pulled(hub, store).path.read_bytes() == demo
    assert hub.ranges == [None, "bytes=1000000-"]
    assert hub.sent == 1_000_000 + len(demo)


def test_what_was_fetched_is_kept_when_it_is_given_up(
    hub: hubs.Hub, store: Store, demo: bytes
) -> None:
    hub.cuts = [2_000_000, 0, 0, 0]
    with pytest.raises(FetchFailed, match=r"broke 3 times.*1\.9 MiB of 3\.2 MiB.*are kept"):
        pulled(hub, store)
    assert store.models() == []
    assert not (store.folder_of(NAME) / "story-Q4_K_M.gguf").exists()
    (partial,) = partial_files(store)
    assert partial.stat().st_size == 2_000_000
    assert pulled(hub, store).path.read_bytes() == demo
    assert hub.sent == len(demo)
    assert partial_files(store) == []


def test_two_pulls_at_once(hub: hubs.Hub, store: Store, demo: bytes) -> None:
    hub.stalls_at = 100_000
    with Pulling(hub, store.root) as first:
        assert hub.has_stalled.wait(30)
        hub.stalls_at = None
        with pytest.raises(FetchFailed, match="another process is fetching it already"):
            pulled(hub, store)
        hub.go_on.set()
        assert first.wait(30) == 0
    assert pulled(hub, store).path.read_bytes() == demo


# ── digests ─────────────────────────────────────────────────────────────────────────────────────


def test_a_wrong_digest_leaves_nothing(hub: hubs.Hub, store: Store, demo: bytes) -> None:
    hub.garbles = True
    with pytest.raises(FetchFailed, match=r"arrived with another digest .* was removed; try again"):
        pulled(hub, store)
    assert store.models() == []
    assert not [one for one in store.root.rglob("*") if one.is_file()]
    hub.garbles = False
    assert pulled(hub, store).path.read_bytes() == demo


def test_a_damaged_beginning_is_found_and_fetched_again(
    hub: hubs.Hub, store: Store, demo: bytes
) -> None:
    hub.cuts = [1_000_000, 0, 0, 0]
    with pytest.raises(FetchFailed):
        pulled(hub, store)
    (partial,) = partial_files(store)
    with partial.open("r+b") as file:
        file.write(b"\0" * 4096)
    with pytest.raises(FetchFailed, match="another digest"):
        pulled(hub, store)
    assert pulled(hub, store).path.read_bytes() == demo


# ── what is refused ─────────────────────────────────────────────────────────────────────────────


def test_refusals_are_one_sentence(hub: hubs.Hub, store: Store) -> None:
    hub.repos["org/gated"] = hubs.Repo({"a.gguf": b"x"}, is_gated=True)
    hub.repos["org/forbidden"] = hubs.Repo({"a.gguf": b"x"}, is_forbidden=True)
    hub.repos["org/none"] = hubs.Repo({"model.safetensors": b"x"})
    hub.repos["org/cut"] = hubs.Repo({"a-Q8_0-00001-of-00002.gguf": b"x"})
    hub.repos["org/evil"] = hubs.Repo({"../../a.gguf": b"x", "/b.gguf": b"x"})
    for name, why in {
        "org/unknown": f"there is no org/unknown at {hub.url}, or it is private",
        "org/gated": f"accept its terms at {hub.url}/org/gated, then set HF_TOKEN",
        "org/forbidden": r"does not let this token read org/forbidden \(403\)",
        "org/none": "org/none has no GGUF file",
        "org/evil": "org/evil has no GGUF file",
        "org/cut": "org/cut lacks 1 of the parts",
        f"{NAME}:Q2_K": f"{NAME} has no Q2_K; it has Q8_0, Q4_K_M",
    }.items():
        with pytest.raises(FetchFailed, match=why) as caught:
            pulled(hub, store, name)
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(f"{name} was not fetched: ")
    assert not store.root.exists() or not [one for one in store.root.rglob("*") if one.is_file()]


def test_a_hub_that_is_not_there(store: Store) -> None:
    name = HubName(NAME)
    with pytest.raises(FetchFailed, match=r"cannot be reached .* is this machine online"):
        planned(Hub(name, "http://127.0.0.1:9"), name, store)


def test_a_hub_that_must_not_be_asked(hub: hubs.Hub, tmp_path: Path) -> None:
    with Pulling(hub, tmp_path, HF_HUB_OFFLINE="1") as process:
        assert process.wait(60) == 1
        assert said(process) == (
            f"error: {NAME} was not fetched: HF_HUB_OFFLINE is set, so nothing is fetched; unset "
            "it to fetch it\n"
        )
    assert hub.asked == []


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FetchFailed, match=r"needs the extra `hub` .*'llama-actors\[hub\]'"):
        Hub(HubName(NAME))


def test_space_is_looked_at_first(hub: hubs.Hub, store: Store, tmp_path: Path) -> None:
    with pytest.raises(FetchFailed, match=r"1024\.0 TiB are needed in .* free; remove a model"):
        require_space(tmp_path, 1 << 50, NAME)


# ── the command ─────────────────────────────────────────────────────────────────────────────────


def environment(hub: hubs.Hub, root: Path, **more: str) -> dict[str, str]:
    return {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(root.parent / "hf"),
        "LLAMA_ACTORS_STORE": str(root),
        **more,
    }


class Pulling:
    """``pull`` as a process of its own, which is gone at the end of the block."""

    def __init__(self, hub: hubs.Hub, root: Path, *words: str, **more: str) -> None:
        self._process = subprocess.Popen(
            [*words, sys.executable, "-m", "runtime", "pull", NAME],
            env=environment(hub, root, **more),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> subprocess.Popen[str]:
        return self._process

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.read()


def test_the_command_is_quiet_in_a_pipe(hub: hubs.Hub, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "runtime", "pull", f"{NAME}:Q8_0", "--json"],
        env=environment(hub, tmp_path), cwd=ROOT, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    plain = json.loads(done.stdout)
    assert (plain["name"], plain["quantisation"]) == (f"{NAME}:Q8_0", "Q8_0")
    assert len(plain["digests"]) == 3
    assert done.stderr == f"fetched {NAME}:Q8_0, 3.2 MiB, to {plain['path']}\n"
    assert {path for path in hub.asked if "/storage/" not in path} == {
        f"/api/models/{NAME}",
        *(f"/{NAME}/resolve/{'1' * 40}/{path}" for path in plain["digests"]),
    }


# A file system of two megabytes, in a namespace of its own: the model has three.
_SMALL = 'mount -t tmpfs -o size=2m tmpfs "$0" && exec "$@"'


def _can_mount() -> bool:
    unshare = shutil.which("unshare")
    return (
        unshare is not None
        and not subprocess.run(
            [unshare, "-Urm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
            check=False,
            capture_output=True,
        ).returncode
    )


@pytest.mark.skipif(not _can_mount(), reason="this machine lets no user mount a file system")
def test_a_disk_that_is_too_small(hub: hubs.Hub, tmp_path: Path) -> None:
    small = ("unshare", "-Urm", "sh", "-c", _SMALL, str(tmp_path))
    with Pulling(hub, tmp_path / "store", *small) as process:
        assert process.wait(60) == 1
        assert "3.2 MiB are needed in " in (text := said(process))
        assert "2.0 MiB are free; remove a model" in text
    assert hub.sent == 0


@pytest.mark.skipif(not _can_mount(), reason="this machine lets no user mount a file system")
def test_a_disk_that_another_program_fills(hub: hubs.Hub, tmp_path: Path) -> None:
    hub.stalls_at = 1_000_000
    small = ("unshare", "-Urm", "sh", "-c", _SMALL.replace("2m", "6m"), str(tmp_path))
    with Pulling(hub, tmp_path / "store", *small) as process:
        assert hub.has_stalled.wait(60)
        inside = Path(f"/proc/{process.pid}/root{tmp_path}")
        with (inside / "full").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        hub.stalls_at = None
        hub.go_on.set()
        assert process.wait(60) == 1
        text = said(process)
        assert "is full (No space left on device); what was fetched is kept: make room" in text
        assert text.count("\n") == 1


def test_a_disk_that_gets_full(
    hub: hubs.Hub, store: Store, demo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file-size limit stands for it: the kernel refuses the write in the middle of the file."""
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, before[1]))
    try:
        with pytest.raises(FetchFailed, match=r"is full .* what was fetched is kept: make room"):
            pulled(hub, store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    (partial,) = partial_files(store)
    assert partial.stat().st_size == 1_500_000
    assert pulled(hub, store).path.read_bytes() == demo
    assert hub.ranges[-1] == "bytes=1500000-"
