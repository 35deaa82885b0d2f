"""Run llama-server's own tests against the gateway, and compare with what is known to fail.

``python tests/clients/llama_server_tests.py [FILE…]`` unpacks the tests from the archive that the
build downloads, gives them ``llama_server_shim`` as the server, and runs them in a virtual
environment of their own. ``llama_server_expected.txt`` lists the tests that fail, each with why; a
listed test that passes fails the run, and so does another that fails. The list may only shrink.

The module is a plugin of their pytest too, and so imports the standard library alone at first.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve()
ROOT: Final = HERE.parents[2]
EXPECTED: Final = HERE.with_name("llama_server_expected.txt")
BUILD: Final = ROOT / "build" / "clients"
ARCHIVES: Final = ROOT / "build" / "downloads"
PARTS: Final = ("tools/server/tests/", "models/templates/")
"""What is unpacked of llama.cpp."""
FILES: Final = (
    "test_tokenize", "test_basic", "test_completion", "test_ignore_eos", "test_infill",
    "test_security", "test_chat_completion", "test_template", "test_tool_call", "test_embedding",
    "test_rerank", "test_metrics", "test_compat_anthropic", "test_compat_oai_responses",
    "test_stream", "test_ctx_shift",
)  # fmt: skip
PACKAGES: Final = (
    "pytest", "requests", "openai", "numpy", "wget", "filelock", "prometheus_client", "aiohttp",
)  # fmt: skip
PORT: Final = 8460
OUTCOMES: Final = "LLAMA_SERVER_OUTCOMES"
LOGS: Final = "LLAMA_SERVER_LOGS"
"""Folder in which what their pytest prints is kept."""
N_WAYS: Final = 2
"""Processes that run tests at the same time."""
TIMEOUT_S: Final = 1500.0
FLOOR: Final = 214
"""So many pass at least: a file that cannot be collected has no outcomes."""

# ── in their pytest ─────────────────────────────────────────────────────────────────────────────


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Their models are here already, and what is marked slow needs others."""
    import utils  # type: ignore[import-not-found]  # theirs

    utils.ServerPreset.load_all = staticmethod(lambda: None)
    utils.ServerProcess.make_request = _with_names_in_any_case(utils.ServerProcess.make_request)
    items[:] = [one for one in items if one.get_closest_marker("slow") is None]


class _Headers(dict[str, str]):
    """Header names are the same in capitals; their tests look in a plain dictionary."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in map(str.lower, self)

    def __getitem__(self, name: str) -> str:
        for key, value in self.items():
            if key.lower() == name.lower():
                return value
        raise KeyError(name)


def _with_names_in_any_case(ask: Callable[..., Any]) -> Callable[..., Any]:
    def asked(*args: Any, **keywords: Any) -> Any:
        answer = ask(*args, **keywords)
        answer.headers = _Headers(answer.headers)
        return answer

    return asked


def pytest_runtest_logreport(report: Any) -> None:
    """Note what became of a test, one line of JSON each."""
    is_end = report.when == "call" or report.outcome != "passed"
    if report.when != "teardown" and is_end and (path := os.environ.get(OUTCOMES)):
        why = str(report.longrepr or "").strip().splitlines()
        line = {"test": _short(report.nodeid), "outcome": report.outcome, "why": why[-1:]}
        with open(path, "a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")


def _short(node_id: str) -> str:
    file, _, test = node_id.partition("::")
    return f"{Path(file).name}::{test}".replace("\n", "\\n")


# ── here ────────────────────────────────────────────────────────────────────────────────────────


def unpacked(folder: Path) -> Path:
    """The folder of their tests, unpacked from the archive if they are not there."""
    tests = folder / "tools" / "server" / "tests"
    if not tests.exists():
        (archive,) = ARCHIVES.glob("llama_cpp_python-*.tar.gz")
        with tarfile.open(archive) as source:
            for member in source:
                _, _, inner = member.name.partition("/vendor/llama.cpp/")
                if inner.startswith(PARTS) and member.isfile():
                    member.name = inner
                    source.extract(member, folder, filter="data")
    return tests


def python_of(folder: Path) -> Path:
    """The interpreter of an environment with what their tests import."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    has = subprocess.run(
        [python, "-c", f"import {', '.join(PACKAGES)}"], capture_output=True, check=False
    )
    if has.returncode:
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def expected(text: str) -> dict[str, str]:
    """Tests that fail, with why: a test on each line, below a comment with the reason."""
    found: dict[str, str] = {}
    why = ""
    for line in text.splitlines():
        if line.startswith("# "):
            why = line[2:]
        elif line.strip():
            found[line.strip()] = why
    return found


def verdict(
    outcomes: Iterable[dict[str, Any]],
    known: dict[str, str],
    *,
    is_whole: bool = True,
    floor: int = 0,
) -> tuple[dict[str, int], list[str]]:
    """How many there are of each outcome, and what is not as it should be.

    ``floor``: how many pass at least, if all were run.
    """
    counts: dict[str, int] = {}
    seen = set()
    wrong = []
    for one in outcomes:
        name, outcome = one["test"], one["outcome"]
        seen.add(name)
        counts[outcome] = counts.get(outcome, 0) + 1
        if outcome == "failed" and name not in known:
            wrong.append(f"failed, and is not listed: {name}: {' '.join(one['why'])}")
        if outcome == "passed" and name in known:
            wrong.append(f"passes, and is listed: {name}")
    if is_whole:
        wrong += [f"is listed, and was not run: {one}" for one in sorted(set(known) - seen)]
        if counts.get("passed", 0) < floor:
            wrong.append(f"{counts.get('passed', 0)} pass, and {floor} should")
    return counts, wrong


def shares(files: Sequence[str], n: int) -> list[list[str]]:
    """The files of each of ``n`` processes."""
    return [one for one in (list(files[at::n]) for at in range(n)) if one]


def run(files: Sequence[str], more: Sequence[str], n_ways: int) -> list[dict[str, Any]]:
    """Run their tests; what became of each."""
    sys.path.insert(0, str(ROOT))
    from tests.support.llama_server import KEEPER, Keeper, KeeperServer

    python = python_of(BUILD / "upstream-venv")
    tests = unpacked(BUILD / "upstream-llama.cpp")
    with tempfile.TemporaryDirectory(prefix="llama-server-tests-") as home:
        keeper = Keeper(Path(home) / "models")
        server = KeeperServer(keeper, Path(home) / "keeper")
        ways: list[subprocess.Popen[bytes]] = []
        try:
            ways += [
                _pytest(python, tests, Path(home) / str(at), share, more, PORT + at, home, KEEPER)
                for at, share in enumerate(shares(files, n_ways))
            ]
            for one in ways:
                one.wait(TIMEOUT_S)
            found = [line for at in range(len(ways)) for line in _lines(Path(home) / str(at))]
            print(f"{keeper.n_started} nodes were started, and lent {keeper.n_lent} times")
            return found
        finally:
            for one in ways:
                one.kill()
            server.close()
            keeper.close()


def _pytest(
    python: Path, tests: Path, out: Path, files: Sequence[str], more: Sequence[str], port: int,
    home: str, keeper: str,
) -> subprocess.Popen[bytes]:  # fmt: skip
    names = [f"unit/{one}" if ".py" in one else f"unit/{one}.py" for one in files]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(HERE.parent),
        "LLAMA_SERVER_BIN_PATH": str(ROOT / "tests" / "support" / "llama_server_shim"),
        "PORT": str(port),
        keeper: str(Path(home) / "keeper"),
        OUTCOMES: str(out),
    }
    folder = os.environ.get(LOGS)
    log = Path(folder) / f"{port}.log" if folder else out.with_suffix(".log")
    with open(log, "wb") as stdout:
        return subprocess.Popen(
            [python, "-m", "pytest", "-q", "-p", HERE.stem, "-p", "no:cacheprovider",
             "--tb=short", *more, *names],
            cwd=tests, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stdout,
        )  # fmt: skip


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


def main() -> int:
    """Run them, print counts and what is wrong; 0 where nothing is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", default=list(FILES))
    parser.add_argument("-k", help="of pytest: which tests")
    parser.add_argument("--ways", type=int, default=N_WAYS)
    given = parser.parse_args()
    more = ["-k", given.k] if given.k else []
    outcomes = run(given.files, more, given.ways)
    known = expected(EXPECTED.read_text(encoding="utf-8")) if EXPECTED.exists() else {}
    is_whole = not more and list(given.files) == list(FILES)
    counts, wrong = verdict(outcomes, known, is_whole=is_whole, floor=FLOOR)
    print(", ".join(f"{n} {name}" for name, n in sorted(counts.items())) or "no tests ran")
    print("\n".join(wrong))
    return 1 if wrong or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
