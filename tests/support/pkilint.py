"""DigiCert's linter: an independent reading of RFC 5280 applied to our certificates."""

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
    """Return all findings of the linter, including remarks: severity, code, and the subject if given."""
    document = loader.load_certificate(checked.public_bytes(Encoding.DER), "certificate")
    return {
        f"{described.finding.severity.name} {described.finding.code} {described.message or ''}".rstrip()
        for result in _certificate_validator().validate(document.root)
        for described in result.finding_descriptions
    }
