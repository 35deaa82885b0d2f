"""A request from the command line imports little: that is most of its time to a first token."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime import Node
from tests.support.start_imports import SLOW, imported

pytestmark = pytest.mark.system

OF_LOADING = {
    "actors.messages.loading", "actors.messages.markers", "native.gguf_header",
    "native.model_params", "native.overrides",
}  # fmt: skip
OF_STARTING = {"runtime.launch.start", "runtime.settings.config", "runtime.settings.schema"}


@pytest.fixture(scope="module")
def variables(module_node: Node, module_home: Path) -> dict[str, str]:
    """What names the node for a command; its model is loaded."""
    module_node.ready("demo")
    return {
        "LLAMA_ACTORS_RUNTIME_DIR": str(module_home / "run"),
        "LLAMA_ACTORS_PORT": str(module_node.port),
    }


@pytest.mark.parametrize("command", ["complete", "run"])
def test_a_reply_takes_nothing_that_only_loading_or_starting_needs(
    variables: dict[str, str], command: str
) -> None:
    code, modules = imported(variables, command, "demo", "Once upon a time", "--max-tokens", "4")
    assert code == 0
    needed = OF_LOADING if command == "run" else set()  # its options are those of loading, too
    assert not modules & ((SLOW | OF_LOADING | OF_STARTING) - needed)
