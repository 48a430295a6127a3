"""Checks of manufacturers' CRLs: whether the next one is missing.

If a CA's group admits no manufacturer's devices, as with a CA above others that is registered for its CRL, no device is
refused when the CRL has lapsed; but what the CA has revoked since is unknown all the same.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from datetime import datetime
from typing import Final

from cryptography import x509
from sqlalchemy.engine import Connection

from provisioning.doctor.doctor_finding import Finding, failed, ok, warning
from provisioning.enrolment.manufacturer_status import check_authority
from provisioning.enrolment.manufacturer_watch import Waiting, waiting_for
from provisioning.errors import Refused
from provisioning.program.moments import shown_minute
from provisioning.store import manufacturer_list_urls, manufacturer_lists, manufacturers, recalls

_CHECK: Final = "manufacturers"


def manufacturer_findings(connection: Connection, now: datetime) -> Iterator[Finding]:
    """Yield the findings about each manufacturer whose CRLs need successors."""
    good = []
    for kept in manufacturer_lists.kept(connection):
        name, lists = kept.manufacturer, kept.lists
        waiting, end = waiting_for(lists, now)
        remedy = f"get the newest CRL from the manufacturer: fleet-provisioning manufacturer crl {name} FILE"
        which = f"{name}'s CRL" if len(lists) == 1 else f"the first of {name}'s {len(lists)} CRLs"
        match waiting:
            case Waiting.NOBODY:
                good.append(name)
            case Waiting.SOON:
                verb = "expires" if now <= end else "expired"
                yield warning(_CHECK, f"{which} {verb} on {shown_minute(end)}; the next one is not here", remedy)
            case Waiting.ALL if not kept.awaited:
                detail = f"{name}'s CRLs expired on {shown_minute(end)}: what it has revoked since is unknown"
                yield warning(_CHECK, detail, remedy)
            case Waiting.ALL:
                detail = f"{name}'s CRLs expired on {shown_minute(end)}: its devices are refused"
                yield failed(_CHECK, detail, remedy)
    if good:
        yield ok(_CHECK, f"CRLs not expiring soon: {', '.join(good)}")
    yield from _revoked(connection)
    yield from _unfetched(connection)
    yield from _recalled(connection)


def _revoked(connection: Connection) -> Iterator[Finding]:
    for each in manufacturers.every(connection):
        if each.ended_at is None:
            try:
                check_authority(connection, each, x509.load_der_x509_certificate(each.der))
            except Refused as refusal:
                yield failed(
                    _CHECK,
                    refusal.detail.removesuffix(": ask the operator") + ": its devices are refused",
                    "ask the manufacturer; revoke those of its enrolled devices that must not stay: "
                    f"fleet-provisioning device list --group {each.group}",
                )


def _unfetched(connection: Connection) -> Iterator[Finding]:
    for each in manufacturer_list_urls.in_force(connection):
        if each.problem:
            yield warning(
                _CHECK,
                f"{each.manufacturer}'s CRL at {each.url} cannot be fetched: "
                + each.problem.removeprefix("cannot be fetched: "),
                f"try curl -O {shlex.quote(each.url)}; or import the CRL by hand: fleet-provisioning "
                f"manufacturer crl {each.manufacturer} FILE",
            )


def _recalled(connection: Connection) -> Iterator[Finding]:
    counts = recalls.count_in(connection)
    for each in manufacturers.every(connection):
        if number := counts.get(each.id, 0):
            who, what = f"{number} devices are", "the certificates that they enrolled with"
            if number == 1:
                who, what = "1 device is", "the certificate that it enrolled with"
            yield warning(
                _CHECK,
                f"{who} enrolled although {each.name} has revoked {what}",
                f"list them: fleet-provisioning manufacturer revoked {each.name}; revoke or suspend those that must "
                "not stay, or automate it: manufacturer set --revoked-devices",
            )
