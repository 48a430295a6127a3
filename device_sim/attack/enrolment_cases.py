"""Cases 44 and 45: the enrolment service receives false requests, and the broker gets no news of revocations.

Renewals, and the operators' API, are in `device_sim.attack.renewal_cases` and `device_sim.attack.operator_cases`.
"""

from __future__ import annotations

import asyncio
import time

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from device_sim.attack import der
from device_sim.attack.asking import UNAVAILABLE, desk_of, enrols, posts, request_for, token_for
from device_sim.attack.case import Chapter
from device_sim.attack.scene import Scene
from device_sim.attack.target import Impossible, Starved, TurnedAway
from device_sim.attack.verdict import ClosedBy, Layer, Seen
from provisioning.pki.keys import generate_key
from provisioning.pki.revocation_reason import RevocationReason

_GRACE_PATIENCE = 15.0
_STALE = 0.2
_SHORT = 1

chapter = Chapter()
case = chapter.case


@case("44-good", "enrols with a good token and request (control)", "http issued")
async def _good(scene: Scene) -> Seen:
    name = scene.fresh()
    return await enrols(scene, request_for(name), name, await token_for(scene, name))


def _expect_issued(answer: Seen) -> None:
    """Raise `Starved` or `TurnedAway` if a good request got another *answer*: its token was not used yet."""
    if answer.got_in:
        return
    what = f"a good device does not get its certificate: {answer.text} {answer.reason}".rstrip()
    raise Starved(what) if answer.text == UNAVAILABLE else TurnedAway(what)


@case("44-token-used", "uses its token a second time", "http 401 TOKEN_USED")
async def _token_used(scene: Scene) -> Seen:
    name = scene.fresh()
    token = await token_for(scene, name)
    _expect_issued(await enrols(scene, request_for(name), name, token))
    return await enrols(scene, request_for(name), name, token)


@case(
    "44-replayed-csr",
    "sends a whole enrolment again, also after its revocation: at most it gets the same certificate, while it is good",
    "http 401 TOKEN_USED",
)
async def _replayed(scene: Scene) -> Seen:
    name = scene.fresh()
    token, csr = await token_for(scene, name), request_for(name)
    first = await enrols(scene, csr, name, token)
    again = await enrols(scene, csr, name, token)
    _expect_issued(first)
    if again.got_in and again.reason != first.reason:
        return again  # Another certificate for one token.
    await desk_of(scene).operator.revoke(device=name)
    return await enrols(scene, csr, name, token)


@case("44-token-race", "uses one token ten times at once: it gets one certificate", "http 401 TOKEN_USED")
async def _token_race(scene: Scene) -> Seen:
    name = scene.fresh()
    token = await token_for(scene, name)
    answers = await asyncio.gather(*(enrols(scene, request_for(name), name, token) for _ in range(10)))
    issued = sum(answer.got_in for answer in answers)
    if not issued:
        _expect_issued(answers[0])
    if issued > 1:
        return Seen(Layer.HTTP, "issued", f"{issued} certificates for one token", ClosedBy.NOBODY, got_in=True)
    return next(answer for answer in answers if not answer.got_in)


@case("44-token-guessed", "uses a token that is wrong in one character", "http 401 TOKEN_UNKNOWN")
async def _token_guessed(scene: Scene) -> Seen:
    name = scene.fresh()
    token = await token_for(scene, name)
    return await enrols(scene, request_for(name), name, token[:-1] + ("A" if token[-1] != "A" else "B"))


@case("44-token-expired", "uses a token that has expired", "http 401 TOKEN_EXPIRED", idle=True)
async def _token_expired(scene: Scene) -> Seen:
    desk, name = desk_of(scene), scene.fresh()
    token = await desk.token(name, scene.target.group, seconds=_SHORT)
    await asyncio.sleep(_SHORT + 1)
    return await enrols(scene, request_for(name), name, token)


@case(
    "44-token-void", "is revoked, and enrols with a token made before the revocation", "http 401 TOKEN_VOID"
)  # fmt: skip
async def _token_void(scene: Scene) -> Seen:
    desk, paper = desk_of(scene), await scene.device()
    token = await token_for(scene, paper.name)
    await desk.operator.revoke(device=paper.name, reason=RevocationReason.KEY_COMPROMISE)
    return await enrols(scene, request_for(paper.name), paper.name, token)


@case(
    "44-existing-name", "enrols under an existing device's name with a token for any new device", "http 403 NAME_TAKEN"
)
async def _existing_name(scene: Scene) -> Seen:
    desk, victim = desk_of(scene), await scene.device()
    token = await desk.token_of_group(scene.target.group)
    return await enrols(scene, request_for(victim.name), victim.name, token)


@case("44-other-device", "asks for another device's certificate with its own token", "http 403 TOKEN_DEVICE")
async def _other_device(scene: Scene) -> Seen:
    mine, theirs = scene.fresh(), scene.fresh("victim")
    return await enrols(scene, request_for(theirs), theirs, await token_for(scene, mine))


@case("44-other-group", "asks for a certificate of another group", "http 403 TOKEN_GROUP")
async def _other_group(scene: Scene) -> Seen:
    name = scene.fresh()
    return await enrols(scene, request_for(name), name, await token_for(scene, name), label="admins")


@case(
    "44-weak-key",
    "asks for certificates for RSA keys of 1024 bits, and with the exponent 3",
    "http 400 CSR_KEY",
)
async def _weak_key(scene: Scene) -> Seen:
    answers = []
    for exponent, bits in (65537, 1024), (3, 2048):  # Each profile has its own minimum of bits, and of nothing else.
        name, key = scene.fresh(), rsa.generate_private_key(exponent, bits)
        answers.append(await enrols(scene, request_for(name, key), name, await token_for(scene, name)))
    return next((answer for answer in answers if answer.got_in), answers[-1])


@case("44-weak-curve", "asks for a certificate for a key on the curve secp256k1", "http 400 CSR_KEY")
async def _weak_curve(scene: Scene) -> Seen:
    name = scene.fresh()
    key = ec.generate_private_key(ec.SECP256K1())
    return await enrols(scene, request_for(name, key), name, await token_for(scene, name))


@case("44-stolen-key", "asks for a certificate for another device's key", "http 400 KEY_REUSED")
async def _stolen_key(scene: Scene) -> Seen:
    victim, name = await scene.device(), scene.fresh()
    return await enrols(scene, request_for(name, victim.key), name, await token_for(scene, name))


@case("44-compromised-key", "enrols again with a key that was reported as compromised", "http 400 KEY_REUSED")
async def _compromised_key(scene: Scene) -> Seen:
    desk, paper = desk_of(scene), await scene.device()
    await desk.operator.revoke(device=paper.name, reason=RevocationReason.KEY_COMPROMISE)
    return await enrols(scene, request_for(paper.name, paper.key), paper.name, await token_for(scene, paper.name))


@case("44-no-possession", "asks for a certificate for a key that it does not have", "http 400 CSR_SIGNATURE")
async def _no_possession(scene: Scene) -> Seen:
    name = scene.fresh()
    request = bytearray(request_for(name).public_bytes(Encoding.DER))
    request[-1] ^= 1
    return await posts(scene, bytes(request), name, await token_for(scene, name))


@case("44-sha1-request", "signs its request over SHA-1", "http 400 CSR_SIGNATURE")
async def _sha1_request(scene: Scene) -> Seen:
    name = scene.fresh()
    key = generate_key()
    return await posts(scene, der.request_over_sha1(request_for(name, key), key), name, await token_for(scene, name))


@case("44-not-a-request", "sends random bytes as its request", "http 400 CSR_MALFORMED")
async def _not_a_request(scene: Scene) -> Seen:
    name = scene.fresh()
    return await posts(scene, bytes(range(200)), name, await token_for(scene, name))


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
