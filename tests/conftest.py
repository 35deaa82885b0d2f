"""Fixtures: small models made on the spot, and nodes that must leave nothing behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import Node
from tests.support.examples import load_profiles
from tests.support.gguf_files import tiny_llama
from tests.support.published import published_models
from tests.support.runtime_nodes import LeakCheck, emptied, one_thread, started

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that runs the tests in the background has it so, and Ctrl-C is part of what is tested.
    signal.signal(signal.SIGINT, signal.default_int_handler)

load_profiles()


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight llama of about 1 MB, made by the tests."""
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="session")
def published() -> Path:
    """Published tokenizers and, in ``templates``, chat templates; fails when they are missing."""
    return published_models()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A fresh node without models; everything of it must be gone afterwards."""
    with LeakCheck() as leaks, started(tmp_path) as running:
        leaks.watch(running)
        yield running
        leaks.watch(running)


@pytest.fixture(scope="module")
def module_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``module_node``, as ``tmp_path`` is that of ``node``."""
    return tmp_path_factory.mktemp("module")


@pytest.fixture(scope="module")
def module_node(module_home: Path) -> Iterator[Node]:
    """One node for a whole file; everything of it must be gone at its end."""
    with LeakCheck() as leaks, started(module_home) as running:
        leaks.watch(running)
        yield running
        leaks.watch(running)


@pytest.fixture
def emptied_node(module_node: Node) -> Iterator[Node]:
    """The file's node, without models and rows as a fresh one, in a fraction of its time.

    For tests that kill nothing but models and change no settings: a file of such tests defines
    ``node`` as this one.
    """
    yield module_node
    emptied(module_node)


@pytest.fixture
def tiny_node(node: Node, tiny_gguf: Path) -> Node:
    """A fresh node with the tiny llama loaded as ``tiny``."""
    node.client.load("tiny", one_thread(tiny_gguf))
    return node


@pytest.fixture
def stub_node(node: Node) -> Node:
    """A fresh node with a stub model loaded as ``stub``: no native code at all."""
    node.load("stub", "stub", backend="stub")
    return node
