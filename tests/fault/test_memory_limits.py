"""Memory limits of a control group, set by the real kernel: the plan, and the reported cause."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.control_groups import enter, limited_group
from tests.support.nodes import ROOT

pytestmark = [pytest.mark.fault, pytest.mark.timeout(120)]

MIB = 1 << 20


def run_in_group(group: Any, source: str, *arguments: str) -> Any:
    """Run Python in the group; what it printed last, as JSON."""
    return run(enter(group) + source, *arguments)


def run(source: str, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", source, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


PLAN = """
import json
from native.system_memory import tightest_limit
from runtime.settings.config import RuntimeConfig
print(json.dumps([tightest_limit().where, RuntimeConfig().ram_bytes()]))
"""

LOAD = """
import json, sys
from pathlib import Path
from native.params import ModelParams
from runtime import ModelConfig, Node, errors
from runtime.embedded import path
folder = Path(sys.argv[1])
with Node.start(
    cache_ram="32MiB", cache_disk=0, runtime_dir=folder / "run", log_file=folder / "node.log"
) as node:
    outcome = "it was loaded"
    try:
        node.load("big", path(), n_ctx=200_000, n_threads=1, check_memory=False)
    except errors.ModelLoadFailed as error:
        outcome = str(error)
    node.load("demo", path(), n_ctx=256, n_threads=1)
    print(json.dumps([outcome, node.complete("demo", "Once upon", max_tokens=2).text]))
"""


def test_the_ram_tier_is_a_quarter_of_what_the_group_leaves() -> None:
    with limited_group(700 * MIB) as group:
        where, ram = run_in_group(group, PLAN)
        assert where == f"control group {group.name}"
        assert 100 * MIB <= ram <= 175 * MIB


@pytest.mark.parametrize("name", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_it_is_a_quarter_of_what_the_processs_own_limit_leaves(name: str) -> None:
    limit = f"import resource\nresource.setrlimit(resource.{name}, ({1 << 30}, {1 << 30}))\n"
    where, ram = run(limit + PLAN)
    assert where == name
    assert 64 * MIB <= ram <= 256 * MIB


@pytest.mark.model
def test_a_model_killed_for_lack_of_memory_is_reported_as_such_and_the_node_continues(
    tmp_path: Path,
) -> None:
    """The KV cache of 200,000 tokens takes 900 MiB, which the kernel does not grant."""
    with limited_group(400 * MIB) as group:
        outcome, text = run_in_group(group, LOAD, str(tmp_path))
        wanted = f"by the kernel for lack of memory (limit 400 MiB of control group {group.name})"
        assert wanted in outcome
        assert text
        assert wanted in (tmp_path / "node.log").read_text()
