"""Long runs of one kind of character: tokenised exactly, or refused; never the end of a process."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from native import ModelParams
from native.errors import NotSupported, TextTooLong
from native.llama import LlamaBackend
from tests.support.gguf_files import tiny_llama
from tests.support.nodes import ROOT

pytestmark = pytest.mark.model

VOCABULARY = ModelParams(vocab_only=True)
# Their patterns are matched by std::regex, which recurses once or more per character.
PRE_TOKENIZERS = (
    "gpt-4o", "llama4", "tekken", "deepseek-v3", "deepseek-llm", "deepseek-coder", "minimax-m2",
    "seed-coder", "falcon", "exaone-moe", "poro-chat", "superbpe", "gpt-2",
)  # fmt: skip
RUNS = {
    "letters": "a", "capitals": "A", "blanks": " ", "signs": "=", "digits": "7", "hex": "0a1b",
    "lines": "\n", "han": "\u4e2d", "kana": "\u30ab", "greek": "\u03b1", "accents": "\u0301",
    "no-break blanks": "\u00a0", "emoji": "\U0001f600", "minified": "a=b;f(x){", "mixed": "aб中=",
}  # fmt: skip
SLOW = {("deepseek-llm", "blanks"), ("deepseek-llm", "no-break blanks"), ("superbpe", "digits")}
"""Looked through from each character to the end: refused where that would take minutes."""
N_CHARS = 40_000
Load = Callable[[str], LlamaBackend]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    folder = tmp_path_factory.mktemp("pre-tokenizers")
    opened: dict[str, LlamaBackend] = {}

    def open_one(pre: str) -> LlamaBackend:
        if pre not in opened:
            path = tiny_llama(folder / f"{pre}.gguf", pre=pre, n_layer=1, n_embd=64, n_ff=64)
            opened[pre] = LlamaBackend.load(path, VOCABULARY)
        return opened[pre]

    yield open_one
    for backend in opened.values():
        backend.close()


def on_small_stack(work: Callable[[], list[int]], size: int = 256 << 10) -> list[int]:
    """The result of ``work`` on a thread with so many bytes of stack."""
    results: list[list[int]] = []
    before = threading.stack_size(size)
    try:
        thread = threading.Thread(target=lambda: results.append(work()))
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    return results[0]


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_a_long_run_of_any_kind_is_tokenised(load: Load, pre: str) -> None:
    backend = load(pre)
    for name, unit in RUNS.items():
        text = f"begin {unit * (N_CHARS // len(unit))}1 end"
        if (pre, name) in SLOW:
            with pytest.raises(TextTooLong, match="run of so many"):
                backend.tokenize(text)
            continue
        ids = backend.tokenize(text, add_special=False)
        assert backend.detokenize(ids).decode() == text, name


def test_a_run_that_is_slow_in_the_middle_is_tokenised_at_the_end(load: Load) -> None:
    for end in ("", "\n", "x", ", x"):
        text = "begin" + " " * N_CHARS + end
        ids = load("deepseek-llm").tokenize(text, add_special=False)
        assert load("deepseek-llm").detokenize(ids).decode() == text


def test_a_million_characters_of_one_kind_are_tokenised(load: Load) -> None:
    text = "=" * 1_100_000
    assert load("deepseek-v3").tokenize(text, add_special=False) == [ord("=")] * len(text)


def test_a_run_that_would_take_gigabytes_is_refused(load: Load) -> None:
    with pytest.raises(TextTooLong, match="one of them a blank") as caught:
        load("gpt-4o").tokenize("=" * (5 << 20))
    assert (caught.value.n_chars, caught.value.limit) == (5 << 20, 4 << 20)


def test_a_run_may_take_a_quarter_of_the_memory(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "m.gguf", pre="gpt-4o", n_layer=1, n_embd=64, n_ff=64)
    backend = LlamaBackend.load(path, VOCABULARY, memory_available=4 * 320 * 20_000)
    with pytest.raises(TextTooLong, match="too much memory"):
        backend.tokenize("=" * 20_001)
    assert len(backend.tokenize("= " * 20_001, add_special=False)) == 2 * 20_001
    assert len(backend.tokenize("=" * 20_000, add_special=False)) == 20_000
    backend.close()


def test_a_text_is_tokenised_on_a_thread_with_little_stack(load: Load) -> None:
    for unit in RUNS.values():
        text = unit * (20_000 // len(unit))
        backend = load("gpt-4o")
        assert on_small_stack(lambda: backend.tokenize(text)) == backend.tokenize(text)  # noqa: B023


TEXTS = st.text(st.sampled_from("aZ 0\t\n='-/é中カ\u0301\u00a0\u2581\ufffd😀"), max_size=300)


@settings(max_examples=50, deadline=None)
@given(text=TEXTS, pre=st.sampled_from(PRE_TOKENIZERS))
def test_where_a_text_is_tokenised_does_not_matter(load: Load, text: str, pre: str) -> None:
    backend = load(pre)
    elsewhere = on_small_stack(lambda: backend.tokenize(text), 160 << 10)
    assert backend.tokenize(text) == elsewhere


@settings(max_examples=50, deadline=None)
@given(text=TEXTS, pre=st.sampled_from(PRE_TOKENIZERS))
def test_no_token_stands_for_more_bytes_than_reported(load: Load, text: str, pre: str) -> None:
    backend = load(pre)
    most = backend.info.max_token_bytes
    assert 0 < most < 50
    assert len(text.encode()) <= most * len(backend.tokenize(text, add_special=False))


def test_without_address_space_a_long_text_is_refused(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "m.gguf", pre="gpt-4o", n_layer=1, n_embd=64, n_ff=64)
    program = (
        "import resource, sys\n"
        "from native import ModelParams\n"
        "from native.errors import TextTooLong\n"
        "from native.llama import LlamaBackend\n"
        "backend = LlamaBackend.load(sys.argv[1], ModelParams(vocab_only=True))\n"
        "with open('/proc/self/statm') as file: pages = int(file.read().split()[0])\n"
        "limit = pages * resource.getpagesize() + (64 << 20)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "try: backend.tokenize('=' * 200_000)\n"
        "except TextTooLong as error: print(error)\n"
        "print(len(backend.tokenize('=' * 100, add_special=False)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, path],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "address space" in done.stdout
    assert done.stdout.endswith("100\n")


def test_a_model_without_a_vocabulary_refuses_texts(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "none.gguf", pre="none")
    backend = LlamaBackend.load(path, VOCABULARY)
    with pytest.raises(NotSupported, match="no vocabulary"):
        backend.tokenize("x")
    assert backend.detokenize([1]) == b""
    backend.close()


def test_many_control_tokens_are_read_as_a_few_are(load: Load) -> None:
    backend = load("gpt-2")
    part = "say  <|begin|>a\n<|end|>\n <|begi<|end|><|begin|>n|> 12"
    few = backend.tokenize(part * 200, add_special=False, parse_special=True)
    assert backend.tokenize(part * 200 * 20, parse_special=True) == [
        *backend.tokenize("", parse_special=True),
        *(few * 20),
    ]
    plain = backend.tokenize(part * 4_000, add_special=False)
    assert backend.detokenize(plain).decode() == part * 4_000


@pytest.mark.timeout(30)
def test_a_hundred_thousand_control_tokens_are_read_in_time(load: Load) -> None:
    begin = load("gpt-2").info.bos_token
    ids = load("gpt-2").tokenize("<|begin|>" * 100_000, add_special=False, parse_special=True)
    assert ids == [begin] * 100_000
