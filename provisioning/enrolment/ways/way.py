"""A way to be admitted: it recognises one kind of evidence, and vouches for the request or refuses.

Theory
------
A group names alternatives; an alternative names ways that must all vouch. So a way is small: it knows one kind of
evidence. It only reads and locks; what remains to be done once the certificate exists (spend a token, count a claim) it
returns as `Vouched.settle`, which runs in the same transaction.

Some ways are evidence (`presented` finds it or not), others are conditions on whatever was presented: the list, the
approval, the webhook.

Rules
-----
1. A way says whether its evidence is about this very device (`Vouched.identifies`). Evidence shared by many devices
   never certifies anyone as an existing device: `provisioning.enrolment.authorise` ensures that.
2. A way changes nothing in the store before the certificate is recorded.
"""

from __future__ import annotations

import ipaddress
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ClassVar, Self

from sqlalchemy.engine import Connection

from provisioning.enrolment.attempt import Attempt
from provisioning.pki.role import Role
from provisioning.quick_values import quickly_made
from provisioning.store.certificates import StoredCertificate
from provisioning.store.groups import Group, WayName

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Settle = Callable[[Connection, int, str, datetime], None]
"""Called with the certificate's id, device and end, in the transaction that records it."""


@quickly_made
@dataclass(frozen=True, slots=True)
class Vouched:
    """What one way says for a request."""

    by: str
    """Who vouches, for the audit log."""
    credential: str
    """What was presented, without secrets: ``token``."""
    worth_one: str = ""
    """The same, of something that is good for one certificate, or for one device, told from others: ``token 17``."""
    proves: bool = False
    """It shows more than knowledge of a name; without such a way nobody is admitted."""
    identifies: bool = False
    """It is about this very device, not about one of many that may be admitted."""
    origin: str | None = None
    """What identifies the device; it must equal the origin recorded at its first enrolment."""
    readmits: bool = False
    """An operator's permission for this device: what is void since its revocation does not vouch."""
    decides: bool = False
    """A person has decided about this very request."""
    pays: bool = False
    """What was presented is worth one certificate, and is spent on this one."""
    dns_names: tuple[str, ...] = ()
    ip_addresses: tuple[IpAddress, ...] = ()
    lifetime: timedelta | None = None
    answer: bytes | None = None
    """The certificate that this very request was answered with before."""
    lost: StoredCertificate | None = None
    """The certificate that answered this very request before, to be replaced because its private key was lost."""
    on_trial: bool = False
    """The certificate is on hold until its successor is asked for."""
    idevid: tuple[int, int] | None = None
    """The manufacturer's id, and the serial number of its certificate that the device came with."""
    settle: Settle | None = None


class Way(ABC):
    """One way, with what was presented for it."""

    name: ClassVar[WayName]
    role: Role = Role.DEVICE
    group: str | None = None
    """The group that the evidence is for; None: any."""
    is_decision: bool = False
    """An operator has decided about this very device."""

    @classmethod
    @abstractmethod
    def presented(cls, connection: Connection, attempt: Attempt) -> Self | None:
        """Return the way if *attempt* shows its kind of evidence; raise `Refused` if that is unknown here."""

    def check_good(self, now: datetime) -> None:  # noqa: B027 - what a condition shows has no end
        """Raise `Refused` if the evidence is no longer good for anything."""

    @abstractmethod
    def vouch(self, connection: Connection, attempt: Attempt, group: Group, shown: Sequence[Vouched]) -> Vouched:
        """Vouch for *attempt* to become a device of *group*; raise `Refused`.

        *shown* is what the earlier ways of the same alternative returned.
        """
