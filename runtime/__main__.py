"""``python -m runtime``."""

import sys

from runtime.cli.main import run

sys.exit(run())
