"""What surrounds a command: an early Ctrl-C, other projects' modules, machines that lack things."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
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


SLOW_MODULE = """
import os
import sys
print("importing", flush=True)
os.read(0, 1)
"""


def test_ctrl_c_while_a_program_still_imports_is_quiet(tmp_path: Path) -> None:
    """A module that takes long to import stands for all of them."""
    (tmp_path / "blake3.py").write_text(SLOW_MODULE)
    environment = dict(os.environ) | {"PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "runtime", "serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=environment,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"importing\n"
    process.send_signal(signal.SIGINT)
    output, said = process.communicate(timeout=60)
    assert (output, said, process.returncode) == (b"", b"", 130)


def test_ctrl_c_while_a_command_runs_is_quiet(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "runtime", "inspect", str(_endless(tmp_path))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    with open(tmp_path / "pipe", "wb"):  # returns when the command has opened it
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (said, process.returncode) == (b"", 130)


def _endless(tmp_path: Path) -> Path:
    """A file whose reader waits."""
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


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
