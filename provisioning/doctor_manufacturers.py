"""What may be wrong with manufacturers' lists of revoked certificates: that the next one is not there."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from sqlalchemy.engine import Connection

from provisioning.doctor_finding import Finding, failed, ok, warning
from provisioning.enrolment.manufacturer_watch import Waiting, waiting_for
from provisioning.store import manufacturer_lists

_CHECK: Final = "manufacturers"


def manufacturer_findings(connection: Connection, now: datetime) -> Iterator[Finding]:
    """Yield what is found about each manufacturer whose lists devices wait for."""
    good = []
    for name, lists in manufacturer_lists.awaited(connection).items():
        waiting, end = waiting_for(lists, now)
        remedy = f"get the newest list from the manufacturer: fleet-provisioning manufacturer crl {name} FILE"
        which = f"{name}'s list" if len(lists) == 1 else f"the first of {name}'s {len(lists)} lists"
        match waiting:
            case Waiting.NOBODY:
                good.append(name)
            case Waiting.SOON:
                verb = "lapses" if now <= end else "lapsed"
                yield warning(_CHECK, f"{which} {verb} on {end:%Y-%m-%d %H:%M} UTC, and the next is not here", remedy)
            case Waiting.ALL:
                detail = f"{name}'s lists lapsed on {end:%Y-%m-%d %H:%M} UTC: its devices are refused"
                yield failed(_CHECK, detail, remedy)
    if good:
        yield ok(_CHECK, f"lists hold for a while: {', '.join(good)}")
