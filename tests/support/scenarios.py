"""What the scenarios of several tests share."""

from __future__ import annotations

ON_ANY_MACHINE = """
generator.lag_p99_ms = 60000
generator.busy_share = 1
generator.waiting_share = 1
generator.skipped_share = 1
"""
"""The run counts even if other tests slow it down: what happens is tested, not how soon."""
