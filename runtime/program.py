"""The program ``python -m runtime``: what surrounds the command line, before and after it.

Nothing heavy is imported until Ctrl-C is quiet: a traceback of imports helps no user. Then the
standard streams are made usable. At the end what was printed must have been written.

``shadowing`` names modules of other projects that would be imported in place of ours; the package
itself asks it, before its first import.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import signal
import sys
from typing import Final

PACKAGES: Final = ("actors", "cache", "native", "supervision")
DEPENDENCIES: Final = ("blake3", "cffi", "jinja2", "msgpack", "thespian")
FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130


def run() -> int:
    """Run one command; the exit code: 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C."""
    catches = end_quietly()
    from runtime.cli import main
    from supervision import stdio

    stdio.prepare()
    try:
        if catches:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = main()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except UnicodeDecodeError as error:
        stdio.say(
            f"error: standard input is not {error.encoding}: byte 0x{error.object[error.start]:02x}"
        )
        code = USAGE
    except OSError as error:
        if stdio.output_error() is None:
            stdio.say(f"error: {error}")
        code = FAILED
    finally:
        if catches:
            signal.signal(signal.SIGINT, _quit)
    return _finish(code)


def is_starting() -> bool:
    """Whether the interpreter is about to run ``-m runtime``, and imports the package for that."""
    words = getattr(sys, "orig_argv", [])
    pairs = itertools.pairwise(words)
    asked = any(flag[:1] == "-" and flag[-1:] == "m" and name == "runtime" for flag, name in pairs)
    return asked and sys.argv[:1] == ["-m"]


def end_quietly() -> bool:
    """Until a command runs, Ctrl-C ends the process without a word, unless it is ignored."""
    catches = signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _quit)
    if catches:
        signal.signal(signal.SIGINT, _quit)
    return catches


def shadowing() -> str | None:
    """What is imported in place of a package of ours, and what to do; None where nothing is."""
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for name in PACKAGES:
        found = _found(name)
        if found is not None and _place(found) != os.path.realpath(home):
            return _sentence(found, name)
    first = os.path.realpath(sys.path[0] or os.curdir) if sys.path else home
    if first != os.path.realpath(home):
        for name in DEPENDENCIES:
            found = _found(name)
            if found is not None and _place(found) == first:
                return _sentence(found, name)
    return None


def _found(name: str) -> str | None:
    """The file that an import of this name runs."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return None if spec is None else spec.origin


def _place(origin: str) -> str:
    """The folder where a package or module was found; it may itself be a link to elsewhere."""
    where = os.path.abspath(origin)
    if os.path.basename(where) == "__init__.py":
        where = os.path.dirname(where)
    return os.path.realpath(os.path.dirname(where))


def _sentence(found: str, name: str) -> str:
    return (
        f"{found} is imported in place of the package {name!r} that llama-actors needs; "
        "rename it, start from another folder, or use `python -P -m runtime`"
    )


def _quit(_number: int, _frame: object) -> None:
    os._exit(INTERRUPTED)


def _finish(code: int) -> int:
    """Write what is left of the output; the exit code, a failure where that is impossible."""
    from supervision import stdio

    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    error = stdio.output_error()
    if error is None:
        return code
    stdio.say(f"error: standard output did not take all of the result: {error.strerror}")
    stdio.drop_output()
    return code or FAILED
