"""What surrounds a command: an early Ctrl-C, other projects' modules, machines that lack things."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.support.nodes import ROOT

pytestmark = pytest.mark.system

PACKAGES = ("actors", "cache", "native", "runtime", "supervision")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has the packages as a wheel installs them.

    Its dependencies are links to those of the tests. It has no ``.pth`` file: that of an editable
    installation finds the packages before the working directory is searched.
    """
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, symlinks=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(place)}))
    ignore = shutil.ignore_patterns("__pycache__", "*.cpp", "*.train*")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, site / name, ignore=ignore, symlinks=True)
    for path in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for one in Path(path).iterdir():
            is_editable = one.suffix == ".pth" or one.name.startswith("_editable")
            if not is_editable and not (site / one.name).exists():
                (site / one.name).symlink_to(one)
    return place / "bin" / "python"


def python(
    installed: Path, cwd: Path, *arguments: str, timeout_s: float = 30
) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ) | {"LLAMA_ACTORS_RUNTIME_DIR": str(cwd / "run")}
    for name in ("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH"):
        environment.pop(name, None)
    return subprocess.run(
        [installed, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=timeout_s,
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


def test_a_program_that_imports_ours_beside_a_shadow_gets_an_import_error(
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
    ran = python(installed, tmp_path, "-P", "-c", script, timeout_s=120)
    assert ran.stdout == "3\n", ran.stderr


def test_packages_that_are_links_are_not_taken_for_others(tmp_path: Path) -> None:
    """Some installers link each package, or each file, to a store elsewhere."""
    links, files = tmp_path / "links", tmp_path / "files"
    links.mkdir()
    for name in PACKAGES:
        (links / name).symlink_to(ROOT / name)
        (files / name).mkdir(parents=True)
        for one in (ROOT / name).iterdir():
            (files / name / one.name).symlink_to(one)
    for place in (links, files):
        script = "import cache, runtime; print(runtime.__file__, cache.__file__)"
        dependencies = sysconfig.get_path("platlib")
        ran = subprocess.run(
            [sys.executable, "-S", "-c", script],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={"PYTHONPATH": os.pathsep.join((str(place), dependencies))},
            timeout=30,
            check=False,
        )
        found = [str(place / name / "__init__.py") for name in ("runtime", "cache")]
        assert ran.stdout.split() == found, ran.stderr


SLOW_MODULE = """
import os
os.write(1, b"importing\\n")  # not print: a signal in mid-flush makes a later flush repeat the line
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
def test_a_machine_without_loopback_is_reported_in_a_sentence(
    tmp_path: Path, command: list[str]
) -> None:
    _assert_sentence(tmp_path, [*bare("-n"), *command], "ip link set lo up")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda one: "-".join(one[1:3])[:20])
def test_a_machine_without_proc_is_reported_in_a_sentence(
    tmp_path: Path, command: list[str]
) -> None:
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
