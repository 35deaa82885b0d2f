"""``python -m tests.clients``: see the package."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.clients import sandbox
from tests.clients.examples import EXAMPLES
from tests.clients.install import install
from tests.clients.libraries import LIBRARIES
from tests.clients.load import LOAD
from tests.clients.outcomes import judge
from tests.clients.programs import PROGRAMS
from tests.clients.schema import SCHEMA
from tests.clients.sdk_tests import ANTHROPIC, OPENAI
from tests.clients.server import Server, ServerFailed, serve_gateway
from tests.clients.suite import Place, Suite
from tools.install import Problem

SUITES = (OPENAI, ANTHROPIC, EXAMPLES, LIBRARIES, SCHEMA, PROGRAMS, LOAD)
_DEADLINE_S = 3600.0
_INSIDE = "LLAMA_ACTORS_CLIENTS_INSIDE"


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.clients")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help="all when none is named")
    parser.add_argument("--list", action="store_true", help="print the suites")
    parser.add_argument("--install", action="store_true", help="only install what they need")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="keep outputs in this folder")
    parser.add_argument(
        "--server",
        metavar="COMMAND",
        help="another server than the gateway; {port} is its port. The agents keep to the gateway",
    )
    options = parser.parse_args(arguments)
    names = [suite.name for suite in SUITES]
    for name in options.suites:
        if name not in names:
            parser.error(f"no suite is called {name}; there are {', '.join(names)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    chosen = [s for s in SUITES if not options.suites or s.name in options.suites]
    if options.list:
        for suite in SUITES:
            print(f"{suite.name:<10} {suite.about}")
        return 0
    if os.environ.pop(_INSIDE, None) == "yes":
        return sandbox.as_first_process(lambda: run_suites(chosen, options, isolated=True))
    try:
        install(
            with_programs=any(suite.needs_programs for suite in chosen),
            with_load=any(suite.needs_load for suite in chosen),
        )
    except Problem as problem:
        sys.stderr.write(f"clients: {problem}\n")
        return 1
    if options.install:
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="clients-") as temporary:
        options.logs = (options.logs or Path(temporary)).resolve()
        options.logs.mkdir(parents=True, exist_ok=True)
        return start(chosen, options)


def start(chosen: Sequence[Suite], options: argparse.Namespace) -> int:
    """Run the suites in namespaces of their own, where that is allowed."""
    words = sandbox.unshare()
    if words is None:
        print("clients: namespaces are not allowed here: the clients run beside the network")
        return run_suites(chosen, options, isolated=False)
    command = [sys.executable, "-m", "tests.clients", *(suite.name for suite in chosen)]
    command += ["--logs", str(options.logs)]
    if options.server:
        command += ["--server", options.server]
    os.environ[_INSIDE] = "yes"
    return sandbox.run_inside(words, command, deadline_s=_DEADLINE_S)


def run_suites(chosen: Sequence[Suite], options: argparse.Namespace, *, isolated: bool) -> int:
    """Run against one server; 0 when every suite is as it should be."""
    if isolated:
        sandbox.loopback_up()
    try:
        with serve_gateway(options.logs, command=options.server) as server:
            results = [run_suite(suite, server, options.logs) for suite in chosen]
    except ServerFailed as error:
        print(f"clients: {error}")
        return 1
    left = sandbox.others() if isolated else []
    for line in left:
        print(f"clients: a process is left: {line}")
    return 0 if all(results) and not left else 1


def run_suite(suite: Suite, server: Server, folder: Path) -> bool:
    began = time.monotonic()
    home = folder / suite.name
    home.mkdir(exist_ok=True)
    # Everything is installed by now, so this only finds it.
    installed = install(with_programs=suite.needs_programs, with_load=suite.needs_load)
    place = Place(server, installed, home)
    verdict = judge(suite.name, suite.outcomes(place), suite.known, suite.floor)
    seconds = time.monotonic() - began
    print(
        f"{suite.name}: {verdict.n_passed} passed, {verdict.n_known} known to fail, "
        f"{len(verdict.problems)} problems, {seconds:.0f} s"
    )
    for problem in verdict.problems:
        print(f"    {problem}")
    sys.stdout.flush()
    return not verdict.problems


if __name__ == "__main__":
    sys.exit(main())
