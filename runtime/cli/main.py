"""The program: ``llama-actors`` and ``python -m runtime``.

Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 the work
failed, 2 wrong usage, 130 Ctrl-C.

Until Ctrl-C is handled quietly nothing heavy is imported: a traceback of imports helps no user.
Then the standard streams are made usable, and at the end the output is flushed and checked.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

from runtime._shadows import INTERRUPTED, USAGE, end_quietly, quit_quietly

DONE: Final = 0
FAILED: Final = 1
SCRIPT: Final = "llama-actors"
"""The installed script. It is the one that completion scripts are registered for."""
COMPLETE_VARIABLE: Final = "_LLAMA_ACTORS_COMPLETE"
"""Set by a completion script: candidates are printed instead of a result."""
COLLECT_AFTER: Final = 100_000
"""Objects between two collections. Python's 700 cost a command a twentieth of its time, all of it
while modules are imported, whose objects stay."""


def run() -> int:
    """Run one command as the whole process; returns the exit code."""
    catches = end_quietly()
    gc.set_threshold(COLLECT_AFTER)
    from supervision import stdio

    stdio.prepare()
    try:
        if catches:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = _complete() if COMPLETE_VARIABLE in os.environ else main()
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
            signal.signal(signal.SIGINT, quit_quietly)
    return _finish(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command in this process; returns the exit code.

    Click's own ``main`` is not used: it ends the process on a closed pipe, and prints its errors
    in another form.
    """
    import click

    from runtime import errors
    from runtime.cli.commands import program

    given = list(sys.argv[1:] if argv is None else argv)
    try:
        with program.make_context(program_name(), given) as context:
            return int(program.invoke(context) or DONE)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.UsageError as error:
        if error.ctx is not None:
            sys.stderr.write(error.ctx.get_usage() + "\n")
        _print_error(error.format_message())
        return USAGE
    except (errors.ConfigError, errors.InvalidRequest) as error:
        _print_error(str(error))
        return USAGE
    except (errors.LlamaActorsError, click.ClickException) as error:
        _print_error(str(error))
        return FAILED
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED


def program_name() -> str:
    """The program as its user started it."""
    is_script = os.path.basename(sys.argv[0]) == SCRIPT
    return SCRIPT if is_script else "python -m runtime"


def _print_error(text: str) -> None:
    sys.stderr.write(f"error: {text}\n")


def _complete() -> int:
    """Print candidates for the words in the environment, as the completion script asks."""
    from click.shell_completion import shell_complete

    from runtime.cli.commands import program

    instruction = os.environ[COMPLETE_VARIABLE]
    return shell_complete(program, {}, SCRIPT, COMPLETE_VARIABLE, instruction)


def _finish(code: int) -> int:
    """Flush the output; returns the exit code, which is a failure where that is impossible."""
    from supervision import stdio

    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    error = stdio.output_error()
    if error is None:
        return code
    stdio.say(f"error: standard output did not take all of the result: {error.strerror}")
    stdio.drop_output()
    return code or FAILED
