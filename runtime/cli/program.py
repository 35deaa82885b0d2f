"""The program ``python -m runtime``: what surrounds the command line, before and after it.

Nothing heavy is imported until Ctrl-C is quiet: a traceback of imports helps no user. Then the
standard streams are made usable. At the end what was printed must have been written.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from typing import Final

from runtime._shadows import INTERRUPTED, USAGE, end_quietly, quit_quietly

FAILED: Final = 1


def run() -> int:
    """Run one command; the exit code: 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C."""
    catches = end_quietly()
    from runtime.cli.main import main
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
            signal.signal(signal.SIGINT, quit_quietly)
    return _finish(code)


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
