"""Write the C source of the cffi module from the shim header: ``build_ffi.py OUTPUT.c``.

There is one source for the boundary, ``shim/shim.h``. C++ compiles it as it is, so the compiler
checks every definition against it; cffi reads the same text without the preprocessor lines. CMake
runs this file as a script, so it imports nothing of this project.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import cffi

HEADER = Path(__file__).resolve().parent / "shim" / "shim.h"


def declarations(header: str) -> str:
    """The part of ``header`` for cffi's C parser: the lines between the cdef marks."""
    start, end = header.index("/* cdef begin */"), header.index("/* cdef end */")
    return re.sub(r"\bLA_NOEXCEPT\b", "", header[start:end])


def main(output: str) -> None:
    ffi = cffi.FFI()
    ffi.cdef(declarations(HEADER.read_text(encoding="utf-8")))
    # The one callback into Python: load progress. All other calls go from Python to C.
    ffi.cdef('extern "Python" int la_on_progress(float, void *);')
    ffi.set_source("native._llama", '#include "shim.h"')
    ffi.emit_c_code(output)


if __name__ == "__main__":
    main(sys.argv[1])
