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
from device_sim.attack.case import IN, REVOKED, Chapter, revocation
from device_sim.attack.issuer import SERVER_AUTH, Issuer, Paper
from device_sim.attack.scene import Scene
from device_sim.attack.target import Impossible, SigningRegistrar
from device_sim.attack.verdict import Seen
from device_sim.credentials.certification import common_name
from provisioning.client.csr import build_csr
from provisioning.client.est import EstClient
from provisioning.pki.keys import generate_key

BAD = ("tls bad_certificate", "tls unsupported_certificate", "tls certificate_unknown")
NOT_OURS = "mqtt CONNACK 0x87"

chapter = Chapter()
case = chapter.case


@case("1-good", "a good device (control)", IN)
async def _good(scene: Scene) -> Seen:
    return await scene.show(await scene.device())


@case("1-good-311", "a good device that speaks MQTT 3.1.1 (control)", "mqtt CONNACK 0")
async def _good_311(scene: Scene) -> Seen:
    paper = await scene.device()
    name = paper.name
    return await scene.present(scene.context(paper.pem), name, version=ProtocolVersion.V311)


@case("2-no-certificate", "shows no certificate", "tls certificate_required", "tls handshake_failure")
async def _no_certificate(scene: Scene) -> Seen:
    return await scene.present(scene.context(None), scene.fresh())


def _dated(name: str, description: str, expected: str, begins: timedelta, ends: timedelta) -> None:
    async def attempt(scene: Scene) -> Seen:
        return await scene.show(scene.target.issuer.issue(scene.target.device(scene.fresh()), begins=begins, ends=ends))

    chapter.add(name, description, (expected,), attempt)


_DAY, _SECOND = timedelta(days=1), timedelta(seconds=1)
_dated("3-expired", "expired yesterday", "tls certificate_expired", -2 * _DAY, -_DAY)
_dated("3-expired-1s", "expired a second ago", "tls certificate_expired", -_DAY, -_SECOND)
# RFC 8446 has no alert for it; OpenSSL maps it to bad_certificate, not to certificate_expired.
_dated("4-not-yet-valid", "valid from tomorrow", "tls bad_certificate", _DAY, 2 * _DAY)


@case("5-revoked", "its certificate is revoked", *REVOKED, needs=(Feature.REVOCATION,), limit=revocation)
async def _revoked(scene: Scene) -> Seen:
    paper = await scene.device()
    await scene.target.registrar.revoke(paper)
    return await scene.until_refused(paper)


@case("8-self-signed", "signed its certificate itself", "tls unknown_ca")
async def _self_signed(scene: Scene) -> Seen:
    key = generate_key()
    name = common_name(scene.fresh())
    (common,) = name
    issuer = Issuer(scene.target.ca_certificate, key)
    identity = scene.target.device(str(common.value))
    return await scene.show(issuer.issue(identity, key=key, subject=name, issuer_name=name))


@case("9-wrong-ca", "certified by an untrusted CA", "tls unknown_ca")
async def _wrong_ca(scene: Scene) -> Seen:
    return await scene.show(Issuer.founded(common_name("Another CA")).issue(scene.target.device(scene.fresh())))


@case("10-ca-name", "certified by a CA with the same name as ours", "tls unknown_ca", "tls decrypt_error")
async def _ca_name(scene: Scene) -> Seen:
    impostor = Issuer.founded(scene.target.ca_certificate.subject)
    return await scene.show(impostor.issue(scene.target.device(scene.fresh())))


@case("10-ca-name-no-aki", "the same, without an Authority Key Identifier", "tls decrypt_error", "tls unknown_ca")
async def _ca_name_without_key_id(scene: Scene) -> Seen:
    impostor = Issuer.founded(scene.target.ca_certificate.subject)
    return await scene.show(impostor.issue(scene.target.device(scene.fresh()), authority_key=False))


@case("11-wrong-eku", "its certificate is for servers", "tls unsupported_certificate")
async def _wrong_eku(scene: Scene) -> Seen:
    return await scene.show(scene.target.issuer.issue(scene.target.device(scene.fresh()), usages=SERVER_AUTH))


# RFC 5280 §4.2.1.12: without the extension, a certificate is valid for any purpose.
@case("12-no-eku", "its certificate names no purpose (policy)", IN, "tls unsupported_certificate")
async def _no_eku(scene: Scene) -> Seen:
    return await scene.show(scene.target.issuer.issue(scene.target.device(scene.fresh()), usages=None))


@case("12-empty-eku", "its certificate names an empty list of purposes", *BAD)
async def _empty_eku(scene: Scene) -> Seen:
    empty = x509.UnrecognizedExtension(ObjectIdentifier("2.5.29.37"), bytes.fromhex("3000"))
    identity = scene.target.device(scene.fresh())
    return await scene.show(scene.target.issuer.issue(identity, usages=None, extra=((empty, False),)))


@case("13-ca-certificate", "shows a CA's certificate as its own", *BAD, "tls unknown_ca", NOT_OURS)
async def _ca_certificate(scene: Scene) -> Seen:
    return await scene.show(scene.target.issuer.issue(scene.target.device(scene.fresh()), ca=True, path_length=0))


@case("13-issued-by-device", "certified by another device", "tls unknown_ca", *BAD)
async def _issued_by_device(scene: Scene) -> Seen:
    parent = await scene.device()
    paper = Issuer(parent.certificate, parent.key).issue(scene.target.device(scene.fresh()))
    return await scene.show(paper.presented_with(parent.certificate))


@case("13-below-path-length", "certified by a CA below ours, against its path length", *BAD, "tls unknown_ca")
async def _below_path_length(scene: Scene) -> Seen:
    constraints = scene.target.ca_certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    if constraints.path_length != 0:
        raise Impossible("the target's CA may certify CAs: it has no path length of 0")
    sub = _subordinate(scene)
    return await scene.show(sub.issue(scene.target.device(scene.fresh())).presented_with(sub.certificate))


@case("14-incomplete-chain", "leaves its intermediate CA out", "tls unknown_ca")
async def _incomplete_chain(scene: Scene) -> Seen:
    return await scene.show(_subordinate(scene).issue(scene.target.device(scene.fresh())))


def _subordinate(scene: Scene) -> Issuer:
    paper = scene.target.issuer.issue(None, subject=common_name("Sub CA"), ca=True, path_length=0, usages=None)
    return Issuer(paper.certificate, paper.key)


@case("15-duplicated-chain", "sends its certificate twice (extras may be ignored)", IN, *BAD, "tls unknown_ca")
async def _duplicated_chain(scene: Scene) -> Seen:
    paper = await scene.device()
    return await scene.show(paper.presented_with(paper.certificate, scene.target.ca_certificate))


@case(
    "15-chain-of-100", "sends 100 certificates (extras may be ignored)",
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


@case("16-broken-signature", "one bit of the CA's signature is changed", "tls decrypt_error", "tls bad_certificate")
async def _broken_signature(scene: Scene) -> Seen:
    paper = await scene.device()
    return await scene.show(paper, paper.shown_as(der.pem(der.with_broken_signature(paper.certificate))))


@case("16-other-name", "its certificate is altered to name another", "tls decrypt_error", "tls bad_certificate")
async def _other_name(scene: Scene) -> Seen:
    mine, theirs = scene.fresh(), scene.fresh()
    paper = await scene.device(mine)
    pem = paper.shown_as(der.pem(der.with_other_name(paper.certificate, mine, theirs)))
    return await scene.present(scene.context(pem), theirs)


@case("17-stolen-certificate", "has a genuine certificate and not its key", "tls decrypt_error")
async def _stolen_certificate(scene: Scene) -> Seen:
    paper = await scene.device()
    pem = paper.shown_as(paper.certificate.public_bytes(Encoding.PEM), der.key_pretending_to_be(paper.certificate))
    return await scene.show(paper, pem)


# The CA has signed it: refusing it takes a register of issued certificates in which each one is looked up. RFC 6960
# §2.2 calls it unknown, which may be temporary (0x88).
@case("21-unregistered", "genuinely certified, never enrolled", NOT_OURS, "mqtt CONNACK 0x88",
      needs=(Feature.REGISTRY,))  # fmt: skip
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


@case("21-suspended", "suspended (certificateHold)", "mqtt CONNACK 0x8a", NOT_OURS, needs=(Feature.SUSPENSION,),
      limit=revocation)  # fmt: skip
async def _suspended(scene: Scene) -> Seen:
    if Feature.SUSPENSION not in scene.target.capabilities.supports:
        raise Impossible("there is no way to suspend a device here")
    desk = scene.target.desk
    if desk is None:
        raise Impossible("there is no operator's API to suspend with")
    paper = await scene.device()
    await desk.operator.suspend(serial=f"{paper.certificate.serial_number:x}")
    return await scene.until_refused(paper)


@case("22-renewed-old-one", "uses its old, unexpired certificate after renewal (policy)", IN, *REVOKED)
async def _renewed_old_one(scene: Scene) -> Seen:
    desk = scene.target.desk
    if desk is None:
        raise Impossible("there is no enrolment service to renew with")
    paper = await scene.device()
    async with EstClient(desk.url, desk.anchors, paper.pem) as est:
        await est.reenrol(build_csr(generate_key(), paper.name, paper.certificate))
    return await scene.show(paper)


@case("23-rsa-1024", "has an RSA key of 1024 bits", *BAD, "tls insufficient_security")
async def _rsa_1024(scene: Scene) -> Seen:
    key = rsa.generate_private_key(65537, 1024)  # noqa: S505 - the attack
    paper = scene.target.issuer.issue(scene.target.device(scene.fresh()), key=key)
    return await _weakly(scene, paper, paper.certificate.public_bytes(Encoding.PEM))


@case("23-sha1", "its certificate is signed over SHA-1", *BAD, "tls insufficient_security", "tls decrypt_error")
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
_serial("24-serial-zero", "its serial number is zero", b"\0", IN, *BAD, NOT_OURS)
_serial("24-serial-negative", "its serial number is negative", b"\x80", IN, *BAD, NOT_OURS)
_serial("24-serial-long", "its serial number has 33 octets", b"\x01" * 33, IN, *BAD, NOT_OURS)


@case("24-critical-extension", "has an unknown critical extension", *BAD)
async def _critical_extension(scene: Scene) -> Seen:
    unknown = x509.UnrecognizedExtension(ObjectIdentifier("1.3.6.1.4.1.32473.1"), b"\x05\x00")
    return await scene.show(scene.target.issuer.issue(scene.target.device(scene.fresh()), extra=((unknown, True),)))


@case("24-two-identities", "its certificate names two devices", NOT_OURS,
      needs=(Feature.CLIENT_ID_BINDING, Feature.URI_IDENTITY))  # fmt: skip
async def _two_identities(scene: Scene) -> Seen:
    mine, theirs = scene.fresh(), scene.fresh()
    names = x509.SubjectAlternativeName(
        [x509.UniformResourceIdentifier(scene.target.device(name).uri) for name in (mine, theirs)]
    )
    paper = scene.target.issuer.issue(None, subject=common_name(mine), extra=((names, False),))
    return await scene.present(scene.context(paper.pem), theirs)


@case("24-other-domain", "names a device of another trust domain", NOT_OURS, needs=(Feature.URI_IDENTITY,))
async def _other_domain(scene: Scene) -> Seen:
    name = scene.fresh()
    return await scene.show(scene.target.issuer.device(name, scene.target.group, "other.example"))


@case("24-name-constraints", "its name is outside its CA's constraints", *BAD)
async def _name_constraints(scene: Scene) -> Seen:
    domain = scene.target.trust_domain
    control = await scene.show(_constrained(scene, domain))
    if not control.got_in:
        raise Impossible(f"a device within its CA's constraints is refused as well: {control.text} {control.reason}")
    return await scene.show(_constrained(scene, f"not-{domain}"))


def _constrained(scene: Scene, domain: str) -> Paper:
    """Return a good device with a CA that may only name devices of *domain* (RFC 5280 §4.2.1.10)."""
    other = scene.target.other_issuer
    if other is None:
        raise Impossible("the target's CA may certify no CA, and there is no other")
    limits = x509.NameConstraints([x509.UniformResourceIdentifier(domain)], None)
    name = common_name(f"CA of {domain}")
    paper = other.issue(None, subject=name, ca=True, path_length=0, usages=None, extra=((limits, True),))
    issuer = Issuer(paper.certificate, paper.key)
    return issuer.issue(scene.target.device(scene.fresh())).presented_with(paper.certificate)
