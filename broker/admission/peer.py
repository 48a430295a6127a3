"""A client whose handshake has succeeded: what is kept of its certificate while the connection lasts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from broker.admission.inquiry import Inquiry
from broker.admission.issuers import Issuer
from broker.admission.path_ends import VerifiedPath
from provisioning.pki.identity import Identity
from provisioning.pki.revocation import CasAbove, CertificateKey
from provisioning.pki.serial_number import serial_text

DEFAULT_BUNDLE: Final = "cafile"
"""The name of the bundle that `cafile` forms."""


@dataclass(slots=True, init=False)
class Peer:
    """The identity in a certificate, and what must be remembered of it while its connection lasts. Immutable."""

    identity: Identity
    certificate: CertificateKey
    seconds_left: float
    """How long the certificate and every CA certificate above it were still valid when examined."""
    issuer: Issuer | None
    """Its issuer, where bundles judge; None: judged by `cafile` alone."""
    inquiry: Inquiry | None
    """What is still being asked about it."""
    fingerprint: bytes
    """SHA-256 of the certificate, where `Admission.fingerprints` requires it."""
    ends_at: float
    """When the first of those certificates expires, in seconds since 1970; infinity where there is none."""
    verified: VerifiedPath | None
    """The CAs above it, from a handshake that verified them, where `cafile` alone judges and they are known."""
    authorities: tuple[bytes, ...]
    """The CAs above it (`broker.admission.issuers.authorities_of`); empty: not known."""

    def __init__(  # Written out for mypyc to compile.
        self,
        identity: Identity,
        certificate: CertificateKey,
        seconds_left: float,
        issuer: Issuer | None = None,
        inquiry: Inquiry | None = None,
        fingerprint: bytes = b"",
        ends_at: float = math.inf,
        verified: VerifiedPath | None = None,
        authorities: tuple[bytes, ...] = (),
    ) -> None:
        self.identity = identity
        self.certificate = certificate
        self.seconds_left = seconds_left
        self.issuer = issuer
        self.inquiry = inquiry
        self.fingerprint = fingerprint
        self.ends_at = ends_at
        self.verified = verified
        self.authorities = authorities

    @property
    def above(self) -> CasAbove | None:
        """The CAs above it themselves; None: not known."""
        return self.verified if self.issuer is None else self.issuer

    @property
    def bundle(self) -> str:
        """The name of the trust bundle that judged it."""
        return DEFAULT_BUNDLE if self.issuer is None else self.issuer.bundle.name

    @property
    def serial(self) -> str:
        """The serial number."""
        return serial_text(self.certificate[1])
