"""What surrounds a command: an early Ctrl-C, other projects' modules, machines that lack things."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.nodes import ROOT

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages in a folder of their own, as a wheel installs them."""
    place = tmp_path_factory.mktemp("site")
    ignore = shutil.ignore_patterns("__pycache__", "*.cpp", "*.train*")
    for name in ("actors", "cache", "native", "runtime", "supervision"):
        shutil.copytree(ROOT / name, place / name, ignore=ignore, symlinks=True)
    return place


def python(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ) | {"PYTHONPATH": str(installed)}
    environment |= {"LLAMA_ACTORS_RUNTIME_DIR": str(cwd / "run")}
    environment.pop("PYTHONSAFEPATH", None)
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("command", [["doctor"], ["models"], ["serve"], ["--help"]])
@pytest.mark.parametrize(
    "shadow", ["cache.py", "native.py", "actors/__init__.py", "supervision.py", "msgpack.py"]
)
def test_a_module_that_shadows_ours_is_named_in_one_line(
    installed: Path, tmp_path: Path, shadow: str, command: list[str]
) -> None:
    found = tmp_path / shadow
    found.parent.mkdir(exist_ok=True)
    found.write_text("raise SystemExit('this is another project')\n")
    ran = python(installed, tmp_path, "-m", "runtime", *command)
    (line,) = ran.stderr.splitlines()
    assert str(found) in line
    assert ran.returncode == 2
    assert not ran.stdout


def test_a_program_that_imports_ours_beside_a_shadow_is_told_so(
    installed: Path, tmp_path: Path
) -> None:
    (tmp_path / "cache.py").write_text("")
    ran = python(installed, tmp_path, "-c", "import runtime")
    assert ran.stderr.splitlines()[-1].startswith(f"ImportError: {tmp_path / 'cache.py'} is")


def test_a_node_starts_from_a_folder_with_other_projects_modules(
    installed: Path, tmp_path: Path
) -> None:
    """The host found ours; its launcher and its loader find them in the same places."""
    for name in ("cache.py", "native.py", "runtime.py", "json.py"):
        (tmp_path / name).write_text("raise SystemExit('this is another project')\n")
    script = (
        "from runtime import Node\n"
        "with Node.start(runtime_dir='run', cache_ram=0, cache_disk=0) as node:\n"
        "    node.load('stub', 'stub', backend='stub')\n"
        "    print(len(node.complete('stub', 'a', max_tokens=3).tokens))\n"
    )
    ran = python(installed, tmp_path, "-P", "-c", script)
    assert ran.stdout == "3\n", ran.stderr


def test_an_early_ctrl_c_is_quiet(tmp_path: Path) -> None:
    """At any moment between the start of the interpreter and the node: 130, and no traceback."""
    environment = dict(os.environ) | {"LLAMA_ACTORS_RUNTIME_DIR": str(tmp_path / "run")}
    began_quiet = 0
    for pause_s in (0.06, 0.1, 0.15, 0.2, 0.3, 0.4):
        process = subprocess.Popen(
            [sys.executable, "-m", "runtime", "status"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env=environment,
        )
        over = time.monotonic() + pause_s
        while time.monotonic() < over and process.poll() is None:
            pass
        catches = _catches(process.pid)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        if catches:
            began_quiet += 1
            assert b"Traceback" not in said
            assert process.returncode in (1, 130)  # 1: it had found no node already
    assert began_quiet


def _catches(pid: int) -> bool:
    """Whether the module that makes Ctrl-C quiet is imported: it is the first that is ours."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next((line for line in status.splitlines() if line.startswith("SigCgt:")), "SigCgt: 0")
    return bool(int(caught.split()[1], 16) >> (signal.SIGINT - 1) & 1)


# ── machines that lack something ────────────────────────────────────────────────────────────────


def bare(*unshare: str) -> list[str]:
    """A command prefix for a machine of its own; skips the test where that is not allowed."""
    tool = shutil.which("unshare")
    if tool is None or os.geteuid() != 0:
        pytest.skip("needs unshare, as root")
    made = subprocess.run([tool, *unshare, "true"], capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no namespaces here: {made.stderr.decode().strip()}")
    return [tool, *unshare]


COMMANDS = [
    [sys.executable, "-m", "runtime", "models"],
    [sys.executable, "-m", "runtime", "serve", "--admin-port", "23457"],
    [sys.executable, "-m", "runtime", "doctor"],
    [sys.executable, "-c", "from runtime import Node; Node.start()"],
    [sys.executable, "-c", "from runtime import Node; Node.attach(23457)"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda one: "-".join(one[1:3])[:20])
def test_a_machine_without_loopback_is_told_what_it_lacks(
    tmp_path: Path, command: list[str]
) -> None:
    _assert_sentence(tmp_path, [*bare("-n"), *command], "ip link set lo up")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda one: "-".join(one[1:3])[:20])
def test_a_machine_without_proc_is_told_what_it_lacks(tmp_path: Path, command: list[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    hidden = ["sh", "-c", f'mount --bind "{empty}" /proc && exec "$@"', "sh", *command]
    _assert_sentence(tmp_path, [*bare("-m"), *hidden], "/proc is not mounted")


def _assert_sentence(tmp_path: Path, command: list[str], says: str) -> None:
    environment = dict(os.environ) | {"LLAMA_ACTORS_RUNTIME_DIR": str(tmp_path / "run")}
    ran = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=120,
        check=False,
    )
    said = (ran.stdout + ran.stderr).strip()
    assert says in said
    assert ran.returncode != 0
    if "-c" in command[-2:]:
        assert said.splitlines()[-1].startswith("runtime.errors.MachineUnfit")
    else:
        assert "Traceback" not in said
