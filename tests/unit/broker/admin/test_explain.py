"""What ``fleet-broker check`` sends: certificates, or else something that is refused in words."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from broker.admin.explain import InvalidCertificateFile, read_certificates
from tests.support.pki import shared_pki

ISSUING = shared_pki().issuing.certificate
V3, V128 = b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x7f"


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", ISSUING.public_bytes(Encoding.DER)[:-1], ISSUING.public_bytes(Encoding.DER).replace(V3, V128)],
    ids=["nothing", "text", "cut off", "of no version"],
)
def test_what_is_no_certificate_is_refused_in_words(content: bytes) -> None:
    with pytest.raises(InvalidCertificateFile, match="holds no certificate"):
        read_certificates(content)
