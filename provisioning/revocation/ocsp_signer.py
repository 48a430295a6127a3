"""The delegated OCSP signer of one issuing CA: made when the service starts, renewed long before it expires.

Theory
------
Its certificate is not checked for revocation (id-pkix-ocsp-nocheck), so it is valid for days only, and its key exists
only in this process's memory: there is no file to steal, and a restart makes a new one. Each process has its own.

Rules
-----
1. The certificate is in the store, under the service's own name, before anything is signed with its key.
2. It is renewed at half of its life, and what the one before has signed is forgotten: it may be revoked by then, or
   later, when nobody looks at it. A failed renewal is logged and retried, and the old signer is used meanwhile.
   One that expires with its CA is the last: another would expire no later, and be due ever sooner.
3. An expired signer signs nothing: `current` raises, and the client is told to try later.
4. One whose certificate an operator has revoked, or put on hold, by its serial number is replaced within
   `_LONGEST_WAIT_SECONDS`: brokers do not believe what it has signed any more, and nobody else can know. Not one
   that is revoked with its CA: so would be the next.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

import structlog
from cryptography import x509
from sqlalchemy.engine import Connection

from provisioning.ca.issuer import IssuanceRefused, Issuer, OcspSignerRequest
from provisioning.ca.ocsp import Failure, OcspRefused, OcspSigner
from provisioning.errors import Refused
from provisioning.pki.keys import generate_key, spki_fingerprint
from provisioning.pki.revocation import certificate_key
from provisioning.pki.serial_number import serial_text
from provisioning.store import audit, certificates, device_keys, devices, serials
from provisioning.store.audit import Action
from provisioning.store.database import Database
from provisioning.store.serials import SerialNumbers

log = structlog.get_logger(__name__)

_RETRY_SECONDS: Final = 10.0
_LONGEST_WAIT_SECONDS: Final = 15.0  # Look at the wall clock now and then: it may be set.


class RenewedOcspSigner:
    """Holds the current signer, and replaces it in time."""

    def __init__(
        self,
        *,
        issuer: Issuer,
        database: Database,
        serial_numbers: SerialNumbers,
        owner: str,
        life: timedelta,
        clock: Callable[[], datetime],
        replaced: Callable[[], None] = lambda: None,
    ) -> None:
        """*owner* is the device under which the store files the certificates: the service itself.

        *replaced* is called when there is another: the one before may have been revoked, or will be.
        """
        self._replaced = replaced
        self.issuer: Final = issuer
        self._database = database
        self._serial_numbers = serial_numbers
        self._owner = owner
        self._life = life
        self._clock = clock
        self._signer: OcspSigner | None = None

    def current(self, now: datetime) -> OcspSigner:
        """Return the signer; raise `OcspRefused` if there is none that is valid *now*."""
        if self._signer is None or not self._signer.not_before <= now < self._signer.not_after:
            raise OcspRefused(Failure.TRY_LATER, "the OCSP signer is due for renewal")
        return self._signer

    def is_early(self, now: datetime) -> bool:
        """Whether the signer is not valid yet: the clock was set back."""
        return self._signer is not None and now < self._signer.not_before

    async def renew(self) -> None:
        """Make a new key, certify and record it, and use it from now on; raise `Refused` or `IssuanceRefused`."""
        now, ends = self._clock(), self.issuer.certificate.not_valid_after_utc
        if now >= ends:
            raise IssuanceRefused(f"the CA expired on {ends:%Y-%m-%d}: it can certify no OCSP signer any more")
        key = generate_key()
        async with self._serial_numbers.reservation(now) as reservation:
            prepared = self.issuer.prepare_ocsp_signer(
                OcspSignerRequest(key.public_key(), reservation.serial, now, self._life)
            )

            def sign_and_record(connection: Connection) -> x509.Certificate:
                owner = devices.find(connection, self._owner)
                if owner is None:
                    raise RuntimeError(f"the store does not know {self._owner}, the service's own name")
                facts: dict[str, object] = {"serial": serial_text(reservation.serial), "use": "OCSP signer"}
                audit.append(connection, now, self._owner, Action.SIGNING_CERTIFICATE, self._owner, facts)
                reservation.burnt = True
                certificate = self.issuer.issue(prepared)
                serials.use(connection, reservation.serial)
                certificates.add(connection, certificates.issued(certificate), owner.id, now)
                device_keys.claim(connection, spki_fingerprint(certificate.public_key()), owner.id)
                facts["not_after"] = certificate.not_valid_after_utc
                audit.append(connection, now, self._owner, Action.CERTIFICATE_SIGNED, self._owner, facts)
                return certificate

            certificate = await self._database.write(sign_and_record)
        self._signer = OcspSigner(certificate, key)
        log.info(
            "OCSP signer made",
            serial=serial_text(certificate.serial_number),
            not_after=certificate.not_valid_after_utc,
        )

    async def run(self) -> None:
        """Renew when it is time, until cancelled."""
        while True:
            wait = self._seconds_to_renewal()
            await asyncio.sleep(min(wait, _LONGEST_WAIT_SECONDS))
            is_due = self._seconds_to_renewal() <= 0
            if not is_due and not await self._is_ended():
                continue
            try:
                await self.renew()
            except (Refused, IssuanceRefused) as refusal:  # A CA that has expired certifies no signer.
                log.error("OCSP signer not renewed", code="OCSP_SIGNER_FAILED", detail=str(refusal))
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            self._replaced()

    async def _is_ended(self) -> bool:
        """Whether the signer's certificate was revoked or suspended, but for the end of its CA, which may go on."""
        signer = self._signer
        if signer is None or self._clock() >= self.issuer.certificate.not_valid_after_utc:
            return False
        key = certificate_key(signer.certificate)
        try:
            stored = await self._database.look(lambda connection: certificates.find(connection, *key))
        except Refused:  # The store cannot be used now: it is asked again soon.
            return False
        return stored is not None and stored.revocation is not None and stored.issuer_ended_at is None

    def _seconds_to_renewal(self) -> float:
        now, last = self._clock(), self.issuer.certificate.not_valid_after_utc
        if now >= last:
            return math.inf
        if self._signer is None:
            return 0.0
        begin, end = self._signer.not_before, self._signer.not_after
        if now < begin:  # The clock was set back: the signer is not valid yet.
            return 0.0
        if end >= last:
            return math.inf
        return max(0.0, (begin + (end - begin) / 2 - now).total_seconds())
