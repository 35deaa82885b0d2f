"""``python -m runtime``."""

import sys

from runtime.program import run

sys.exit(run())
