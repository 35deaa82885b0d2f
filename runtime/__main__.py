"""``python -m runtime``."""

import sys

from runtime.cli.program import run

sys.exit(run())
