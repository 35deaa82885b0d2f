"""What commands and clients decide by are typed answers, not reports for people."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from actors import messages as m
from runtime import Node
from runtime.client.cache.admin import OnlineCacheAdmin
from supervision.messages import new_ref
from tests.support.runtime_nodes import LeakCheck, started

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with LeakCheck() as leaks, started(tmp_path_factory.mktemp("typed")) as node:
        leaks.watch(node)
        yield node
        leaks.watch(node)


def test_the_registry_lists_the_models_that_shall_be_loaded(node: Node) -> None:
    assert node.ask("registry", m.ListWantedModels("a")) == m.WantedModelsListed("a", ())
    node.load("stub", "stub", backend="stub")
    assert node.ask("registry", m.ListWantedModels("b")) == m.WantedModelsListed("b", ("stub",))
    node.unload("stub")
    assert node.ask("registry", m.ListWantedModels("c")) == m.WantedModelsListed("c", ())


def test_each_tier_answers_where_its_rows_lie(node: Node) -> None:
    disk = node.ask("tier:disk", m.DescribeTier(new_ref()))
    assert isinstance(disk, m.TierDescribed)
    assert (disk.tier, disk.arena) == ("disk", None)
    assert disk.directory is not None
    assert Path(disk.directory).is_dir()
    ram = node.ask("ram_tier", m.DescribeTier(new_ref()))
    assert isinstance(ram, m.TierDescribed)
    assert (ram.tier, ram.directory) == ("ram", None)
    assert ram.arena is not None
    tender = OnlineCacheAdmin(node.client, {})
    try:
        assert tender.directories == {"disk": disk.directory}
        assert tender.namespaces() == []
    finally:
        tender.close()
