"""Case 44, continued: a good token, and a request that asks for more than a device may have.

A CA that copies what a request asks for makes a CA, a broker or an operator of whoever may enrol a device. RFC 2986 §3
leaves it to the CA what it certifies: it may refuse the request, or leave out what is too much.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from device_sim.attack.asking import answered, desk_of, token_for
from device_sim.attack.case import Chapter, patience
from device_sim.attack.scene import Scene
from device_sim.attack.target import BrokenPromise
from device_sim.attack.verdict import ClosedBy, Layer, Seen
from device_sim.credentials.certification import common_name
from provisioning.client.est import EstClient, WrongCertificate
from provisioning.pki.extension import extension
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role

_REFUSED = ("http not-granted",)
_SERIALS = 8
_ENTROPY = 64
"""Bits that nobody must be able to guess (CA/Browser Forum Baseline Requirements §7.1)."""

chapter = Chapter()
case = chapter.case


def _asks(
    name: str, description: str, asked: Callable[[Scene], x509.ExtensionType],
    granted: Callable[[Scene, x509.Certificate], str],
) -> None:  # fmt: skip
    """Add a case whose request has the extension *asked*; *granted* says what of it is in a certificate, or nothing."""

    async def attempt(scene: Scene) -> Seen:
        issued: list[x509.Certificate] = []
        desk, device = desk_of(scene), scene.fresh()
        token = await token_for(scene, device)
        request = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(common_name(device))
            .add_extension(asked(scene), critical=False)
            .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
        )

        async def enrolled() -> x509.Certificate:
            async with EstClient(desk.url, desk.anchors, trust_domain=desk.operator.trust_domain) as est:
                try:
                    issued.append(await est.enrol(request, user=device, token=token))
                except WrongCertificate as error:
                    issued.append(error.certificate)
            return issued[0]

        seen = await answered(enrolled)
        if not issued:
            return seen
        if too_much := granted(scene, issued[0]):
            raise BrokenPromise(f"it has a certificate {too_much}")
        return Seen(Layer.HTTP, "not-granted", "a certificate without that", ClosedBy.NOBODY)

    chapter.add(name, description, _REFUSED, attempt)


def _is_ca(_scene: Scene, certificate: x509.Certificate) -> str:
    for each in certificate.extensions:
        if isinstance(each.value, x509.BasicConstraints) and each.value.ca:
            return "of a CA"
        if isinstance(each.value, x509.KeyUsage) and each.value.key_cert_sign:
            return "that may sign certificates"
    return ""


_USAGES = (
    ExtendedKeyUsageOID.SERVER_AUTH,
    ExtendedKeyUsageOID.OCSP_SIGNING,
    ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
)


def _has_usages(_scene: Scene, certificate: x509.Certificate) -> str:
    usages = extension(certificate, x509.ExtendedKeyUsage)
    if usages is None:
        return "for any use: it has no Extended Key Usage"
    return "of a server, or of an OCSP responder" if any(each in usages for each in _USAGES) else ""


def _other_names(scene: Scene) -> list[x509.GeneralName]:
    operator = Identity(scene.target.trust_domain, Role.OPERATOR, "admin")
    return [x509.DNSName(scene.target.endpoint.server_name), x509.UniformResourceIdentifier(operator.uri)]


def _has_names(scene: Scene, certificate: x509.Certificate) -> str:
    names = extension(certificate, x509.SubjectAlternativeName) or ()
    wrong = [str(each.value) for each in _other_names(scene) if each in names]
    return f"for {' and '.join(wrong)}" if wrong else ""


_asks("44-asks-for-ca", "asks for the certificate of a CA", lambda _: x509.BasicConstraints(ca=True, path_length=None),
      _is_ca)  # fmt: skip
_asks("44-asks-for-usages", "asks for a certificate for servers, OCSP responders and any other use",
      lambda _: x509.ExtendedKeyUsage(_USAGES), _has_usages)  # fmt: skip
_asks("44-asks-for-names", "asks for the names of the broker and of an operator in its certificate",
      lambda scene: x509.SubjectAlternativeName(_other_names(scene)), _has_names)  # fmt: skip


@case("44-serials", "enrols 8 devices: nobody can guess the next serial number", "http unguessable",
      limit=patience)  # fmt: skip
async def _serials(scene: Scene) -> Seen:
    desk = desk_of(scene)
    numbers = []
    for _ in range(_SERIALS):
        name = scene.fresh()
        numbers.append(
            (await desk.enrolled(name, await desk.token(name, scene.target.group))).certificate.serial_number
        )
    # Whatever is the same in all of them, at their end or in their distance, can be guessed.
    longest = max(each.bit_length() for each in numbers)
    ordered = sorted(numbers)
    nearest = min(after - before for before, after in itertools.pairwise(ordered))
    if longest < _ENTROPY:
        raise BrokenPromise(f"the serial numbers have {longest} bits; 64 must be random")
    ends = {each % (1 << _ENTROPY // 2) for each in numbers}
    if nearest.bit_length() < _ENTROPY // 2 or len(ends) < _SERIALS:
        raise BrokenPromise(f"serial numbers follow each other, {nearest:#x} apart: the next can be guessed")
    return Seen(Layer.HTTP, "unguessable", "", ClosedBy.NOBODY, figures=f"{longest} bits")
