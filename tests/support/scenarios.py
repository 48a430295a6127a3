"""What the scenarios of several tests have in common."""

from __future__ import annotations

ON_ANY_MACHINE = """
generator.lag_p99_ms = 60000
generator.busy_share = 1
generator.waiting_share = 1
generator.skipped_share = 1
"""
"""The run counts though other tests keep the machine from it: what is looked at is what happens, not how soon."""
