"""Imported first: are our packages ours, or is another project's module found in their place?"""

from __future__ import annotations

import sys

from runtime.program import USAGE, end_quietly, is_starting, shadowing

if is_starting():
    end_quietly()
_found = shadowing()
if _found is not None:
    if is_starting():  # a person reads one line, and no traceback
        sys.stderr.write(f"error: {_found}\n")
        raise SystemExit(USAGE)
    raise ImportError(_found)
