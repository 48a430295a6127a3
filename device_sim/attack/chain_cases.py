"""Cases 3 to 24, continued: something is wrong with the chain above the certificate, or with the time of it.

Rules
-----
1. Each case has a control that differs in one thing: who refuses that too has not refused for what is wrong.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from cryptography import x509

from device_sim.attack import broker_clock
from device_sim.attack.broker_clock import SECOND, dated, read_clock
from device_sim.attack.case import BAD, Chapter, revocation
from device_sim.attack.issuer import Issuer, Paper
from device_sim.attack.scene import Scene
from device_sim.attack.target import Impossible
from device_sim.attack.verdict import Seen
from device_sim.credentials.certification import common_name

_DAY = timedelta(days=1)

chapter = Chapter()
case = chapter.case


@case(
    "3-expired-1s", "presents a certificate that expired a second ago, by the broker's clock", "tls certificate_expired"
)
async def _expired_a_second_ago(scene: Scene) -> Seen:
    """No two clocks agree to a second, so the broker is asked for its own by what it admits.

    A certificate whose validity has begun is admitted (control); another ended a second before that: no clock by which
    the one is valid makes the other valid.
    """
    now = broker_clock.now().replace(microsecond=0)
    clock = await read_clock(scene, now)
    seen = await scene.show(dated(scene, clock.shows - _DAY, clock.shows - SECOND))
    return seen if clock.shows == now else replace(seen, figures=f"{clock} the attacker's")


@case("9-cross-signed", "presents a certificate of a good CA with the cross-certificate that an untrusted root gave it",
      "tls unknown_ca", *BAD)  # fmt: skip
async def _cross_signed(scene: Scene) -> Seen:
    """One CA, two certificates for its key: by that of a root that is trusted (control), a device of it is good."""
    key_holder = Issuer.founded(common_name("Cross-signed CA"))
    device = key_holder.issue(scene.target.device(scene.fresh()))
    stranger = Issuer.founded(common_name("Another root"), path_length=None)
    seen = await scene.show(device.presented_with(_certified(key_holder, stranger), stranger.certificate))
    if seen.got_in:
        return seen
    good = device.presented_with(_certified(key_holder, _other(scene)))
    return await _beside(scene, seen, good, "whose CA a trusted root has certified")


@case("24-name-constraints", "presents a certificate whose name violates its CA's name constraints", *BAD)
async def _name_constraints(scene: Scene) -> Seen:
    domain = scene.target.trust_domain
    seen = await scene.show(_constrained(scene, f"not-{domain}"))
    return await _beside(scene, seen, _constrained(scene, domain), "within its CA's constraints")


def _constrained(scene: Scene, domain: str) -> Paper:
    """Return a good device with a CA that may only name devices of *domain* (RFC 5280 §4.2.1.10)."""
    limits = x509.NameConstraints([x509.UniformResourceIdentifier(domain)], None)
    return _below(scene, common_name(f"CA of {domain}"), extra=((limits, True),))


@case("24-expired-ca", "presents a certificate of a CA whose own has expired", "tls certificate_expired")
async def _expired_ca(scene: Scene) -> Seen:
    seen = await scene.show(_below(scene, common_name("CA of yesterday"), begins=-2 * _DAY, ends=-_DAY))
    return await _beside(scene, seen, _below(scene, common_name("CA of today")), "of a CA that is valid")


@case("24-revoked-ca", "presents a certificate of a CA that is itself revoked, as the CRL of the one above says",
      "tls certificate_revoked", "mqtt CONNACK 0x87", "mqtt CONNACK 0x8a", limit=revocation)  # fmt: skip
async def _revoked_ca(scene: Scene) -> Seen:
    root = _other(scene)
    if scene.target.crls is None:
        raise Impossible("the tester has no way to tell this broker that a CA is revoked")
    lower, beside = (_subordinate(root, common_name(name)) for name in ("CA to be revoked", "CA beside it"))
    nothing = [(lower, ()), (beside, ())]
    async with scene.target.crls([(root, ()), *nothing]) as (endpoint, publish):
        there = scene.at(endpoint)
        try:
            paper, other = (_device_of(there, each) for each in (lower, beside))
            await _admitted(there, paper, "of a CA that is not revoked yet")
            await publish([(root, (lower.certificate.serial_number,)), *nothing])
            seen = await _beside(there, await there.until_refused(paper), other, "of another CA of the same root")
            return replace(seen, revoked="")  # That broker is gone when the refused are tried again.
        finally:
            await there.close()


def _other(scene: Scene) -> Issuer:
    """Return a CA that the broker trusts, and that may certify CAs; raise `Impossible` if there is none."""
    if scene.target.other_issuer is not None:
        return scene.target.other_issuer
    issuer = scene.target.issuer
    if issuer.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0:
        raise Impossible("the target's CA may certify no CA, and there is no other")
    return issuer


def _certified(holder: Issuer, by: Issuer) -> x509.Certificate:
    """Return the certificate of the CA *holder*, for the key that it has, by another CA."""
    public_key = holder.certificate.public_key()
    return by.issue(
        None, public_key=public_key, subject=holder.certificate.subject, ca=True, path_length=0, usages=None
    ).certificate


def _subordinate(above: Issuer, name: x509.Name, **fields: Any) -> Issuer:
    """Return a CA called *name* that *above* has certified, with these *fields* (`Issuer.issue`)."""
    paper = above.issue(None, subject=name, ca=True, path_length=0, usages=None, **fields)
    return Issuer(paper.certificate, paper.key)


def _device_of(scene: Scene, issuer: Issuer) -> Paper:
    """Return a good device of *issuer*, presented with that CA's certificate."""
    return issuer.issue(scene.target.device(scene.fresh())).presented_with(issuer.certificate)


def _below(scene: Scene, name: x509.Name, **fields: Any) -> Paper:
    """Return a good device of a CA called *name*, certified with these *fields* by one that may."""
    return _device_of(scene, _subordinate(_other(scene), name, **fields))


async def _beside(scene: Scene, seen: Seen, good: Paper, whose: str) -> Seen:
    """Return *seen*; raise `Impossible` if it is a refusal, and the control *good* is refused as well."""
    if not seen.got_in:
        await _admitted(scene, good, whose)
    return seen


async def _admitted(scene: Scene, good: Paper, whose: str) -> None:
    """Raise `Impossible` unless the control *good* is let in: then no refusal of its like means anything."""
    seen = await scene.show(good)
    if not seen.got_in:
        raise Impossible(f"a device {whose} is refused as well: {seen.text} {seen.reason}".rstrip())
