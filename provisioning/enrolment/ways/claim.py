"""The claim certificate: a production batch shares it, and each of its devices gets one certificate on trial.

The claim shows that the client is *some* device of the batch, so it is good for new names only. Its certificates are
short-lived and on hold from their first second; asking for the successor of one activates the device
(`provisioning.store.claims`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import ClassVar, Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy.engine import Connection

from provisioning.enrolment.attempt import Attempt
from provisioning.enrolment.ways.way import Vouched, Way
from provisioning.errors import Code, Refused
from provisioning.pki.keys import spki_fingerprint
from provisioning.program.moments import shown_time
from provisioning.store import claims, devices
from provisioning.store.claims import StoredClaim
from provisioning.store.groups import Group, WayName


class ClaimWay(Way):
    """A TLS client certificate that is a claim's."""

    name: ClassVar[WayName] = WayName.CLAIM

    def __init__(self, claim: StoredClaim) -> None:
        self._claim = claim
        self.group = claim.group

    @classmethod
    def presented(cls, connection: Connection, attempt: Attempt) -> Self | None:
        """Find the claim, and lock it: its places are counted one at a time."""
        if attempt.certificate is None:
            return None
        fingerprint = hashlib.sha256(attempt.certificate.public_bytes(Encoding.DER)).hexdigest()
        claim = claims.find(connection, fingerprint)
        return None if claim is None else cls(claim)

    def check_good(self, now: datetime) -> None:
        """Refuse a claim that has ended."""
        claim = self._claim
        if claim.ended_at is not None or now >= claim.expires_at:
            since = claim.ended_at or claim.expires_at
            raise Refused(
                Code.CLAIM_ENDED,
                f"claim {claim.name} ended on {shown_time(since)}: an operator has to make a new one",
            )

    def vouch(self, connection: Connection, attempt: Attempt, group: Group, shown: Sequence[Vouched]) -> Vouched:  # noqa: ARG002 - a way's signature
        """Refuse a claim that has ended or whose places are taken, and a request for the claim's own key."""
        claim, name = self._claim, attempt.request.common_name
        check_own_key(attempt, claim.name, claim.der)
        self.check_good(attempt.now)
        if claims.is_full(connection, claim, name, attempt.now):
            raise Refused(
                Code.CLAIM_EXHAUSTED,
                f"claim {claim.name} has admitted {claim.maximum_devices} devices, its maximum: an operator has "
                "to make a new one",
            )
        return Vouched(
            claim.created_by,
            f"claim {claim.name}",
            proves=True,
            lifetime=claim.trial,
            on_trial=True,
            settle=self._take_place,
        )

    def _take_place(self, connection: Connection, certificate_id: int, device_name: str, ends: datetime) -> None:
        device = devices.find(connection, device_name)
        if device is None:
            raise AssertionError("the certificate's device is recorded before")
        claims.begin_trial(connection, self._claim.id, device.id, certificate_id, ends)


def check_own_key(attempt: Attempt, claim: str, der: bytes) -> None:
    """Refuse a request for the key of the claim certificate *der*: the whole batch has that key."""
    shared = x509.load_der_x509_certificate(der).public_key()
    if attempt.request.key_fingerprint == spki_fingerprint(shared):
        raise Refused(
            Code.KEY_REUSED,
            f"the request has the key of claim {claim}, which the whole batch holds: make a new key on each device",
        )
