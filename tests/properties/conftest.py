"""Hypothesis for machines that are busy with other tests: an example may take as long as it needs."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("fleetgate", deadline=None)
settings.load_profile("fleetgate")
