"""Whether the clock is behind what the audit log has recorded, or was ahead when that was recorded."""

from __future__ import annotations

from datetime import datetime

from provisioning.doctor.doctor_finding import Finding, failed, ok, warning
from provisioning.program.moments import shown_time
from provisioning.store.audit_findings import Latest


def clock_finding(now: datetime, latest: Latest) -> Finding:
    """Compare *now* with the latest of the last entries."""
    if not latest.is_ahead_of(now):
        return ok("clock", f"{shown_time(now)}, later than the last entries")
    detail = f"the clock says {shown_time(now)}, but an entry was recorded at {latest.at:%Y-%m-%d %H:%M:%S}"
    remedy = "set the clock: timedatectl set-ntp true"
    if latest.since == 0:
        return failed("clock", detail, remedy)
    shown = "fleet-provisioning audit show"
    return warning(
        "clock",
        f"{detail} ({latest.since} were later)",
        f"{remedy}; if it is right now, it was ahead then: {shown} tells what was done meanwhile",
    )
