"""Lists that a broker holds, as if they had been read from a file."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from broker.admission.admission import Admission
from broker.admission.held_list import HeldList
from provisioning.pki.crl import parse
from provisioning.pki.keys import key_identifier
from tests.support.pki import Held

SOURCE: Final = "file:a.crl"


def put(judge: Admission, issuer: Held, der: bytes, now: datetime | None = None) -> HeldList:
    """Let *judge* hold the list *der* of *issuer*, read at *now*, or else today."""
    signer = key_identifier(issuer.key.public_key()), issuer.certificate.subject.rfc4514_string()
    held = judge.status.lists.prepare(parse(der), signer, SOURCE, now or datetime.now(UTC), lambda: None)
    assert held is not None
    judge.status.lists.put(held)
    return held
