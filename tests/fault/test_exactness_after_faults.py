"""Whole nodes keep the levels of exactness: after a kill of the model, after a restart, at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from native.params import ModelParams
from runtime.embedded import path as embedded_path
from tests.support.exactness import Lab, Subject
from tests.support.exactness_nodes import NODE_WAYS, NodeLab, NodeWay
from tests.support.gguf_files import tiny_llama
from tests.support.runtime_nodes import LeakCheck

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]

N_REPLY = 200
PARAMS = ModelParams(n_ctx=4096, n_threads=2)


@pytest.fixture(scope="module", params=["embedded", "q4_k"])
def lab(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NodeLab]:
    """A node with the embedded model, or with one whose matrix kernels take rows in groups."""
    home = tmp_path_factory.mktemp(request.param)
    if request.param == "embedded":
        subject = Subject("embedded", embedded_path(), PARAMS, reads_text=True)
    else:
        path = tiny_llama(home / "q4_k.gguf", n_embd=256, n_ff=512, qtype="Q4_K")
        subject = Subject("q4_k", path, PARAMS)
    with LeakCheck() as leaks, NodeLab(Lab(subject, home), home, N_REPLY) as made:
        yield made
        leaks.watch(made.node)


@pytest.mark.parametrize("way", NODE_WAYS, ids=lambda way: way.id)
def test_a_node_is_as_exact_as_its_level(lab: NodeLab, way: NodeWay) -> None:
    found = way.run(lab)
    assert found.is_exact, str(found)
