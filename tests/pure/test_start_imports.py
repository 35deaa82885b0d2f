"""A command imports what it needs and no more: imports are most of the time that it takes.

Counted instead of timed, so that a busy machine gives the same result. The error names what is new;
raise a limit only for something that every use of the command needs.
"""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from actors import messages
from runtime.cli.commands import COMMANDS
from runtime.cli.main import main
from tests.support.start_imports import SLOW, imported

pytestmark = pytest.mark.pure

ROOT = Path(__file__).parents[2]
PACKAGES = ("actors", "cache", "native", "runtime", "supervision")


@pytest.mark.parametrize(
    ("arguments", "code", "limit"),
    [
        (["--help"], 0, 10),
        (["nonsense"], 2, 10),
        (["status", "--nonsense"], 2, 12),
        (["complete", "--nonsense"], 2, 20),
        (["cache", "ls", "--nonsense"], 2, 17),
        (["status"], 1, 69),
        (["tree"], 1, 69),
        (["stop"], 1, 69),
        (["models"], 1, 71),
        (["complete", "demo", "x"], 1, 72),
        (["chat", "demo"], 1, 73),
        (["tokenize", "demo", "x"], 1, 70),
        (["embed", "demo", "x"], 1, 71),
        (["adapters", "demo"], 1, 70),
        (["bench", "demo"], 1, 71),
        (["cache", "stat"], 1, 73),
        (["ls"], 0, 23),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_command_imports_few_modules(
    tmp_path: Path, arguments: list[str], code: int, limit: int
) -> None:
    done, modules = imported({"LLAMA_ACTORS_RUNTIME_DIR": str(tmp_path)}, *arguments)
    assert done == code
    rooms = {".".join(f.parent.relative_to(ROOT).parts) for f in ROOT.glob("*/*/**/__init__.py")}
    ours = {name for name in modules - rooms if name.partition(".")[0] in PACKAGES}
    slow = SLOW & modules
    if code == 2:  # click looks for a similar option
        slow -= {"difflib"}
    if arguments[0] == "bench":  # prompts that no other has
        slow -= {"decimal", "random"}
    assert not slow
    assert len(ours) <= limit, sorted(ours)


def test_importing_the_package_imports_nothing_else() -> None:
    script = "import sys, runtime; print(*[n for n in sys.modules if n.split('.')[0] in %r])"
    done = subprocess.run(
        [sys.executable, "-c", script % (PACKAGES,)],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert set(done.stdout.split()) == {"runtime", "runtime.errors", "runtime._shadows"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_parser_of_its_own(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    assert f"python -m runtime {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "package", ["actors.messages", "native", "runtime", "supervision", "supervision.messages"]
)
def test_what_is_imported_on_demand_is_what_a_type_checker_sees(package: str) -> None:
    module = importlib.import_module(package)
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    checked = {
        alias.name: node.module
        for block in ast.parse(source).body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert checked == module._HOMES
    assert set(checked) <= set(module.__all__)
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = module.nonsense


def test_actors_are_forked_from_a_process_that_has_imported_every_message() -> None:
    script = (
        "import sys\n"
        "from actors import messages\n"
        "messages.preload()\n"
        "wanted = set(messages._HOMES.values())\n"
        "assert wanted <= set(sys.modules), wanted - set(sys.modules)\n"
        "assert set(messages.__all__) <= set(vars(messages))\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=60)
    assert messages.Complete.__module__ == "actors.messages.completion"
