"""What may be wrong with manufacturers' lists of revoked certificates: that the next one is not there.

Rules
-----
1. A list is due when a quarter of its life is left: its manufacturer should have made the next one.
2. Where lapsed lists are accepted, and of a manufacturer that was ended, nobody waits for one.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from sqlalchemy.engine import Connection

from provisioning.doctor_finding import Finding, failed, ok, warning
from provisioning.store import manufacturer_lists

_CHECK: Final = "manufacturers"
_DUE: Final = 4
"""The next list is due when one part in so many is left of the life."""


def manufacturer_findings(connection: Connection, now: datetime) -> Iterator[Finding]:
    """Yield what is found about each manufacturer that has a list."""
    good = []
    for name, lists in manufacturer_lists.awaited(connection).items():
        remedy = f"get the newest list from the manufacturer: fleet-provisioning manufacturer crl {name} FILE"
        lapsed = [each for each in lists if each.next_update < now]
        due = [each for each in lists if now > each.next_update - (each.next_update - each.this_update) / _DUE]
        if len(lapsed) == len(lists):
            yield failed(
                _CHECK,
                f"{name}'s list lapsed on {max(each.next_update for each in lists):%Y-%m-%d %H:%M} UTC: its devices "
                "are refused",
                remedy,
            )
        elif due:
            end = min(each.next_update for each in due)
            which = f"{len(due)} of {name}'s {len(lists)} lists" if len(lists) > 1 else f"{name}'s list"
            yield warning(_CHECK, f"{which} will have lapsed, or has, on {end:%Y-%m-%d %H:%M} UTC", remedy)
        else:
            good.append(name)
    if good:
        yield ok(_CHECK, f"lists hold for a while: {', '.join(good)}")
