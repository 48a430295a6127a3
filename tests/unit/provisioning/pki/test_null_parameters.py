"""What a CA has signed with the NULL of a TPM's provider is refused for that, and for nothing else."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime

import pytest

from provisioning.enrolment.manufacturers import _ca
from provisioning.errors import Refused
from provisioning.pki.crl import CrlProblem, CrlRefused, parse
from provisioning.pki.null_parameters import null_in
from tests.support.crl import crl
from tests.support.null_parameters import with_null
from tests.support.pki import pem_of, shared_pki

CA = shared_pki().issuing
WHY = r"its signature algorithm has a NULL parameter, as tpm2-openssl .* the CA must issue it anew without$"


def test_a_list_is_refused_for_the_null() -> None:
    with pytest.raises(CrlRefused, match=WHY) as caught:
        parse(with_null(crl(CA, {7: None})))
    assert caught.value.code is CrlProblem.CRL_MALFORMED


def test_a_manufacturer_s_ca_is_refused_for_the_null() -> None:
    with pytest.raises(Refused, match=WHY):
        _ca(ssl.DER_cert_to_PEM_cert(with_null(CA.der)), datetime.now(UTC))


def test_what_has_no_null_is_not_said_to_have_it() -> None:
    assert null_in(CA.der) is null_in(pem_of(CA.certificate)) is null_in(b"-----a-----") is None
