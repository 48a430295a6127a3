"""Verifies certificate signing requests: the requested name, the key, and proof of its possession.

Theory
------
A request is a stranger's bytes until `verify_csr` returns. It returns only verified facts: the public key, the Common
Name, the subject and Subject Alternative Name as DER, which re-enrolment compares (`provisioning.ca.same_names`), and
the names that it asks for. Key and Common Name reach the certificate, another name only if the profile honours it
(`provisioning.ca.name_policy`), nothing else: the server decides identity and extensions.

Rules
-----
1. Proof of possession always: the request's own signature, with a hash no weaker than SHA-256.
2. The key policy is Fleetgate's, not the library's: `provisioning.ca.key_policy`.
3. Exactly one Common Name, valid as a device name (`provisioning.pki.identity.check_name`).
4. No I/O and no clock.

Handles: PKCS #10 in DER. Does not handle: base64, PEM armour, who may have which name.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import AttributeOID, NameOID, PublicKeyAlgorithmOID, SignatureAlgorithmOID

from provisioning.ca.der import content, has_more_parts, only_common_name
from provisioning.ca.key_envelope import NoRecipient, Recipient, find_recipient
from provisioning.ca.key_policy import KeyPolicy, WeakKey
from provisioning.ca.name_policy import SubjectNames, asked_names
from provisioning.ca.not_a_request import named, what_is_wrong
from provisioning.ca.profile import Profile
from provisioning.errors import Code, Refused
from provisioning.pki.extension import UNUSABLE, extension
from provisioning.pki.identity import Identity, InvalidIdentity, check_name
from provisioning.pki.keys import PrivateKey, generate_key, spki_of
from provisioning.pki.null_parameters import load_request
from provisioning.quick_values import quickly_made

MAXIMUM_CSR_SIZE: Final = 16 * 1024
"""An RSA-8192 request with generous extensions is 3 KB."""
_MAXIMUM_PARTS: Final = 600
"""Elements of a request: the library makes objects of them, 2 µs each. A usual one has 40, with 32 host names 80."""
_FEW_PARTS: Final = 2 * _MAXIMUM_PARTS
"""Octets in which there cannot be more: one has two at least."""

_VERSION: Final = bytes.fromhex("020100")
_NO_ATTRIBUTES: Final = bytes.fromhex("a000")
_P256: Final = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")
"""A SubjectPublicKeyInfo of P-256 up to the point, which is not compressed: the only form of 91 octets."""
_P256_SIZE: Final = 91
_ECDSA_SHA256: Final = ec.ECDSA(hashes.SHA256())
_HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)

_OF_THE_PARSER: Final = "error parsing asn1 value"
"""How the library's errors begin that show its parser's own state."""

_SECRET_KEY_WISH: Final = x509.ObjectIdentifier("1.2.840.113549.1.9.16.2.37")
"""DecryptKeyIdentifier (RFC 7030 §4.4.1.1)."""
_PUBLIC_KEY_WISH: Final = x509.ObjectIdentifier("1.2.840.113549.1.9.16.2.54")
"""AsymmetricDecryptKeyIdentifier (RFC 7030 §4.4.1.2)."""

_DEFAULT_KEY_POLICY: Final = KeyPolicy()


class RequestRefused(Refused):
    """The request cannot be certified; the code begins with ``CSR_``."""


@quickly_made
@dataclass(frozen=True, slots=True)
class VerifiedRequest:
    """What a request asks for, its signature and key already checked. Created only here."""

    public_key: CertificatePublicKeyTypes
    spki: bytes
    """The key's SubjectPublicKeyInfo."""
    common_name: str
    subject: bytes
    subject_alternative_name: bytes | None
    asked: SubjectNames = field(default_factory=SubjectNames)
    """The other names it asks for; a profile decides which are honoured (`provisioning.ca.name_policy`)."""
    challenge: bytes | None = None
    """Its challengePassword, which links it to the TLS connection that it came on (RFC 7030 §3.5)."""
    key_fingerprint: bytes = field(init=False)
    """The SHA-256 of the key's SubjectPublicKeyInfo, 32 bytes."""

    def __post_init__(self) -> None:
        """Hash the key once: an enrolment needs the hash four times."""
        object.__setattr__(self, "key_fingerprint", hashlib.sha256(self.spki).digest())


def verify_csr(der: bytes, key_policy: KeyPolicy = _DEFAULT_KEY_POLICY) -> VerifiedRequest:
    """Return what the request in *der* asks for; raise `RequestRefused` naming what is wrong with it."""
    csr = _load(der)
    try:
        public_key = csr.public_key()
    except UNUSABLE as error:
        raise _malformed(error) from error
    try:
        key_policy.check(public_key)
        _check_is_plain_rsa(csr, public_key)
    except WeakKey as error:
        raise RequestRefused(Code.CSR_KEY, str(error)) from error
    signed = csr.tbs_certrequest_bytes
    if not _signed_as_usual(csr, public_key, signed):
        _check_signature(csr)
    return _facts(csr, public_key, signed)


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """What a request for a server-generated key asks for: everything but the key."""

    request: VerifiedRequest
    """Its public key is a placeholder that belongs to nobody; `with_key` replaces it with the generated one."""
    wished: CertificatePublicKeyTypes
    """The request's own key: it only tells the desired key type."""
    recipient: Recipient | None
    """The recipient to encrypt the key for, if that was requested."""
    proof: bytes | None
    """What only a signature by the request's own key can make different; None: it is weak, or has not signed.

    Every copy has it in common, also one whose signature was rewritten, as anybody can with one of ECDSA's. A pending
    request is recognised by that key.
    """

    def with_key(self, key: PrivateKey) -> VerifiedRequest:
        """Return the request for the certificate of *key*."""
        public_key = key.public_key()
        return replace(self.request, public_key=public_key, spki=spki_of(public_key))


def read_key_request(
    der: bytes, certificate: x509.Certificate | None = None, key_policy: KeyPolicy = _DEFAULT_KEY_POLICY
) -> KeyRequest:
    """Return what a request for a server-generated key asks for; raise `RequestRefused`.

    Neither the request's own key nor its signature counts for the certificate (RFC 7030 §4.4.1); `KeyRequest.proof`
    says whether they are good. If the request names a key to encrypt for, that is its own key, and then its signature
    must be good, or the key of *certificate*, which the client has presented.
    """
    csr = _load(der)
    facts = all_facts(csr, generate_key().public_key())
    try:
        own_key = csr.public_key()
        recipient = _recipient(csr, certificate, key_policy)
    except UNUSABLE as error:
        raise _malformed(error) from error
    return KeyRequest(facts, own_key, recipient, _proof(csr, own_key, key_policy))


def _proof(
    csr: x509.CertificateSigningRequest, own_key: CertificatePublicKeyTypes, key_policy: KeyPolicy
) -> bytes | None:
    try:
        key_policy.check(own_key)
        _check_signature(csr)
    except (WeakKey, RequestRefused):
        return None
    signature = csr.signature
    if isinstance(own_key, ec.EllipticCurvePublicKey):
        chosen, _ = decode_dss_signature(signature)  # With the negative of the other number it is valid, too.
        signature = chosen.to_bytes((own_key.key_size + 7) // 8)
    return hashlib.sha256(csr.tbs_certrequest_bytes + signature).digest()


def _recipient(
    csr: x509.CertificateSigningRequest, certificate: x509.Certificate | None, key_policy: KeyPolicy
) -> Recipient | None:
    if _attribute(csr, _SECRET_KEY_WISH) is not None:
        raise RequestRefused(
            Code.KEY_ENCRYPTION,
            "DecryptKeyIdentifier asks for encryption with a secret key, and this service shares none: name a public "
            "key with AsymmetricDecryptKeyIdentifier, or make the key on the device",
        )
    identifier = _attribute(csr, _PUBLIC_KEY_WISH)
    if identifier is None:
        return None
    try:
        recipient = find_recipient(identifier, csr.public_key(), certificate)
        key_policy.check(recipient.public_key)
        if recipient.public_key == csr.public_key():
            _check_is_plain_rsa(csr, recipient.public_key)
            _check_signature(csr)
    except (NoRecipient, WeakKey) as error:
        raise RequestRefused(Code.KEY_ENCRYPTION, str(error)) from error
    return recipient


def _check_is_plain_rsa(csr: x509.CertificateSigningRequest, public_key: CertificatePublicKeyTypes) -> None:
    """Refuse an RSA key of the kind id-RSASSA-PSS (RFC 4055 §1.2), which may only sign, and only so.

    The library reads it as any other. Its certificate would say rsaEncryption: OpenSSL does not take the two together.
    """
    if not isinstance(public_key, rsa.RSAPublicKey):
        return
    kind = csr.public_key_algorithm_oid  # type: ignore[attr-defined] # The library has it, its stubs have not.
    if kind == PublicKeyAlgorithmOID.RSASSA_PSS:
        raise WeakKey(
            "an RSA key of the kind RSASSA-PSS is not accepted: make one of the kind rsaEncryption (openssl genpkey "
            "-algorithm RSA), which may sign by RSASSA-PSS as well"
        )


def _load(der: bytes) -> x509.CertificateSigningRequest:
    if len(der) > MAXIMUM_CSR_SIZE:
        raise RequestRefused(Code.CSR_MALFORMED, f"the request is {len(der)} bytes, {MAXIMUM_CSR_SIZE} at most")
    if len(der) > _FEW_PARTS and has_more_parts(der, _MAXIMUM_PARTS):
        raise RequestRefused(
            Code.CSR_MALFORMED,
            f"the request has more than {_MAXIMUM_PARTS} parts: ask for fewer names, attributes or extensions",
        )
    try:
        return load_request(der)
    except x509.InvalidVersion as error:
        raise RequestRefused(
            Code.CSR_MALFORMED,
            f"the request's version is {error.parsed_version}, and the only version is 0 (RFC 2986 "
            "§4.1): with wolfSSL, set "
            "the version of its Cert to 0 before wc_MakeCertReq",
        ) from error
    except UNUSABLE as error:
        another = named(der)
        if another is not None:
            raise RequestRefused(Code.CSR_MALFORMED, f"the body is not a PKCS #10 request but {another}") from error
        words = f"the body is not a PKCS #10 request in base64 DER: {what_is_wrong(der)}"
        raise RequestRefused(Code.CSR_MALFORMED, words) from error


def _malformed(error: Exception) -> RequestRefused:
    """Return the refusal of a request whose parts the library could not read, in words that are not its parser's."""
    said = str(error)
    if said.startswith(_OF_THE_PARSER):
        said = "a name, an attribute, an extension or the public key in it is not encoded as its kind is"
    return RequestRefused(Code.CSR_MALFORMED, f"the request cannot be read: {said}")


def _facts(
    csr: x509.CertificateSigningRequest, public_key: CertificatePublicKeyTypes, signed: bytes
) -> VerifiedRequest:
    """Return the facts of *csr*, which has this *public_key*, and has *signed* these bytes."""
    return _usual_facts(public_key, signed) or all_facts(csr, public_key)


def _usual_facts(public_key: CertificatePublicKeyTypes, signed: bytes) -> VerifiedRequest | None:
    """Return the facts of a request for one Common Name and nothing else, without creating an object for each part."""
    asked = content(signed)  # The library has read it: number, name, key and attributes.
    spki = asked[-_P256_SIZE - len(_NO_ATTRIBUTES) : -len(_NO_ATTRIBUTES)]
    if not spki.startswith(_P256):  # To encode the key once more takes a division, but for P-256 there is one way only.
        spki = spki_of(public_key)
    end = spki + _NO_ATTRIBUTES
    if not (asked.startswith(_VERSION) and asked.endswith(end)):
        return None
    subject = asked[len(_VERSION) : -len(end)]
    name = only_common_name(subject)  # It is the whole subject, so that what follows it is the whole key.
    if name is None or not name.isascii():
        return None
    return VerifiedRequest(public_key, spki, _checked_name(name.decode("ascii")), subject, None)


def all_facts(csr: x509.CertificateSigningRequest, public_key: CertificatePublicKeyTypes) -> VerifiedRequest:
    """Return the facts of any request, as the library parses it."""
    try:
        subject = csr.subject
        alternative_name = extension(csr, x509.SubjectAlternativeName)
        challenge = _challenge(csr)
    except UNUSABLE as error:
        raise _malformed(error) from error
    return VerifiedRequest(
        public_key=public_key,
        spki=spki_of(public_key),
        common_name=_common_name(subject),
        subject=subject.public_bytes(),
        subject_alternative_name=None if alternative_name is None else alternative_name.public_bytes(),
        asked=asked_names(subject, alternative_name),
        challenge=challenge,
    )


def _challenge(csr: x509.CertificateSigningRequest) -> bytes | None:
    return _attribute(csr, AttributeOID.CHALLENGE_PASSWORD)


def _attribute(csr: x509.CertificateSigningRequest, oid: x509.ObjectIdentifier) -> bytes | None:
    try:
        return csr.attributes.get_attribute_for_oid(oid).value
    except x509.AttributeNotFound:
        return None


def apply_profile(request: VerifiedRequest, profile: Profile, identity: Identity, held: SubjectNames) -> SubjectNames:
    """Return the names of *identity*'s certificate; raise `Refused` if the profile does not allow the request.

    *held* are the names that a token grants, or that the certificate to be renewed has.
    """
    if not profile.takes(request.public_key):
        raise RequestRefused(
            Code.CSR_KEY, f"the {profile.name} profile does not take this kind of key: use {profile.keys_taken}"
        )
    return profile.names.names_for(identity, held, request.asked)


def _common_name(subject: x509.Name) -> str:
    names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1:
        raise RequestRefused(
            Code.CSR_NAME, f"the subject has {len(names)} Common Names: give one, CN=<the device's name>"
        )
    name = names[0].value
    if not isinstance(name, str):
        raise RequestRefused(Code.CSR_NAME, "the Common Name is not text")
    return _checked_name(name)


def _checked_name(name: str) -> str:
    try:
        return check_name("Common Name", name)
    except InvalidIdentity as error:
        raise RequestRefused(Code.CSR_NAME, str(error)) from error


def _signed_as_usual(csr: x509.CertificateSigningRequest, public_key: CertificatePublicKeyTypes, signed: bytes) -> bool:
    """Whether *signed* is, with ECDSA, SHA-256 and its own *public_key*; if False, `_check_signature` decides.

    This replaces the library's own check, which parses the key a second time: a fifth of its cost.
    """
    if csr.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA256:
        return False
    if not isinstance(public_key, ec.EllipticCurvePublicKey):
        return False
    try:
        public_key.verify(csr.signature, signed, _ECDSA_SHA256)
    except InvalidSignature:
        return False
    return True


def _check_signature(csr: x509.CertificateSigningRequest) -> None:
    try:
        hash_algorithm = csr.signature_hash_algorithm
        valid = csr.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, TypeError) as error:
        raise RequestRefused(Code.CSR_SIGNATURE, f"the signature algorithm is not supported ({error})") from error
    # Ed25519 has its hash built in and names none.
    if hash_algorithm is not None and not isinstance(hash_algorithm, _HASHES):
        raise RequestRefused(
            Code.CSR_SIGNATURE,
            f"the request is signed with {hash_algorithm.name}: sign it with SHA-256, SHA-384 or SHA-512",
        )
    if not valid:
        raise RequestRefused(
            Code.CSR_SIGNATURE, "the signature does not verify: sign the request with the key that it contains"
        )
