"""DigiCert's linter: what somebody else's reading of RFC 5280 finds in certificates of ours."""

from __future__ import annotations

from functools import cache
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import Certificate
from pkilint import loader
from pkilint.pkix import certificate, extension, name


@cache
def _certificate_validator() -> Any:
    return certificate.create_pkix_certificate_validator_container(
        certificate.create_decoding_validators(name.ATTRIBUTE_TYPE_MAPPINGS, extension.EXTENSION_MAPPINGS),
        [
            certificate.create_issuer_validator_container([]),
            certificate.create_validity_validator_container(),
            certificate.create_subject_validator_container([]),
            certificate.create_extensions_validator_container([]),
            certificate.create_spki_validator_container([]),
        ],
    )


def findings(checked: Certificate) -> set[str]:
    """Return everything that the linter has to say, remarks too: severity, code, and what it is about if it tells."""
    document = loader.load_certificate(checked.public_bytes(Encoding.DER), "certificate")
    return {
        f"{described.finding.severity.name} {described.finding.code} {described.message or ''}".rstrip()
        for result in _certificate_validator().validate(document.root)
        for described in result.finding_descriptions
    }
