"""Policies for tests whose outcome must not depend on how busy the machine is."""

from __future__ import annotations

from cache.policy import RestorePolicy

RESTORES_ALWAYS = RestorePolicy(min_saved_s=3600.0)
"""On a busy machine a restore may look slower than computing, and would be left out for that."""
