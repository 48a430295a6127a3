"""Whom a handshake has let as far as a CONNECT packet: what is kept of a certificate while its connection lives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from broker.admission.inquiry import Inquiry
from broker.admission.issuers import Issuer
from broker.admission.path_ends import VerifiedPath
from provisioning.pki.identity import Identity
from provisioning.pki.revocation import CertificateKey

DEFAULT_BUNDLE: Final = "cafile"
"""The name of the bundle that `cafile` is."""


@dataclass(slots=True, init=False)
class Peer:
    """Whom a certificate names, and what must be remembered of it while its connection lives. Never changed."""

    identity: Identity
    certificate: CertificateKey
    seconds_left: float
    """How long the certificate, and every CA's above it, was still valid when it was examined."""
    issuer: Issuer | None
    """Who issued it, where that matters; None: judged by `cafile` alone."""
    inquiry: Inquiry | None
    """What is still being asked about it."""
    fingerprint: bytes
    """SHA-256 of the certificate, where `Admission.fingerprints` asks for it."""
    ends_at: float
    """When the first of those certificates ends, in seconds since 1970; infinity where there is none."""
    verified: VerifiedPath | None
    """The CAs above it, by a handshake that has verified them, where `cafile` alone judges and they are known."""
    authorities: tuple[bytes, ...]
    """Which CAs stand above it (`broker.admission.issuers.authorities_of`); empty: not known."""

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
    def bundle(self) -> str:
        """The name of the trust bundle that judged."""
        return DEFAULT_BUNDLE if self.issuer is None else self.issuer.bundle.name

    @property
    def serial(self) -> str:
        """The serial number, in hex, as provisioning writes it."""
        return format(self.certificate[1], "x")  # Of an f-string's format mypyc makes one that is read each time.
