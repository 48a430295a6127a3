"""Cases 44 and 45: the enrolment service receives false requests, and the broker gets no news of revocations."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from device_sim.attack import der
from device_sim.attack.case import Chapter
from device_sim.attack.desk import EnrolmentDesk
from device_sim.attack.scene import Scene
from device_sim.attack.target import Impossible
from device_sim.attack.verdict import ClosedBy, Layer, Seen
from provisioning.client.csr import build_csr
from provisioning.client.est import EnrolmentRefused, EnrolmentUnavailable, EstClient
from provisioning.pki.keys import PrivateKey, generate_key
from provisioning.pki.tls import CredentialPem, client_context

_GRACE_PATIENCE = 15.0
_STALE = 0.2

chapter = Chapter()
case = chapter.case


def _desk(scene: Scene) -> EnrolmentDesk:
    if scene.target.desk is None:
        raise Impossible("there is no enrolment service beside this broker")
    return scene.target.desk


async def _token(scene: Scene, name: str) -> str:
    return await _desk(scene).token(name, scene.target.group)


async def _tried(attempt: Callable[[], Awaitable[x509.Certificate]]) -> Seen:
    try:
        certificate = await attempt()
    except EnrolmentRefused as error:
        return Seen(Layer.HTTP, f"{error.status} {error.code}".strip(), error.detail, ClosedBy.NOBODY)
    except EnrolmentUnavailable as error:
        return Seen(Layer.HTTP, "unavailable", str(error), ClosedBy.NOBODY)
    return Seen(Layer.HTTP, "issued", f"serial {certificate.serial_number:x}", ClosedBy.NOBODY, got_in=True)


def _csr(name: str, key: PrivateKey | None = None) -> x509.CertificateSigningRequest:
    return build_csr(key or generate_key(), name)


async def _enrols(
    scene: Scene, csr: x509.CertificateSigningRequest, user: str, token: str, label: str | None = None
) -> Seen:
    desk = _desk(scene)
    desk.note(user)  # The service may accept a device that it should refuse.
    async with EstClient(desk.url, desk.anchors, trust_domain=desk.operator.trust_domain) as est:
        return await _tried(lambda: est.enrol(csr, user=user, token=token, label=label))


@case("44-good", "enrols as it should (control)", "http issued")
async def _good(scene: Scene) -> Seen:
    _desk(scene)
    name = scene.fresh()
    return await _enrols(scene, _csr(name), name, await _token(scene, name))


@case("44-token-used", "uses its token a second time", "http 401 TOKEN_USED")
async def _token_used(scene: Scene) -> Seen:
    _desk(scene)
    name = scene.fresh()
    token = await _token(scene, name)
    await _enrols(scene, _csr(name), name, token)
    return await _enrols(scene, _csr(name), name, token)


@case("44-replayed-csr", "replays a whole enrolment, request and token", "http 401 TOKEN_USED")
async def _replayed(scene: Scene) -> Seen:
    _desk(scene)
    name = scene.fresh()
    token, csr = await _token(scene, name), _csr(name)
    await _enrols(scene, csr, name, token)
    return await _enrols(scene, csr, name, token)


@case("44-token-race", "uses one token ten times at once: one certificate", "http 401 TOKEN_USED")
async def _token_race(scene: Scene) -> Seen:
    _desk(scene)
    name = scene.fresh()
    token = await _token(scene, name)
    answers = await asyncio.gather(*(_enrols(scene, _csr(name), name, token) for _ in range(10)))
    issued = sum(answer.got_in for answer in answers)
    if issued != 1:
        return Seen(Layer.HTTP, "issued", f"{issued} certificates for one token", ClosedBy.NOBODY, got_in=True)
    return next(answer for answer in answers if not answer.got_in)


@case("44-token-guessed", "guesses a token", "http 401 TOKEN_UNKNOWN")
async def _token_guessed(scene: Scene) -> Seen:
    name = scene.fresh()
    return await _enrols(scene, _csr(name), name, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")


@case("44-other-device", "asks with its own token for another's certificate", "http 403 TOKEN_DEVICE")
async def _other_device(scene: Scene) -> Seen:
    _desk(scene)
    mine, theirs = scene.fresh(), scene.fresh("victim")
    return await _enrols(scene, _csr(theirs), theirs, await _token(scene, mine))


@case("44-other-group", "asks for another group's certificate", "http 403 TOKEN_GROUP")
async def _other_group(scene: Scene) -> Seen:
    _desk(scene)
    name = scene.fresh()
    return await _enrols(scene, _csr(name), name, await _token(scene, name), label="admins")


@case("44-weak-key", "asks for a certificate of an RSA key of 1024 bits", "http 400 CSR_KEY")
async def _weak_key(scene: Scene) -> Seen:
    _desk(scene)
    name = scene.fresh()
    key = rsa.generate_private_key(65537, 1024)  # noqa: S505 - the attack
    return await _enrols(scene, _csr(name, key), name, await _token(scene, name))


@case("44-stolen-key", "asks for a certificate of another device's key", "http 400 KEY_REUSED")
async def _stolen_key(scene: Scene) -> Seen:
    _desk(scene)
    victim, name = await scene.device(), scene.fresh()
    return await _enrols(scene, _csr(name, victim.key), name, await _token(scene, name))


@case("44-no-possession", "asks for a key that it does not have", "http 400 CSR_SIGNATURE")
async def _no_possession(scene: Scene) -> Seen:
    _desk(scene)
    name = scene.fresh()
    request = bytearray(_csr(name).public_bytes(Encoding.DER))
    request[-1] ^= 1
    return await _posts(scene, bytes(request), name, await _token(scene, name))


@case("44-sha1-request", "signs its request over SHA-1", "http 400 CSR_SIGNATURE")
async def _sha1_request(scene: Scene) -> Seen:
    _desk(scene)
    name = scene.fresh()
    key = generate_key()
    return await _posts(scene, der.request_over_sha1(_csr(name, key), key), name, await _token(scene, name))


@case("44-not-a-request", "sends noise for a request", "http 400 CSR_MALFORMED")
async def _not_a_request(scene: Scene) -> Seen:
    _desk(scene)
    name = scene.fresh()
    return await _posts(scene, bytes(range(200)), name, await _token(scene, name))


@case("44-renews-as-other", "renews its certificate under another's name", "http 400 CSR_SUBJECT_CHANGED")
async def _renews_as_other(scene: Scene) -> Seen:
    desk = _desk(scene)
    paper, victim = await scene.device(), scene.fresh("victim")
    desk.note(victim)
    async with EstClient(desk.url, desk.anchors, paper.pem) as est:
        return await _tried(lambda: est.reenrol(_csr(victim)))


@case("44-renews-revoked", "renews a revoked certificate", "http 403 CERTIFICATE_REVOKED")
async def _renews_revoked(scene: Scene) -> Seen:
    desk = _desk(scene)
    paper = await scene.device()
    await scene.target.registrar.revoke(paper)
    return await _renewed(desk, paper.pem, build_csr(
        generate_key(), paper.name, paper.certificate
    ))  # fmt: skip


@case("44-renews-forged", "renews a certificate that the service never issued", "http 403 CERTIFICATE_UNKNOWN")
async def _renews_forged(scene: Scene) -> Seen:
    desk = _desk(scene)
    paper = scene.forged()
    desk.note(paper.name)
    return await _renewed(desk, paper.pem, build_csr(
        generate_key(), paper.name, paper.certificate
    ))  # fmt: skip


@case("44-device-as-operator", "a device asks for tokens as an operator would", "http 403 ROLE")
async def _device_as_operator(scene: Scene) -> Seen:
    desk = _desk(scene)
    paper = await scene.device()
    async with httpx.AsyncClient(verify=client_context(desk.anchors, paper.pem, allow_tls12=True)) as client:
        answer = await client.post(f"{desk.url}/v1/tokens", json={"device": scene.fresh()})
    code = answer.json().get("code", "") if answer.headers.get("Content-Type", "").endswith("json") else ""
    return Seen(
        Layer.HTTP, f"{answer.status_code} {code}".strip(), answer.text[:200], ClosedBy.NOBODY, answer.is_success
    )


async def _renewed(desk: EnrolmentDesk, pem: CredentialPem, csr: x509.CertificateSigningRequest) -> Seen:
    async with EstClient(desk.url, desk.anchors, pem) as est:
        return await _tried(lambda: est.reenrol(csr))


async def _posts(scene: Scene, request: bytes, user: str, token: str) -> Seen:
    """Send *request* unchanged: the client would refuse to."""
    desk = _desk(scene)
    async with httpx.AsyncClient(verify=client_context(desk.anchors, allow_tls12=True)) as client:
        answer = await client.post(
            f"{desk.url}/.well-known/est/simpleenroll",
            content=base64.b64encode(request),
            headers={"Content-Type": "application/pkcs10"},
            auth=httpx.BasicAuth(user, token),
        )
    code = answer.text.partition(":")[0]
    return Seen(
        Layer.HTTP, f"{answer.status_code} {code}".strip(), answer.text.strip()[:200], ClosedBy.NOBODY,
        answer.is_success,
    )  # fmt: skip


@case(
    "45-stale-revocations", "connects when the broker's revocation data is older than its grace period",
    "mqtt CONNACK 0x88", limit=lambda _: _GRACE_PATIENCE, last=True,
)  # fmt: skip
async def _stale_revocations(scene: Scene) -> Seen:
    feed = scene.target.feed
    if feed is None:
        raise Impossible("the tester does not control how this broker learns of revocations")
    paper = await scene.device()
    feed.cut()
    try:
        until = time.monotonic() + _GRACE_PATIENCE
        seen = await scene.show(paper)
        while seen.got_in and time.monotonic() < until:
            await asyncio.sleep(_STALE)  # Within the grace period it is admitted.
            seen = await scene.show(paper)
        return seen
    finally:
        feed.join()
        await scene.until_admitted(paper, _GRACE_PATIENCE)
