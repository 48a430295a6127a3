"""Cases 1 to 24: something is wrong with the certificate."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ObjectIdentifier

from broker.mqtt.codes import ProtocolVersion
from device_sim.attack import der
from device_sim.attack.capabilities import Feature
from device_sim.attack.case import BAD, IN, NOWHERE, REVOKED, Chapter, patience, revocation
from device_sim.attack.issuer import SERVER_AUTH, Issuer, Paper
from device_sim.attack.scene import Scene
from device_sim.attack.target import Impossible, SigningRegistrar
from device_sim.attack.topic_cases import overhears
from device_sim.attack.verdict import Seen
from device_sim.credentials.certification import common_name
from provisioning.client.csr import build_csr
from provisioning.client.est import EstClient
from provisioning.pki.identity import Identity
from provisioning.pki.keys import generate_key
from provisioning.pki.role import Role
from provisioning.pki.serial_number import serial_text
from provisioning.pki.tls import CredentialPem

NOT_OURS = "mqtt CONNACK 0x87"

chapter = Chapter()
case = chapter.case


@case("1-good", "connects with a good certificate (control)", IN)
async def _good(scene: Scene) -> Seen:
    return await scene.show(await scene.device())


@case("1-good-311", "connects with a good certificate and MQTT 3.1.1 (control)", "mqtt CONNACK 0")
async def _good_311(scene: Scene) -> Seen:
    paper = await scene.device()
    name = paper.name
    return await scene.present(scene.context(paper.pem), name, version=ProtocolVersion.V311)


@case("2-no-certificate", "presents no certificate", "tls certificate_required", "tls handshake_failure")
async def _no_certificate(scene: Scene) -> Seen:
    return await scene.present(scene.context(None), scene.fresh())


def _dated(name: str, description: str, expected: str, begins: timedelta, ends: timedelta) -> None:
    async def attempt(scene: Scene) -> Seen:
        return await scene.show(scene.target.issuer.issue(scene.target.device(scene.fresh()), begins=begins, ends=ends))

    chapter.add(name, description, (expected,), attempt)


_DAY = timedelta(days=1)
_dated("3-expired", "presents a certificate that expired yesterday", "tls certificate_expired", -2 * _DAY, -_DAY)
# RFC 8446 has no alert for it; OpenSSL maps it to bad_certificate, not to certificate_expired.
_dated("4-not-yet-valid", "presents a certificate that is valid from tomorrow", "tls bad_certificate", _DAY, 2 * _DAY)


@case("5-revoked", "presents a revoked certificate", *REVOKED, needs=(Feature.REVOCATION,), limit=revocation)
async def _revoked(scene: Scene) -> Seen:
    paper = await scene.device()
    await scene.target.registrar.revoke(paper)
    return await scene.until_refused(paper)


@case("8-self-signed", "presents a self-signed certificate", "tls unknown_ca")
async def _self_signed(scene: Scene) -> Seen:
    key = generate_key()
    name = common_name(scene.fresh())
    (common,) = name
    issuer = Issuer(scene.target.ca_certificate, key)
    identity = scene.target.device(str(common.value))
    return await scene.show(issuer.issue(identity, key=key, subject=name, issuer_name=name))


@case("9-wrong-ca", "presents a certificate of an untrusted CA", "tls unknown_ca")
async def _wrong_ca(scene: Scene) -> Seen:
    return await scene.show(Issuer.founded(common_name("Another CA")).issue(scene.target.device(scene.fresh())))


@case(
    "10-ca-name",
    "presents a certificate of an untrusted CA with the trusted CA's name",
    "tls unknown_ca",
    "tls decrypt_error",
)
async def _ca_name(scene: Scene) -> Seen:
    impostor = Issuer.founded(scene.target.ca_certificate.subject)
    return await scene.show(impostor.issue(scene.target.device(scene.fresh())))


@case("10-ca-name-no-aki", "does the same, without an Authority Key Identifier", "tls decrypt_error", "tls unknown_ca")
async def _ca_name_without_key_id(scene: Scene) -> Seen:
    impostor = Issuer.founded(scene.target.ca_certificate.subject)
    return await scene.show(impostor.issue(scene.target.device(scene.fresh()), authority_key=False))


@case("11-wrong-eku", "presents a certificate for servers only (Extended Key Usage)", "tls unsupported_certificate")
async def _wrong_eku(scene: Scene) -> Seen:
    return await scene.show(scene.target.issuer.issue(scene.target.device(scene.fresh()), usages=SERVER_AUTH))


# RFC 5280 §4.2.1.12: without the extension, a certificate is valid for any purpose.
@case("12-no-eku", "presents a certificate without Extended Key Usage (policy)", IN, "tls unsupported_certificate")
async def _no_eku(scene: Scene) -> Seen:
    return await scene.show(scene.target.issuer.issue(scene.target.device(scene.fresh()), usages=None))


@case("12-empty-eku", "presents a certificate with an empty Extended Key Usage", *BAD)
async def _empty_eku(scene: Scene) -> Seen:
    empty = x509.UnrecognizedExtension(ObjectIdentifier("2.5.29.37"), bytes.fromhex("3000"))
    identity = scene.target.device(scene.fresh())
    return await scene.show(scene.target.issuer.issue(identity, usages=None, extra=((empty, False),)))


@case("13-ca-certificate", "presents a CA certificate as its own", *BAD, "tls unknown_ca", NOT_OURS)
async def _ca_certificate(scene: Scene) -> Seen:
    return await scene.show(scene.target.issuer.issue(scene.target.device(scene.fresh()), ca=True, path_length=0))


@case("13-issued-by-device", "presents a certificate signed with another device's key", "tls unknown_ca", *BAD)
async def _issued_by_device(scene: Scene) -> Seen:
    parent = await scene.device()
    paper = Issuer(parent.certificate, parent.key).issue(scene.target.device(scene.fresh()))
    return await scene.show(paper.presented_with(parent.certificate))


@case("13-below-path-length", "presents a certificate of a CA that exceeds the path length", *BAD, "tls unknown_ca")
async def _below_path_length(scene: Scene) -> Seen:
    constraints = scene.target.ca_certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    if constraints.path_length != 0:
        raise Impossible("the target's CA may certify CAs: it has no path length of 0")
    sub = _subordinate(scene)
    return await scene.show(sub.issue(scene.target.device(scene.fresh())).presented_with(sub.certificate))


@case("14-incomplete-chain", "omits the intermediate CA's certificate", "tls unknown_ca")
async def _incomplete_chain(scene: Scene) -> Seen:
    return await scene.show(_subordinate(scene).issue(scene.target.device(scene.fresh())))


def _subordinate(scene: Scene) -> Issuer:
    paper = scene.target.issuer.issue(None, subject=common_name("Sub CA"), ca=True, path_length=0, usages=None)
    return Issuer(paper.certificate, paper.key)


@case(
    "15-duplicated-chain", "sends its certificate twice (extra certificates may be ignored)", IN, *BAD, "tls unknown_ca"
)
async def _duplicated_chain(scene: Scene) -> Seen:
    paper = await scene.device()
    return await scene.show(paper.presented_with(paper.certificate, scene.target.ca_certificate))


@case(
    "15-chain-of-100", "sends 100 certificates (extra certificates may be ignored)",
    IN, *BAD, "tls unknown_ca", "tls illegal_parameter",
)  # fmt: skip
async def _chain_of_100(scene: Scene) -> Seen:
    paper = await scene.device()
    return await scene.show(paper.presented_with(*[scene.target.ca_certificate] * 100))


@case(
    "15-chain-too-long", "sends 200 KB of certificates",
    "tls illegal_parameter", "tls internal_error", "tls unknown_ca", *BAD,
)  # fmt: skip
async def _chain_too_long(scene: Scene) -> Seen:
    paper = await scene.device()
    size = len(scene.target.ca_certificate.public_bytes(Encoding.DER))
    return await scene.show(paper.presented_with(*[scene.target.ca_certificate] * (200_000 // size)))


@case(
    "16-broken-signature",
    "presents a certificate with one bit of the signature changed",
    "tls decrypt_error",
    "tls bad_certificate",
)
async def _broken_signature(scene: Scene) -> Seen:
    paper = await scene.device()
    return await scene.show(paper, paper.shown_as(der.pem(der.with_broken_signature(paper.certificate))))


@case(
    "16-other-name",
    "presents its certificate with the name changed to another's",
    "tls decrypt_error",
    "tls bad_certificate",
)
async def _other_name(scene: Scene) -> Seen:
    mine, theirs = scene.fresh(), scene.fresh()
    paper = await scene.device(mine)
    pem = paper.shown_as(der.pem(der.with_other_name(paper.certificate, mine, theirs)))
    return await scene.present(scene.context(pem), theirs)


@case("17-stolen-certificate", "presents a genuine certificate without having its key", "tls decrypt_error")
async def _stolen_certificate(scene: Scene) -> Seen:
    paper = await scene.device()
    pem = paper.shown_as(paper.certificate.public_bytes(Encoding.PEM), der.key_pretending_to_be(paper.certificate))
    return await scene.show(paper, pem)


# The CA has signed it: refusing it takes a register of issued certificates in which each one is looked up. RFC 6960
# §2.2 calls it unknown, which may be temporary (0x88).
@case(
    "21-unregistered",
    "presents a certificate that the CA signed and the service never issued",
    NOT_OURS,
    "mqtt CONNACK 0x88",
    needs=(Feature.REGISTRY,),
)
async def _unregistered(scene: Scene) -> Seen:
    if scene.target.registry is None:
        claimed = Feature.REGISTRY in scene.target.capabilities.supports
        if claimed and isinstance(scene.target.registrar, SigningRegistrar):
            raise Impossible("not applicable: with the CA's key alone, good devices are in no register either")
        return await scene.show(scene.forged())
    async with scene.target.registry() as endpoint:
        asking = scene.at(endpoint)
        control = await asking.show(await scene.device())
        if not control.got_in:
            raise Impossible(f"who has enrolled is refused as well: {control.text} {control.reason}")
        started = time.monotonic()
        seen = await asking.show(scene.forged())
        return replace(seen, seconds=time.monotonic() - started)  # Without the other broker's start-up time.


@case(
    "21-suspended",
    "presents a suspended certificate (certificateHold)",
    "mqtt CONNACK 0x8a",
    NOT_OURS,
    needs=(Feature.SUSPENSION,),
    limit=revocation,
)
async def _suspended(scene: Scene) -> Seen:
    if Feature.SUSPENSION not in scene.target.capabilities.supports:
        raise Impossible("there is no way to suspend a device here")
    desk = scene.target.desk
    if desk is None:
        raise Impossible("there is no operator's API to suspend with")
    paper = await scene.device()
    await desk.operator.suspend(serial=serial_text(paper.certificate.serial_number))
    return await scene.until_refused(paper)


@case(
    "21-suspended-live", "is suspended while connected", "mqtt DISCONNECT 0x98", "mqtt DISCONNECT 0x87",
    "mqtt DISCONNECT 0x8a", needs=(Feature.SUSPENSION,), limit=revocation,
)  # fmt: skip
async def _suspended_live(scene: Scene) -> Seen:
    if scene.target.desk is None:
        raise Impossible("there is no operator's API to suspend with")
    paper = await scene.device()
    client = await scene.admitted(paper)
    started = time.monotonic()
    try:
        await scene.target.desk.operator.suspend(serial=serial_text(paper.certificate.serial_number))
        seen = await scene.with_grace(client.end, scene.target.capabilities.limits.revocation)
    finally:
        client.close()
    return replace(seen, seconds=time.monotonic() - started)


@case("22-renewed-old-one", "uses its old, unexpired certificate after a renewal (policy)", IN, *REVOKED)
async def _renewed_old_one(scene: Scene) -> Seen:
    desk = scene.target.desk
    if desk is None:
        raise Impossible("there is no enrolment service to renew with")
    paper = await scene.device()
    async with EstClient(desk.url, desk.anchors, paper.pem) as est:
        await est.reenrol(build_csr(generate_key(), paper.name, paper.certificate))
    return await scene.show(paper)


@case("23-rsa-1024", "presents a certificate for an RSA key of 1024 bits", *BAD, "tls insufficient_security")
async def _rsa_1024(scene: Scene) -> Seen:
    key = rsa.generate_private_key(65537, 1024)  # noqa: S505 - the attack
    paper = scene.target.issuer.issue(scene.target.device(scene.fresh()), key=key)
    return await _weakly(scene, paper, paper.certificate.public_bytes(Encoding.PEM))


@case(
    "23-sha1",
    "presents a certificate that is signed over SHA-1",
    *BAD,
    "tls insufficient_security",
    "tls decrypt_error",
)
async def _sha1(scene: Scene) -> Seen:
    paper = scene.forged()
    return await _weakly(scene, paper, der.pem(der.with_sha1(paper.certificate, scene.target.issuer.key)))


async def _weakly(scene: Scene, paper: Paper, certificate: bytes) -> Seen:
    """Present *certificate* with a client that accepts anything on its own side."""
    context = scene.context(None)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    paper.shown_as(certificate).load_into(context)
    return await scene.present(context, paper.name)


def _serial(name: str, description: str, serial: bytes, *expected: str) -> None:
    async def attempt(scene: Scene) -> Seen:
        paper = scene.forged()
        changed = der.with_serial(paper.certificate, serial, scene.target.issuer.key)
        return await scene.show(paper, paper.shown_as(der.pem(changed)))

    chapter.add(name, description, expected, attempt)


# RFC 5280 §4.1.2.2: a CA must not, but readers of such a certificate should cope: either answer, and no crash.
_serial("24-serial-zero", "presents a certificate with serial number zero", b"\0", IN, *BAD, NOT_OURS)
_serial("24-serial-negative", "presents a certificate with a negative serial number", b"\x80", IN, *BAD, NOT_OURS)
_serial("24-serial-long", "presents a certificate with a serial number of 33 octets", b"\x01" * 33, IN, *BAD, NOT_OURS)


_UNKNOWN = x509.UnrecognizedExtension(ObjectIdentifier("1.3.6.1.4.1.32473.1"), b"\x05\x00")


@case("24-critical-extension", "presents a certificate with an unknown critical extension", *BAD)
async def _critical_extension(scene: Scene) -> Seen:
    return await scene.show(scene.target.issuer.issue(scene.target.device(scene.fresh()), extra=((_UNKNOWN, True),)))


# RFC 5280 §4.2 forbids it. Who reads the one, and checks the other, lets a device in under another's name.
@case("24-extension-twice", "presents a certificate with two lists of names, its own and another's",
      *BAD, NOT_OURS, "tls unknown_ca", "tls decode_error")  # fmt: skip
async def _extension_twice(scene: Scene) -> Seen:
    paper, theirs = scene.forged(), scene.fresh()

    def shown(added: x509.ExtensionType) -> CredentialPem:
        extension = x509.Extension(added.oid, False, added)
        return paper.shown_as(der.pem(der.with_extension(paper.certificate, extension, scene.target.issuer.key)))

    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(scene.target.device(theirs).uri)])
    twice = shown(names)
    for name in (paper.name, theirs):  # Whichever of the two a broker takes it for.
        seen = await scene.present(scene.context(twice), name)
        if seen.got_in:
            return seen
    control = await scene.show(paper, shown(_UNKNOWN))
    if not control.got_in:
        raise Impossible(f"with an extension that nobody knows it is refused as well: {control.text} {control.reason}")
    return seen


@case("24-two-identities", "presents a certificate that names two devices", NOT_OURS,
      needs=(Feature.CLIENT_ID_BINDING, Feature.URI_IDENTITY))  # fmt: skip
async def _two_identities(scene: Scene) -> Seen:
    mine, theirs = scene.fresh(), scene.fresh()
    names = x509.SubjectAlternativeName(
        [x509.UniformResourceIdentifier(scene.target.device(name).uri) for name in (mine, theirs)]
    )
    paper = scene.target.issuer.issue(None, subject=common_name(mine), extra=((names, False),))
    seen = await scene.present(scene.context(paper.pem), mine)  # Whichever of the two a broker takes it for.
    return seen if seen.got_in else await scene.present(scene.context(paper.pem), theirs)


@case("24-other-subject", "presents a certificate whose subject is another's name, and uses that",
      NOT_OURS, "mqtt CONNACK 0x85", needs=(Feature.CLIENT_ID_BINDING, Feature.URI_IDENTITY))  # fmt: skip
async def _other_subject(scene: Scene) -> Seen:
    mine, theirs = scene.fresh(), scene.fresh()
    paper = scene.target.issuer.issue(scene.target.device(mine), subject=common_name(theirs))
    return await scene.present(scene.context(paper.pem), theirs)


@case("24-wildcard-name", "presents a certificate that names a device +, and so could match any topic",
      NOT_OURS, "mqtt CONNACK 0x85", "mqtt CONNACK 0x86", "mqtt SUBACK 0x87", NOWHERE, *BAD,
      needs=(Feature.TOPIC_POLICY,), limit=patience)  # fmt: skip
async def _wildcard_name(scene: Scene) -> Seen:
    uri = scene.target.device("x").uri[:-1] + "+"
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
    paper = scene.target.issuer.issue(None, subject=common_name("+"), extra=((names, False),))
    return await overhears(scene, paper, scene.topic("+", "cmd/#"))


@case(
    "24-other-domain",
    "presents a certificate that names a device of another trust domain",
    NOT_OURS,
    needs=(Feature.URI_IDENTITY,),
)
async def _other_domain(scene: Scene) -> Seen:
    name = scene.fresh()
    return await scene.show(scene.target.issuer.device(name, scene.target.group, "other.example"))


@case(
    "24-role-of-broker",
    "presents the certificate of a broker, not of a device",
    NOT_OURS,
    needs=(Feature.URI_IDENTITY,),
)
async def _role_of_broker(scene: Scene) -> Seen:
    identity = Identity(scene.target.trust_domain, Role.BROKER, scene.fresh())
    return await scene.show(scene.target.issuer.issue(identity))
