"""Fetched models and their records, Ollama's store, and which of them a name means."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

import runtime.embedded
from native.errors import NotAGguf
from native.gguf_header import check_gguf, first_metadata
from runtime.catalog.catalog import Catalog, Source
from runtime.catalog.describe import header_of
from runtime.catalog.names import HubName
from runtime.catalog.ollama import MODEL_LAYER, models_of
from runtime.catalog.store import Store, StoredFile, StoredModel, is_plain_path
from runtime.errors import ConfigError, NoSuchModel
from runtime.settings.model_folders import models_folder, ollama_folders, store_folder

pytestmark = pytest.mark.pure


def stored(store: Store, repo: str, *paths: str) -> StoredModel:
    """A model of the store, with files of ten bytes."""
    folder = store.folder_of(repo)
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"x" * 10)
    files = tuple(StoredFile(path, 10, f"sha256:{'0' * 64}") for path in paths)
    model = StoredModel(folder, repo, "abc", "https://hub.example", 5.0, files)
    store.record(model)
    return model


def put_ollama(root: Path, place: str, content: bytes, media: str = MODEL_LAYER) -> Path:
    digest = hashlib.sha256(content).hexdigest()
    blob = root / "blobs" / f"sha256-{digest}"
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    manifest = root / "manifests" / place
    manifest.parent.mkdir(parents=True, exist_ok=True)
    layers = [
        {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:" + "1" * 64},
        {"mediaType": media, "digest": f"sha256:{digest}", "size": len(content)},
    ]
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    return blob


# ── fetched models ──────────────────────────────────────────────────────────────────────────────


def test_a_recorded_model_is_found_by_its_tags(tmp_path: Path) -> None:
    store = Store(tmp_path)
    small = stored(store, "org/repo", "m-Q4_K_M.gguf")
    big = stored(store, "org/repo", *(f"Q8_0/m-Q8_0-0000{n}-of-00002.gguf" for n in (1, 2)))
    assert [one.name for one in store.models()] == ["org/repo:Q4_K_M", "org/repo:Q8_0"]
    assert store.find(HubName("org/repo")) == small
    assert store.find(HubName("Org/Repo", "q8_0")) == big
    assert store.find(HubName("org/repo", "Q2_K")) is None
    assert store.find(HubName("org/other")) is None
    assert (big.n_bytes, big.path.name) == (20, "m-Q8_0-00001-of-00002.gguf")
    assert big.path.is_file()


def test_removing_a_model_leaves_the_others_and_no_empty_folder(tmp_path: Path) -> None:
    store = Store(tmp_path)
    small = stored(store, "org/repo", "m-Q4_K_M.gguf")
    big = stored(store, "org/repo", "Q8_0/m-Q8_0.gguf")
    partial = store.partial_of("org/repo", big.files[0])
    partial.parent.mkdir()
    partial.write_bytes(b"xx")
    assert store.remove(big) == 10
    assert store.models() == [small]
    assert sorted(one.name for one in (tmp_path / "org/repo").iterdir()) == [
        ".records",
        "m-Q4_K_M.gguf",
    ]
    store.remove(small)
    assert list(tmp_path.iterdir()) == []


def test_records_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    store = Store(tmp_path)
    model = stored(store, "org/repo", "m.gguf")
    (record,) = tmp_path.rglob("*.json")
    whole = json.loads(record.read_text())
    outside = [{**whole["files"][0], "path": "../../../etc"}]
    changed = [{"format": 2}, {"files": []}, {"files": outside}]
    for text in ("", "{", "[]", "{}", *(json.dumps(whole | one) for one in changed)):
        record.write_text(text)
        assert store.models() == []
    record.write_text(json.dumps(whole))
    assert store.models() == [model]


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../x",
        "a/../x",
        "a//b",
        ".records/x",
        "a/.b",
        "a\\b",
        "a\0b",
        "a\nb",
        "a\x1b[2Jb",
    ],
)
def test_paths_that_would_leave_the_folder_are_no_paths(path: str) -> None:
    assert not is_plain_path(path)
    assert is_plain_path("Q8_0/model-Q8_0.gguf")


# ── Ollama's ────────────────────────────────────────────────────────────────────────────────────


def test_the_models_of_ollama_are_read_where_they_lie(tmp_path: Path) -> None:
    blob = put_ollama(tmp_path, "registry.ollama.ai/library/llama3.2/1b", b"one")
    put_ollama(tmp_path, "registry.ollama.ai/someone/mine/latest", b"two")
    put_ollama(tmp_path, "hf.co/org/repo/Q4_K_M", b"three")
    put_ollama(tmp_path, "registry.ollama.ai/library/nothing/latest", b"four", media="other")
    gone = put_ollama(tmp_path, "registry.ollama.ai/library/gone/latest", b"five")
    gone.unlink()
    broken = tmp_path / "manifests/registry.ollama.ai/library/broken/latest"
    broken.parent.mkdir()
    broken.write_text("{")
    found = models_of(tmp_path)
    assert [one.name for one in found] == [
        "hf.co/org/repo:Q4_K_M",
        "llama3.2:1b",
        "someone/mine:latest",
    ]
    assert found[1].path == blob
    assert (found[1].n_bytes, found[1].digest) == (3, hashlib.sha256(b"one").hexdigest())
    assert models_of(tmp_path / "none") == []


def test_a_digest_that_is_no_digest_leads_nowhere(tmp_path: Path) -> None:
    put_ollama(tmp_path, "registry.ollama.ai/library/bad/latest", b"x")
    manifest = tmp_path / "manifests/registry.ollama.ai/library/bad/latest"
    layer = {"mediaType": MODEL_LAYER, "digest": "sha256:../../../../etc/passwd"}
    manifest.write_text(json.dumps({"layers": [layer]}))
    assert models_of(tmp_path) == []


# ── names ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    store = Store(tmp_path / "store")
    stored(store, "org/repo-GGUF", "repo-Q4_K_M.gguf")
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("mine.gguf", "both.gguf", "cut-00001-of-00002.gguf"):
        (folder / name).write_bytes(b"y" * 7)
    ollama = tmp_path / "ollama"
    put_ollama(ollama, "registry.ollama.ai/library/both/latest", b"b")
    put_ollama(ollama, "registry.ollama.ai/library/llama3.2/latest", b"l")
    put_ollama(ollama, "hf.co/org/other-GGUF/Q8_0", b"o")
    return Catalog(store, folder, [ollama, tmp_path / "no-ollama"])


@pytest.mark.parametrize(
    ("name", "source", "model_id"),
    [
        ("demo", Source.EMBEDDED, "demo"),
        ("org/repo-GGUF", Source.STORE, "repo-Q4_K_M"),
        ("hf.co/org/repo-gguf:q4_k_m", Source.STORE, "repo-Q4_K_M"),
        ("repo-GGUF", Source.STORE, "repo-Q4_K_M"),
        ("repo-gguf:Q4_K_M", Source.STORE, "repo-Q4_K_M"),
        ("repo-Q4_K_M", Source.STORE, "repo-Q4_K_M"),
        ("mine", Source.FOLDER, "mine"),
        ("mine.gguf", Source.FOLDER, "mine"),
        ("both", Source.FOLDER, "both"),
        ("both:latest", Source.OLLAMA, "both"),
        ("llama3.2", Source.OLLAMA, "llama3.2"),
        ("org/other-GGUF:Q8_0", Source.OLLAMA, "hf.co-org-other-GGUF-Q8_0"),
        ("https://huggingface.co/org/other-GGUF:q8_0", Source.OLLAMA, "hf.co-org-other-GGUF-Q8_0"),
    ],
)
def test_where_a_name_is_found(catalog: Catalog, name: str, source: Source, model_id: str) -> None:
    found = catalog.find(name)
    assert found is not None
    assert (found.source, found.id) == (source, model_id)
    assert found.path.is_file()


def test_names_that_mean_nothing(catalog: Catalog, tmp_path: Path) -> None:
    assert [catalog.find(one) for one in ("nothing", "org/other", "org/repo-GGUF:Q8_0")] == [
        None
    ] * 3
    with pytest.raises(NoSuchModel, match="is not there"):
        catalog.find("./nothing.gguf")
    with pytest.raises(NoSuchModel, match="is a folder"):
        catalog.find(str(tmp_path))
    with pytest.raises(NoSuchModel, match=r"lacks cut-00002-of-00002\.gguf"):
        catalog.find("cut")
    with pytest.raises(ConfigError, match="cannot be read"):
        Catalog(catalog.store, tmp_path / "none").all()


def test_a_fetched_model_that_lost_its_file(catalog: Catalog) -> None:
    found = catalog.find("repo-GGUF")
    assert found is not None
    found.path.unlink()
    with pytest.raises(NoSuchModel, match=r"lacks repo-Q4_K_M\.gguf; pull it again"):
        catalog.find("repo-GGUF")
    assert catalog.find("repo-GGUF", whole=False) is not None


def test_a_path_may_name_any_part(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"m-0000{number}-of-00002.gguf").write_bytes(b"x")
    found = Catalog(Store(tmp_path / "s")).find(str(tmp_path / "m-00002-of-00002.gguf"))
    assert found is not None
    assert (found.path.name, found.id, found.n_bytes) == ("m-00001-of-00002.gguf", "m", 2)


def test_all_that_there_is(catalog: Catalog) -> None:
    assert [(one.name, one.source.value) for one in catalog.all()] == [
        ("org/repo-GGUF:Q4_K_M", "fetched"),
        ("both", "folder"),
        ("cut", "folder"),
        ("mine", "folder"),
        ("both:latest", "ollama"),
        ("hf.co/org/other-GGUF:Q8_0", "ollama"),
        ("llama3.2:latest", "ollama"),
    ]


# ── folders and headers ─────────────────────────────────────────────────────────────────────────


def test_where_models_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LLAMA_ACTORS_STORE", "LLAMA_ACTORS_MODELS_DIR", "OLLAMA_MODELS", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store_folder() == tmp_path / ".local/share/llama-actors/models"
    assert models_folder() is None
    assert ollama_folders()[0] == tmp_path / ".ollama/models"
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert store_folder() == Path("/data/llama-actors/models")
    monkeypatch.setenv("LLAMA_ACTORS_STORE", "~/store")
    monkeypatch.setenv("LLAMA_ACTORS_MODELS_DIR", "~/mine")
    monkeypatch.setenv("OLLAMA_MODELS", "/srv/ollama")
    assert store_folder() == tmp_path / "store"
    assert models_folder() == tmp_path / "mine"
    assert models_folder(Path("/given")) == Path("/given")
    assert ollama_folders() == [Path("/srv/ollama")]


def test_the_beginning_of_a_header_is_that_of_the_whole(tmp_path: Path) -> None:
    path = runtime.embedded.path()
    whole, first = check_gguf(path).metadata, first_metadata(path)
    assert first == {key: one for key, one in whole.items() if not key.startswith("tokenizer.")}
    assert (header_of(path).quantisation, header_of(path).architecture) == ("Q8_0", "llama")
    odd = tmp_path / "odd.gguf"
    odd.write_bytes(b"no model at all, but long enough")
    with pytest.raises(NotAGguf):
        first_metadata(odd)
    assert "starts with" in header_of(odd).trouble
    assert header_of(tmp_path / "none").trouble
    os.truncate(odd, 3)
    assert header_of(odd).trouble
