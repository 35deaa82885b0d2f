"""Users that a service manager or a container makes: no home, no passwd entry, any umask."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime import Node, errors
from tests.support.nodes import ROOT

pytestmark = pytest.mark.system

UID = 4242


def run(source: str, *arguments: str, env: dict[str, str], before: tuple[str, ...] = ()) -> Any:
    """Run Python from the source tree; what it printed last, as JSON."""
    done = subprocess.run(
        [*before, sys.executable, "-c", source, *arguments],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def bare_environment() -> dict[str, str]:
    hidden = ("HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "LLAMA_ACTORS_RUNTIME_DIR", "TMPDIR")
    kept = {key: value for key, value in os.environ.items() if key not in hidden}
    return kept | {"PYTHONPATH": str(ROOT)}


NODE = """
import json, os, stat, sys
from pathlib import Path
from runtime import Node
from runtime.settings.config import node_dir
from runtime.cli.doctor import _directories, RuntimeConfig
with Node.start(cache_ram="32MiB") as node:
    node.load("stub", "stub", backend="stub")
    said = {
        "tokens": node.complete("stub", "x", max_tokens=1).usage.completion_tokens,
        "tier": node.tree().find("tier:disk") is not None,
        "absent": node.status()["actors"]["cache_meta"]["absent_tiers"],
        "doctor": [one.detail for one in _directories(RuntimeConfig())],
        "folder": str(node_dir(1).parent),
        "mode": stat.S_IMODE(node_dir(1).parent.stat().st_mode),
    }
print(json.dumps(said))
"""


def test_a_user_without_a_home_gets_a_node_without_a_disk_tier(tmp_path: Path) -> None:
    """In a user namespace, where this user has a number that passwd does not have."""
    namespace = ("unshare", "--user", f"--map-user={UID}", f"--map-group={UID}", "--")
    try:
        tried = subprocess.run([*namespace, "true"], capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"unshare cannot be run: {error}")
    if tried.returncode:
        pytest.skip(f"no user namespace here: {tried.stderr.strip()}")
    said = run(NODE, env=bare_environment() | {"TMPDIR": str(tmp_path)}, before=namespace)
    assert said["tokens"] == 1
    assert not said["tier"]
    assert "no home folder" in said["absent"]["disk"]
    assert "no home folder" in said["doctor"][0]
    assert said["folder"] == str(tmp_path / f"llama-actors-{UID}")
    assert said["mode"] == 0o700


FILES = """
import json, os, sys
from pathlib import Path
from runtime import Node
folder = Path(sys.argv[1])
os.umask(int(sys.argv[2], 8))
options = {"cache_dir": folder / "a" / "cache", "runtime_dir": folder / "b" / "run"}
with Node.start(cache_ram="32MiB", log_file=folder / "node.log", **options) as node:
    node.load("stub", "stub", backend="stub")
    node.complete("stub", "x " * 300, max_tokens=1)
    modes = {
        str(one.relative_to(folder)): oct(one.lstat().st_mode & 0o7777)
        for one in folder.rglob("*")
    }
print(json.dumps(modes))
"""


@pytest.mark.parametrize("mask", ["000", "022", "077"])
def test_everything_a_node_makes_is_private(tmp_path: Path, mask: str) -> None:
    modes = run(FILES, str(tmp_path), mask, env={**os.environ})
    assert {"a", "a/cache", "a/cache/rows", "b", "b/run"} <= set(modes)
    for name, mode in modes.items():
        assert mode in ("0o700", "0o600"), (name, mode)
    left = {stat.S_IMODE(one.lstat().st_mode) for one in tmp_path.rglob("*")}
    assert left <= {0o700, 0o600}


@pytest.mark.parametrize(
    ("command", "names"),
    [
        (["load", "m=~no-such-user/model.gguf"], "model m: "),
        (["serve", "--cache-dir", "~no-such-user/x"], "cache_dir: "),
        (["serve", "--cache-disk", "~no-such-user/x=1GiB"], "cache_disks: "),
        (["serve", "--log-file", "~no-such-user/x"], "log_file: "),
        (["serve", "--config", "~no-such-user/x"], "Invalid value for '--config': "),
        (["serve", "--model", "m=~no-such-user/x"], "model m: "),
        (["serve", "--model", "m=/x", "--lora", "~no-such-user/x"], "model.lora: "),
        (["doctor", "--config", "~no-such-user/x"], "Invalid value for '--config': "),
        (["inspect", "~no-such-user/x"], "Invalid value for 'FILE': "),
        (["cache", "ls", "--cache-dir", "~no-such-user/x"], "Invalid value for '--cache-dir': "),
        (["chat", "demo", "--load", "~no-such-user/x"], "Invalid value for '--load': "),
        (
            ["complete", "demo", "x", "--grammar", "~no-such-user/x"],
            "Invalid value for '--grammar': ",
        ),
    ],
)
def test_an_unknown_user_in_a_path_is_a_sentence(
    command: list[str], names: str, capfd: pytest.CaptureFixture[str]
) -> None:
    from runtime.cli.main import main

    assert main(command) == 2
    said = capfd.readouterr().err
    assert names in said
    assert "there is no such user" in said


def test_a_log_file_that_cannot_be_opened_is_a_sentence(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "none" / "log"):
        with pytest.raises(errors.NodeStartFailed, match=r"the log file .* cannot be opened"):
            Node.start(log_file=place, runtime_dir=tmp_path / "run", cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "run").rglob("cookie"))
