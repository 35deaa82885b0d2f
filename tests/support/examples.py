"""How many examples Hypothesis tries: a bounded number, or ten times as many.

``HYPOTHESIS_PROFILE=thorough``, or ``--hypothesis-profile=thorough`` at pytest. In every profile
examples are random, a failure prints the line that reproduces it, and no example has a deadline,
since its duration depends on the load of the machine.
"""

from __future__ import annotations

import os
from typing import Any, Final

from hypothesis import HealthCheck, settings

DEFAULT: Final = 100
_THOROUGH: Final = 10


def load_profiles() -> None:
    """Register the profiles and choose one; before any test is defined."""
    settings.register_profile(
        "ci",
        max_examples=DEFAULT,
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.register_profile(
        "thorough", settings.get_profile("ci"), max_examples=DEFAULT * _THOROUGH
    )
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def examples(count: int, *suppressed: HealthCheck, **options: Any) -> settings:
    """Settings for a test that needs another number of examples than the profile's."""
    factor = max(1, settings.default.max_examples // DEFAULT)  # type: ignore[union-attr]
    return settings(
        max_examples=count * factor,
        suppress_health_check=[HealthCheck.too_slow, *suppressed],
        **options,
    )
