from __future__ import annotations

import base64
import ipaddress
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519
from cryptography.x509.oid import ExtensionOID, NameOID

from provisioning.ca import csr as csr_module
from provisioning.ca.csr import MAXIMUM_CSR_SIZE, RequestRefused, read_key_request, verify_csr
from provisioning.ca.der import NULL, SEQUENCE, children, content, element
from provisioning.errors import Code
from provisioning.pki.extension import UNUSABLE
from provisioning.pki.keys import PrivateKey, generate_key, key_identifier, key_to_pem, spki_of
from tests.support.key_envelope import key_request
from tests.support.requests import OF_A_TPM, csr_der
from tests.support.slow_keys import dsa_key, rsa_key

URI = x509.UniformResourceIdentifier("spiffe://fleet.internal/device/north/meter-17")


def refusal(der: bytes) -> RequestRefused:
    with pytest.raises(RequestRefused) as caught:
        verify_csr(der)
    return caught.value


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa_key(),
    ],
    ids=["P-256", "P-384", "Ed25519", "RSA-2048"],
)
def test_an_accepted_key_is_returned_with_the_name(key: ec.EllipticCurvePrivateKey) -> None:
    request = verify_csr(csr_der(key))
    assert request.public_key == key.public_key()
    assert request.common_name == "meter-17"
    assert request.subject == x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "meter-17")]).public_bytes()
    assert request.subject_alternative_name is None


KEYS = [
    ec.generate_private_key(ec.SECP256R1()),
    ec.generate_private_key(ec.SECP384R1()),
    ed25519.Ed25519PrivateKey.generate(),
    rsa_key(),
]
PRINTABLE = x509.NameAttribute(NameOID.COMMON_NAME, "meter-17", _type=x509.name._ASN1Type.PrintableString)
ORGANIZATION = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Fleet")


@pytest.mark.parametrize("key", KEYS, ids=["P-256", "P-384", "Ed25519", "RSA"])
@pytest.mark.parametrize("algorithm", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()], ids=lambda each: each.name)
def test_the_usual_signature_is_checked_here_and_all_others_by_the_library(
    key: PrivateKey, algorithm: hashes.HashAlgorithm
) -> None:
    request = x509.load_der_x509_csr(csr_der(key, hash_algorithm=algorithm))
    usual = isinstance(key, ec.EllipticCurvePrivateKey) and algorithm.name == "sha256"
    assert csr_module._signed_as_usual(request, key.public_key(), request.tbs_certrequest_bytes) is usual


def said(read: Callable[..., csr_module.VerifiedRequest], *given: Any) -> object:
    """Return what *read* says, or the words in which it refuses."""
    try:
        return read(*given)
    except RequestRefused as refused:
        return str(refused)


@pytest.mark.parametrize("key", KEYS[:2], ids=["P-256", "P-384"])
def test_a_signature_that_the_library_would_not_believe_is_not_believed_here(key: PrivateKey) -> None:
    """Its own check is the twin: both judge, and read, the request with each of its bytes changed."""
    der = csr_der(key)
    judged = 0
    for place in range(len(der)):
        changed = der[:place] + bytes((der[place] ^ 1,)) + der[place + 1 :]
        try:
            request = x509.load_der_x509_csr(changed)
            public_key = request.public_key()
            theirs = request.is_signature_valid
        except UNUSABLE:
            continue
        judged += 1
        signed = request.tbs_certrequest_bytes
        assert csr_module._signed_as_usual(request, public_key, signed) <= theirs, place
        read = request, public_key
        assert said(csr_module._facts, *read, signed) == said(csr_module.all_facts, *read), f"name or key at {place}"
    assert judged > 50, "the signature, the key, and what is signed of it"
    request = x509.load_der_x509_csr(der)
    assert csr_module._signed_as_usual(request, key.public_key(), request.tbs_certrequest_bytes)


@pytest.mark.parametrize("key", KEYS, ids=["P-256", "P-384", "Ed25519", "RSA"])
@pytest.mark.parametrize(
    ("how", "usual"),
    [
        ({"names": ["m"]}, True),
        ({"names": ["m" * 64]}, True),
        ({"names": ["-not a name"]}, True),  # Refused, and in the same words.
        ({"names": ["mété"]}, False),
        ({"names": []}, False),
        ({"names": ["a", "b"]}, False),
        ({"names": [], "attributes": [PRINTABLE]}, False),
        ({"attributes": [ORGANIZATION]}, False),
        ({"extensions": [x509.SubjectAlternativeName([URI])]}, False),
    ],
    ids=range(9),
)
def test_a_usual_request_says_what_the_library_reads_in_it(
    key: PrivateKey, how: dict[str, Any], usual: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request of one Common Name and nothing else is read by its places; the library's reading is its twin."""
    request = x509.load_der_x509_csr(csr_der(key, **how))
    asked = []

    def noted(csr: x509.CertificateSigningRequest, public_key: Any) -> csr_module.VerifiedRequest:
        asked.append(csr)
        return all_facts(csr, public_key)

    all_facts = csr_module.all_facts
    monkeypatch.setattr(csr_module, "all_facts", noted)
    read = request, key.public_key()
    assert said(csr_module._facts, *read, request.tbs_certrequest_bytes) == said(all_facts, *read)
    assert bool(asked) is not usual


@pytest.mark.parametrize("key", KEYS, ids=["P-256", "P-384", "Ed25519", "RSA"])
def test_a_request_for_a_key_is_read_with_a_key_that_is_nobodys(key: PrivateKey) -> None:
    """Until the service has made one: not with that in the request, which is never certified."""
    asked = read_key_request(csr_der(key))
    own = spki_of(key.public_key())
    assert spki_of(asked.wished) == own
    assert asked.request.spki == spki_of(asked.request.public_key) != own


def test_the_alternative_name_is_returned_as_it_was_sent() -> None:
    names = x509.SubjectAlternativeName([URI, x509.DNSName("a.example")])
    assert verify_csr(csr_der(extensions=[names])).subject_alternative_name == names.public_bytes()


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP521R1()),
        ec.generate_private_key(ec.SECP256K1()),
        ec.generate_private_key(ec.SECP224R1()),
        rsa_key(1024),
        rsa_key(exponent=3),
        ed448.Ed448PrivateKey.generate(),
        dsa_key(2048),
    ],
    ids=["P-521", "secp256k1", "P-224", "RSA-1024", "RSA exponent 3", "Ed448", "DSA"],
)
def test_any_other_key_is_refused(key: ec.EllipticCurvePrivateKey) -> None:
    assert refusal(csr_der(key)).code is Code.CSR_KEY


@pytest.mark.parametrize(
    ("read", "code"), [(verify_csr, Code.CSR_KEY), (read_key_request, Code.KEY_ENCRYPTION)], ids=["certify", "encrypt"]
)
def test_an_rsa_key_that_may_only_sign_by_pss_is_refused(read: Callable[[bytes], object], code: Code) -> None:
    """Nobody certifies it as what it is not, so that its own programs would not take the certificate, nor encrypts."""
    key = rsa_key()
    asked = base64.b64decode(key_request("meter-17", key, key_identifier(key.public_key())))
    plain, only_pss = bytes.fromhex("06092a864886f70d0101010500"), bytes.fromhex("06092a864886f70d01010a3000")
    with pytest.raises(RequestRefused, match="RSASSA-PSS") as caught:
        read(asked.replace(plain, only_pss, 1))
    assert caught.value.code is code


def test_a_changed_request_fails_its_proof_of_possession() -> None:
    der = csr_der()
    assert refusal(der.replace(b"meter-17", b"meter-18")).code is Code.CSR_SIGNATURE


def test_a_weak_hash_is_refused() -> None:
    error = refusal(csr_der(rsa_key(), hash_algorithm=hashes.SHA224()))
    assert (error.code, "SHA-256, SHA-384 or SHA-512" in error.detail) == (Code.CSR_SIGNATURE, True)


def test_a_signature_of_a_kind_that_nobody_knows_is_refused() -> None:
    sha256, unknown = bytes.fromhex("06082a8648ce3d040302"), bytes.fromhex("06082a8648ce3d04037f")
    error = refusal(csr_der().replace(sha256, unknown))
    assert (error.code, "algorithm is not supported" in error.detail) == (Code.CSR_SIGNATURE, True)


@pytest.mark.parametrize("names", [(), ("a", "b"), ("a/b",), ("a b",), ("#",), ("-a",), ("é",)], ids=repr)
def test_a_name_that_is_none_is_refused(names: tuple[str, ...]) -> None:
    assert refusal(csr_der(names=names)).code is Code.CSR_NAME


@pytest.mark.parametrize(
    ("der", "says"),
    [
        (b"", "it is empty"),
        (b"\x30", "it ends after 1 byte: send all of it"),
        (b"\x30\x00", "one of its parts is not as in a request"),
        (b"nonsense", "it begins with the byte 0x6e"),
        (b"\x30\x84\xff\xff\xff\xff", "it ends after 6 bytes: send all of it"),
        (b"\x30\x80\x00\x00", "its length is indefinite"),
        (csr_der() + b"\x00", "behind it there is 1 byte more"),
        (base64.b64encode(csr_der()), "base64 of base64"),
    ],
    ids=range(8),
)
def test_what_is_no_request_is_refused_and_told_what_it_is(der: bytes, says: str) -> None:
    refused = refusal(der)
    assert refused.code is Code.CSR_MALFORMED
    assert says in refused.detail
    assert "ParseError" not in refused.detail


def test_a_private_key_is_called_one_however_it_is_wrapped_and_never_repeated() -> None:
    pem = key_to_pem(generate_key())
    der = base64.b64decode(b"".join(pem.splitlines()[1:-1]))
    for sent in (pem, b"Bag Attributes\n" + pem, base64.b64encode(pem), der, base64.encodebytes(der)):
        detail = refusal(sent).detail
        assert "a private key, which is exposed now: make a new key" in detail
        assert not any(line[:12].decode() in detail for line in pem.splitlines()[1:-1])


@pytest.mark.parametrize(
    "value",
    [bytes.fromhex("3002a300"), bytes.fromhex("3002a500"), b"\x30\x05\x82\x03ab", b"", b"\x04\x00"],
    ids=["x400Address", "ediPartyName", "cut off", "empty", "another type"],
)
def test_an_alternative_name_that_cannot_be_read_is_refused(value: bytes) -> None:
    extension = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, value)
    refused = refusal(csr_der(extensions=[extension]))
    assert refused.code is Code.CSR_MALFORMED
    assert "ParseError" not in refused.detail


@pytest.mark.parametrize(
    ("bits", "hash_algorithm", "names"),
    [(256, hashes.SHA256(), 1), (384, hashes.SHA384(), 8), (256, hashes.SHA512(), 20)],
)
def test_a_request_with_the_null_of_a_tpm_s_provider_says_the_same(
    bits: int, hash_algorithm: hashes.HashAlgorithm, names: int
) -> None:
    key = ec.generate_private_key(ec.SECP256R1() if bits == 256 else ec.SECP384R1())
    usual = csr_der(key, extensions=[x509.SubjectAlternativeName([URI] * names)], hash_algorithm=hash_algorithm)
    request, algorithm, signature = children(usual)
    null = element(SEQUENCE, request + element(SEQUENCE, content(algorithm) + NULL) + signature)
    assert null != usual
    assert verify_csr(null) == verify_csr(usual)
    assert refusal(null.replace(b"meter-17", b"meter-18")).code is Code.CSR_SIGNATURE
    assert refusal(null + b"\x00").code is refusal(null[:-1]).code is Code.CSR_MALFORMED


def test_a_request_that_a_tpm_has_signed_is_read() -> None:
    assert verify_csr(OF_A_TPM).common_name == read_key_request(OF_A_TPM).request.common_name == "meter-1"


def test_a_request_of_another_version_is_refused() -> None:
    der = csr_der()
    version = der.index(b"\x02\x01\x00") + 2
    assert refusal(der[:version] + b"\x01" + der[version + 1 :]).code is Code.CSR_MALFORMED


CROWDS: dict[str, Callable[[], bytes]] = {
    "names of hosts": lambda: named(*[x509.DNSName("a")] * 4000),
    "addresses": lambda: named(*[x509.IPAddress(ipaddress.ip_address("192.0.2.1"))] * 2000),
    "directory names": lambda: named(*[x509.DirectoryName(x509.Name([ORGANIZATION]))] * 500),
    "attributes of the subject": lambda: csr_der(attributes=[ORGANIZATION] * 900),
    "extensions": lambda: csr_der(extensions=[unknown(number) for number in range(900)]),
}


def named(*names: x509.GeneralName) -> bytes:
    return csr_der(extensions=[x509.SubjectAlternativeName(names)])


def unknown(number: int) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(f"1.2.3.{number}"), b"\x05\x00")


@pytest.mark.parametrize("crowd", CROWDS)
def test_a_crowd_of_small_parts_is_refused_before_an_object_is_made_of_each(crowd: str) -> None:
    """A stranger's took fifty times as long as a request of a device, 10 ms of the event loop."""
    der = CROWDS[crowd]()
    assert len(der) <= MAXIMUM_CSR_SIZE
    for read in (verify_csr, read_key_request):
        with pytest.raises(RequestRefused, match="CSR_MALFORMED: the request has more than 600 parts"):
            read(der)


def test_a_request_may_have_hundreds_of_long_names_and_one_long_part() -> None:
    """A certificate from before there was a limit has them, and is renewed with them."""
    names = [x509.DNSName(f"{number:03}.press.plant.example") for number in range(500)]
    assert verify_csr(named(*names)).asked.dns_names == tuple(each.value for each in names)
    blob = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), bytes.fromhex("3082") + bytes(14_000))
    assert verify_csr(csr_der(extensions=[blob])).common_name == "meter-17"


def test_a_request_is_measured_before_it_is_parsed() -> None:
    assert "16384 at most" in refusal(b"\x30" * (MAXIMUM_CSR_SIZE + 1)).detail
