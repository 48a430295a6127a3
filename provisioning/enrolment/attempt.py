"""One request for a certificate as it arrived, before anything in it is trusted.

A client may present a one-time token (HTTP Basic) and the certificate of its TLS connection.
`provisioning.enrolment.authorise` decides who the client is and whether it gets a certificate.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from provisioning.ca.csr import VerifiedRequest
from provisioning.errors import Refused
from provisioning.quick_values import quickly_made


@quickly_made
@dataclass(frozen=True, slots=True)
class TokenCredential:
    """HTTP Basic: the user name, and the token as the password."""

    user: str
    token: str

    def __repr__(self) -> str:
        """Leave the token out: representations end in logs."""
        return f"TokenCredential(user={self.user!r})"


@dataclass(frozen=True, slots=True)
class Question:
    """The question for a group's webhook, and its URL."""

    url: str
    timeout: timedelta
    group: str
    device: str
    key_sha256: str
    evidence: tuple[str, ...]
    enrolled_before: bool
    shown: Hashable = field(default=None, compare=False, repr=False)
    """What is worth one certificate, with secrets; who shows the same asks one question at a time. None: nothing is."""
    batch: bytes | None = field(default=None, compare=False, repr=False)
    """The certificate that was presented, in DER: a batch shares a claim's."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The webhook's answer to *question*."""

    question: Question
    allowed: bool
    reason: str = ""
    failure: Refused | None = None
    """Why there is no answer: nobody is let in by it, and another of the group's ways may still count."""


@quickly_made
@dataclass(frozen=True, slots=True)
class TlsConnection:
    """The connection that the request came on; TLS 1.3 has no *unique* (RFC 9266)."""

    version: str
    unique: bytes | None = None
    address: str | None = None
    """The client's network address."""


@quickly_made
@dataclass(frozen=True, slots=True)
class Attempt:
    """Everything that a decision is based on; *renewal*: the presented certificate asks for its successor."""

    request: VerifiedRequest
    now: datetime
    label: str | None = None
    token: TokenCredential | None = None
    certificate: x509.Certificate | None = None
    renewal: bool = False
    verdicts: tuple[Verdict, ...] = ()
    """The answers so far: each alternative of the group with a webhook has a question of its own."""
    connection: TlsConnection | None = None
    server_key: bool = False
    """The key is generated here, for this attempt only."""
    waits_as: bytes | None = None
    """With *server_key*: the fingerprint of the request's own key, if that key signed the request."""
    proof: bytes | None = None
    """With *waits_as*: what no copy of the request has different (`provisioning.ca.csr.KeyRequest`)."""

    @property
    def shown(self) -> Hashable:
        """What was shown for one certificate, with secrets: the token, or certificate or waiting key with a name."""
        if self.token is not None:
            return self.token.token
        return self.waits_as if self.certificate is None else self.presented, self.request.common_name

    @property
    def presented(self) -> bytes | None:
        """The certificate that was presented, in DER."""
        return None if self.certificate is None else self.certificate.public_bytes(Encoding.DER)

    def at(self, now: datetime) -> Attempt:
        """Return the same attempt, decided *now*; `dataclasses.replace` takes four times as long."""
        return Attempt(
            self.request,
            now,
            self.label,
            self.token,
            self.certificate,
            self.renewal,
            self.verdicts,
            self.connection,
            self.server_key,
            self.waits_as,
            self.proof,
        )
