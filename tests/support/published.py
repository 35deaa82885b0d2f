"""Published tokenizers and chat templates: the pinned archive's ``models`` folder, for tests only.

Nothing of it is in the repository. ``native.vendor`` unpacks it below ``build/`` at first use.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from native.vendor import Lock, VendorError, provide_test_data

_SEPARATOR = "\n__ggml_vocab_test__\n"


def published_models() -> Path:
    """The folder with ``ggml-vocab-*.gguf`` and ``templates``; fails the test when it is missing.

    A skip would hide that none of it was tested.
    """
    try:
        return provide_test_data(Lock.read()) / "models"
    except VendorError as error:
        pytest.fail(
            f"the published tokenizers and chat templates cannot be had: {error}\n"
            "`python -m native.vendor --test-data` fetches and unpacks them.",
            pytrace=False,
        )


def tokenizer_cases(vocabulary: Path) -> list[tuple[str, list[int]]]:
    """The texts beside a vocabulary, and the tokens that its publisher's tokenizer makes of them.

    Without the token that begins texts, and with control tokens read as plain text.
    """
    raw = vocabulary.with_name(f"{vocabulary.name}.inp").read_bytes().decode("utf-8")
    texts = raw.removesuffix(_SEPARATOR).split(_SEPARATOR)
    lines = vocabulary.with_name(f"{vocabulary.name}.out").read_text("ascii").splitlines()
    expected = [[int(token) for token in line.split()] for line in lines]
    return list(zip(texts, expected, strict=True))
