"""Names of models, and which files of a repository a tag means."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from runtime.catalog.names import HubName, hub_name, id_beside, model_id, stem_of
from runtime.catalog.quantisations import FILE_TYPES, chosen, part_count, tag_of, tags_in
from runtime.settings.config import check_model_id

pytestmark = pytest.mark.pure

REPO = "Org/Name-1.5B-GGUF"
PARTS = [f"Q8_0/Name-Q8_0-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
FILES = [
    "BF16/Name-BF16.gguf", "Name-F16.gguf", "Name-Q4_K_M.gguf", "Name-Q4_K_S.gguf", *PARTS,
    "Name-UD-Q4_K_XL.gguf", "README.md", "config.json", "imatrix_Q4_K_M.gguf", "mmproj-F16.gguf",
    "mtp-Q4_K_M-draft.gguf",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (REPO, HubName(REPO)),
        (f"{REPO}:Q4_K_M", HubName(REPO, "Q4_K_M")),
        (f"hf.co/{REPO}:q8_0", HubName(REPO, "q8_0")),
        (f"huggingface.co/{REPO}", HubName(REPO)),
        (f"https://huggingface.co/{REPO}/", HubName(REPO)),
        (f"HF.co/{REPO}:latest", HubName(REPO)),
        ("hf.co/org/odd.gguf", HubName("org/odd.gguf")),
        (f"{REPO}:Name-Q4_K_M.gguf", HubName(REPO, "Name-Q4_K_M.gguf")),
        ("models/tiny.gguf", None),  # a path
        ("llama3.2:1b", None),
        ("a/b/c", None),
        ("../up", None),
        ("org/..", None),
        ("-x/y", None),
        ("org/repo:", None),
        ("", None),
    ],
)
def test_names_of_a_hub(text: str, name: HubName | None) -> None:
    assert hub_name(text) == name


@pytest.mark.parametrize(
    ("tag", "files"),
    [
        ("", ["Name-Q4_K_M.gguf"]),
        ("q4_k_m", ["Name-Q4_K_M.gguf"]),
        ("Q8_0", PARTS),
        ("F16", ["Name-F16.gguf"]),  # not BF16, where it stands first
        ("BF16", ["BF16/Name-BF16.gguf"]),
        ("UD-Q4_K_XL", ["Name-UD-Q4_K_XL.gguf"]),
        ("Q4_K_XL", ["Name-UD-Q4_K_XL.gguf"]),
        ("Name-F16.gguf", ["Name-F16.gguf"]),
        ("Q4", []),
        ("Q2_K", []),
        (".*", []),
    ],
)
def test_a_tag_finds_the_files_that_llama_cpp_finds(tag: str, files: list[str]) -> None:
    assert list(chosen(FILES, tag)) == files


def test_what_is_taken_without_a_tag() -> None:
    without = [one for one in FILES if one != "Name-Q4_K_M.gguf"]
    assert list(chosen(without)) == PARTS
    assert chosen(["b.gguf", "a.gguf"]) == ("b.gguf",)
    assert chosen(["nameQ4_K_M.gguf"], "Q4_K_M") == ("nameQ4_K_M.gguf",)
    assert chosen(["mmproj-F16.gguf", "x.safetensors"]) == ()


def test_a_part_that_the_repository_lacks_is_seen() -> None:
    lacking = [one for one in FILES if one != PARTS[1]]
    found = chosen(lacking, "Q8_0")
    assert (len(found), part_count(found[0])) == (2, 3)
    assert chosen(PARTS[1:], "Q8_0") == ()


def test_the_tags_of_a_repository() -> None:
    assert tags_in(FILES) == ["BF16", "F16", "Q4_K_M", "Q4_K_S", "Q8_0", "Q4_K_XL"]
    assert tag_of("model.gguf") == "model"
    assert stem_of(PARTS[2]) == "Name-Q8_0"


@pytest.mark.parametrize(
    "name", ["llama3.2:latest", "llama3.2:1b", "hf.co/a/b:Q4", "ä b", "…", "x" * 99, "-a-", "a/b"]
)
def test_a_node_takes_every_id(name: str) -> None:
    check_model_id(model_id(name))
    beside = id_beside(model_id(name), "/a/b.gguf")
    check_model_id(beside)
    assert beside == id_beside(model_id(name), "/a/b.gguf") != id_beside(model_id(name), "/c")
    assert model_id("llama3.2:latest") == "llama3.2"
    assert model_id("llama3.2:1b") == "llama3.2-1b"


def test_the_types_of_headers_are_those_of_llama_cpp() -> None:
    theirs = {
        one.value: one.name.removeprefix("ALL_").removeprefix("MOSTLY_")
        for one in gguf.LlamaFileType
        if one.name != "GUESSED"
    }
    assert {number: FILE_TYPES.get(number) for number in theirs} == theirs
    header = Path("build").glob("llama.cpp-*/include/llama.h")
    for text in (one.read_text(encoding="utf-8") for one in header):
        for number, name in FILE_TYPES.items():
            assert any(
                f"_{name} " in line and f"= {number}," in line for line in text.splitlines()
            ), name
