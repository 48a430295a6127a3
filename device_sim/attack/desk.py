"""The enrolment service beside a broker: how cases enrol and revoke there, and how everything enrolled is cleaned up.

Rules
-----
1. A name is noted before the service is asked to enrol it: an interruption leaves no unknown device behind.
2. Only the noted names are ended: a name comes from `device_sim.attack.entry.Entry.fresh`.
3. To end is to revoke: this covers every certificate of the name, and its unused tokens. A name that has a token, and
   was never enrolled, is revoked like a device; one without a token is unknown to the service: nothing to revoke.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from device_sim.attack.issuer import Paper
from device_sim.parallel import in_parallel
from provisioning.client.csr import build_csr
from provisioning.client.enrolment import EnrolmentOperatorClient
from provisioning.client.est import EstClient, WrongCertificate
from provisioning.client.operator import RequestRefused, ServiceUnavailable
from provisioning.pki.identity import Identity
from provisioning.pki.keys import generate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.pki.serial_number import serial_text
from provisioning.program.moments import shown_minute

_AT_ONCE = 8
_NOT_FOUND = 404
_TOLD = 5
# A case takes less than a minute; a token unused after that is unclaimed.
_TOKEN_SECONDS = 600
_SHORT_SECONDS = 60
"""Revoking a name does not void a token that is for no name."""
_LIFE_SECONDS = 7200
"""Lifetime of a certificate from one of this attack's tokens: an attack takes minutes, or an hour on a machine that
others hold, and a CRL need not list what has expired (RFC 5280 §3.3)."""


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of those that the cases enrolled: how many are *revoked*, which names are *left* and why.

    At *expired* all their certificates have expired, including those that are left.
    """

    revoked: int
    left: tuple[str, ...] = ()
    why: str = ""
    expired: datetime | None = None

    @property
    def text(self) -> str:
        """Return both in one line."""
        told = f"{self.revoked} devices and services of this attack are revoked"
        if self.expired is not None:
            told += f", and off the CRL when they have expired, by {shown_minute(self.expired)}"
        if not self.left:
            return told
        names = ", ".join(self.left[:_TOLD]) + (f" and {len(self.left) - _TOLD} more" if self.left[_TOLD:] else "")
        return f"{told}, {len(self.left)} perhaps not ({self.why}): revoke {names}"

    def as_dict(self) -> dict[str, Any]:
        """Return the same for a JSON document."""
        return {
            "revoked": self.revoked,
            "left": list(self.left),
            "why": self.why,
            "expired": None if self.expired is None else self.expired.isoformat(timespec="seconds"),
        }


class EnrolmentDesk:
    """The service at *url*, trusted by *anchors*, and its *operator*.

    *relying_url* is where it publishes CRLs and OCSP responses; empty: certificates say where.
    """

    def __init__(self, url: str, anchors: Path, operator: EnrolmentOperatorClient, relying_url: str = "") -> None:
        self.url = url
        self.anchors = anchors
        self.operator = operator
        self.relying_url = relying_url
        self._noted: dict[str, None] = {}
        self._est: EstClient | None = None
        self._opened: Final = contextlib.AsyncExitStack()

    async def close(self) -> None:
        """End the connections by which devices were enrolled."""
        await self._opened.aclose()

    def note(self, name: str) -> None:
        """Record that the service is asked to enrol *name* (rule 1)."""
        self._noted[name] = None

    async def token(
        self,
        name: str,
        group: str | None,
        role: Role = Role.DEVICE,
        *,
        operator_role: str | None = None,
        seconds: int = _TOKEN_SECONDS,
        life: int = _LIFE_SECONDS,
        dns_names: Sequence[str] = (),
    ) -> str:
        """Return a one-time token for *name*, good for *seconds*, whose certificate is valid for *life* seconds.

        Raises `RequestRefused` or `ServiceUnavailable`.
        """
        self.note(name)
        (token,) = await self.operator.create_tokens(
            device=name, group=group, role=role, operator_role=operator_role, ttl_seconds=seconds,
            lifetime_seconds=life, dns_names=dns_names or None,
        )  # fmt: skip
        return token.token

    async def token_of_group(self, group: str) -> str:
        """Return a one-time token for any new device of *group*; raise as `token`."""
        (token,) = await self.operator.create_tokens(
            group=group, count=1, ttl_seconds=_SHORT_SECONDS, lifetime_seconds=_LIFE_SECONDS
        )
        return token.token

    async def end(self) -> Ended:
        """Revoke every name enrolled here, and return the outcome, which includes refusals and outages.

        If cancelled, what is left stays noted: `left` names it.
        """
        revoked, why = 0, ""

        async def one(name: str) -> None:
            nonlocal revoked
            try:
                await self.operator.revoke(device=name, reason=RevocationReason.CESSATION_OF_OPERATION)
                revoked += 1
            except RequestRefused as error:
                if error.status != _NOT_FOUND:  # No device, and no token, has that name: nothing to revoke.
                    raise
            del self._noted[name]

        try:
            await in_parallel(_AT_ONCE, list(self._noted), one)
        except* (RequestRefused, ServiceUnavailable) as group:
            why = str(group.exceptions[0])
        return Ended(revoked, self.left, why, datetime.now(UTC) + timedelta(seconds=_LIFE_SECONDS))

    async def enrolled(self, name: str, token: str, *, soon_over: bool = False) -> Paper:
        """Return *name* with a certificate for a new key, enrolled with *token*.

        *soon_over*: it is to end so soon that it may have when it arrives, on a busy machine.
        """
        key = generate_key()
        if self._est is None:  # One for all: TLS for each would be a fifth of an attack's work.
            est = EstClient(self.url, self.anchors, trust_domain=self.operator.trust_domain)
            self._est = await self._opened.enter_async_context(est)
        try:
            return Paper(await self._est.enrol(build_csr(key, name), user=name, token=token), key)
        except WrongCertificate as error:  # A device would not take it.
            if soon_over and error.certificate.not_valid_after_utc <= datetime.now(UTC):
                return Paper(error.certificate, key)
            raise

    async def renewed(self, paper: Paper) -> Paper:
        """Return the successor of *paper*, for a new key."""
        key = generate_key()
        async with EstClient(self.url, self.anchors, paper.pem) as est:
            return Paper(await est.reenrol(build_csr(key, paper.name, paper.certificate)), key)

    @property
    def left(self) -> tuple[str, ...]:
        """The names requested and not yet revoked."""
        return tuple(self._noted)


class EnrollingRegistrar:
    """Certifies through the enrolment service, as devices do, and revokes as operators do."""

    def __init__(self, desk: EnrolmentDesk) -> None:
        self._desk = desk

    async def certify(self, identity: Identity) -> Paper:
        """Enrol *identity*."""
        desk = self._desk
        return await desk.enrolled(identity.name, await desk.token(identity.name, identity.group, identity.role))

    async def revoke(self, paper: Paper) -> None:
        """Revoke this one certificate."""
        serial = serial_text(paper.certificate.serial_number)
        await self._desk.operator.revoke(serial=serial, reason=RevocationReason.KEY_COMPROMISE)
