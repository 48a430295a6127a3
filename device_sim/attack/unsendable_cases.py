"""Cases of numbers 2 to 23 that OpenSSL will not send: the message that carries the certificate is wrong.

Each is a flight of `device_sim.attack.tls13_client`: Certificate and CertificateVerify (RFC 8446 §4.4.2, §4.4.3) made
by hand. The device is a good one with its own key, unless the case says otherwise.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric import ec, ed448
from cryptography.hazmat.primitives.hashes import SHA1, SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from broker.mqtt.errors import PacketError
from broker.mqtt.framing import split_frames
from broker.mqtt.packets import decode_packet
from device_sim.attack import der
from device_sim.attack.case import BAD, IN, Chapter
from device_sim.attack.issuer import Paper
from device_sim.attack.raw_client import told_by
from device_sim.attack.scene import Scene
from device_sim.attack.target import Impossible
from device_sim.attack.tls13_client import (
    CERTIFICATE,
    CERTIFICATE_VERIFY,
    Flight,
    HandshakeBroken,
    Transcript,
    exchange,
    message,
)
from device_sim.attack.verdict import CLOSED, MALFORMED, OPEN, ClosedBy, Layer, Seen
from device_sim.how_often import each_time

UNREADABLE = ("tls decode_error", "tls bad_certificate")
_ANSWER = 5.0
_PACKET = 1 << 20
_ECDSA_P256_SHA256, _ECDSA_SHA1, _ED448 = b"\x04\x03", b"\x02\x03", b"\x08\x08"
_SIGNED = b" " * 64 + b"TLS 1.3, client CertificateVerify\0"
_MOST = 0xFFFFFF
_GARBAGE = b"behind the certificate"
_EVERY = 13

chapter = Chapter()
case = chapter.case


# What is sent


def _entry(certificate: bytes, size: int | None = None) -> bytes:
    """Return a CertificateEntry without extensions; *size* is a false length to claim."""
    return (len(certificate) if size is None else size).to_bytes(3) + certificate + b"\0\0"


def _certificates(context: bytes, entries: bytes) -> bytes:
    return message(CERTIFICATE, bytes((len(context),)) + context + len(entries).to_bytes(3) + entries)


def _proof(paper: Paper, transcript_hash: bytes, scheme: bytes = _ECDSA_P256_SHA256) -> bytes:
    """Return a CertificateVerify made with *paper*'s key, whatever its curve, that claims to use *scheme*."""
    if not isinstance(paper.key, ec.EllipticCurvePrivateKey):
        raise TypeError("these devices have elliptic-curve keys")
    digest = SHA1() if scheme == _ECDSA_SHA1 else SHA256()  # noqa: S303 - the attack
    signature = paper.key.sign(_SIGNED + transcript_hash, ec.ECDSA(digest))
    return message(CERTIFICATE_VERIFY, scheme + len(signature).to_bytes(2) + signature)


def _flight(paper: Paper, entries: bytes) -> Flight:
    def sent(context: bytes, transcript: Transcript) -> Iterator[bytes]:
        yield _certificates(context, entries)
        yield _proof(paper, transcript.digest())

    return sent


def _der(paper: Paper) -> bytes:
    return paper.certificate.public_bytes(Encoding.DER)


async def _sent(scene: Scene, paper: Paper, flight: Flight) -> Seen:
    """Send *flight*, then a CONNECT under the name of *paper*, and return the answer.

    Raises `Impossible` where a good device with our own TLS is refused too: then no refusal would mean anything.
    """
    if not scene.knows_own_tls:
        good = await scene.device()
        seen = await _answer(scene, good, _flight(good, _entry(_der(good))))
        if not seen.got_in or seen.code == OPEN:
            told = f"{seen.text} {seen.reason}".rstrip()
            raise Impossible(f"a good device that connects with our own TLS is not let in either: {told}")
        scene.knows_own_tls = True
    return await _answer(scene, paper, flight)


async def _answer(scene: Scene, paper: Paper, flight: Flight) -> Seen:
    request = scene.connect(paper.name, keep_alive=60).encode()
    started = time.monotonic()
    try:
        answer = await exchange(scene.target.endpoint, flight, request, scene.at_most(_ANSWER))
    except HandshakeBroken as error:
        raise Impossible(f"our own TLS cannot follow the server: {error}") from error
    if isinstance(answer, Seen):
        return answer.since(started)
    try:
        frames, _ = split_frames(answer, _PACKET)
        first, start, end = frames[0]
        return told_by(decode_packet(first, answer[start:end], scene.version), scene.version).since(started)
    except (PacketError, IndexError) as error:
        return Seen(Layer.MQTT, MALFORMED, f"the peer sent a bad packet: {error}", ClosedBy.NOBODY)


# The control, which the others try by themselves too (`_sent`)


@case("1-own-tls", "connects with a good certificate and a TLS stack of its own (control)", IN)
async def _own_tls(scene: Scene) -> Seen:
    paper = await scene.device()
    return await _answer(scene, paper, _flight(paper, _entry(_der(paper))))


# The order of the handshake


@case("2-skips-certificate", "sends Finished instead of its certificate", "tls unexpected_message")
async def _skips_certificate(scene: Scene) -> Seen:
    return await _sent(scene, await scene.device(), lambda _context, _transcript: iter(()))


@case("2-empty-list", "sends an empty certificate list, and a CertificateVerify",
      "tls certificate_required", "tls unexpected_message")  # fmt: skip
async def _empty_list(scene: Scene) -> Seen:
    paper = await scene.device()
    return await _sent(scene, paper, _flight(paper, b""))


# The first certificate is judged as the client's own: a CA's has no client purpose, and the proof's key differs.
@case("15-reversed-chain", "sends its chain in reverse order", *BAD, "tls decrypt_error")
async def _reversed_chain(scene: Scene) -> Seen:
    paper = await scene.device()
    above = _entry(scene.target.ca_certificate.public_bytes(Encoding.DER))
    return await _sent(scene, paper, _flight(paper, above + _entry(_der(paper))))


# Invalid certificates: X.690 requires DER, definite lengths and no trailing bytes


def _malformed(name: str, description: str, *expected: str, made: Callable[[bytes], bytes]) -> None:
    """Add a case whose certificate list is *made* from the DER of a good device."""

    async def attempt(scene: Scene) -> Seen:
        paper = await scene.device()
        return await _sent(scene, paper, _flight(paper, made(_der(paper))))

    chapter.add(name, description, expected or UNREADABLE, attempt)


_malformed("16-malformed-der", "sends random bytes as its certificate", made=lambda _: _entry(bytes(range(256)) * 2))
_malformed("16-truncated-der", "sends a truncated certificate", made=lambda good: _entry(good[:-20]))
_malformed("16-trailing-garbage", "sends garbage after its certificate", made=lambda good: _entry(good + _GARBAGE))
_malformed(
    "16-wrong-length", "sends a certificate whose length field is one byte too long",
    made=lambda good: _entry(good[:2] + (int.from_bytes(good[2:4]) + 1).to_bytes(2) + good[4:]),
)  # fmt: skip
_malformed(
    "16-giant-length", "sends a certificate whose length field says 2 GB",
    made=lambda good: _entry(bytes.fromhex("30847fffffff") + der.content(good)),
)  # fmt: skip
# BER: the same certificate, and what the CA signed is unchanged. A lenient server admits a device it should admit.
_malformed(
    "16-indefinite-length", "sends its certificate in BER (may be accepted)", IN, *UNREADABLE,
    made=lambda good: _entry(b"\x30\x80" + der.content(good) + b"\0\0"),
)  # fmt: skip
_malformed("16-empty-entry", "sends an empty certificate entry", made=lambda _: _entry(b""))
_malformed(
    "16-entry-too-long", "sends a certificate entry that is longer than the list", made=lambda good: _entry(good, _MOST)
)
_malformed("16-half-an-entry", "sends half an entry after its certificate", made=lambda good: _entry(good) + b"\0\0")


@case("16-list-too-long", "sends a certificate list that is longer than the message", *UNREADABLE)
async def _list_too_long(scene: Scene) -> Seen:
    paper = await scene.device()
    entry = _entry(_der(paper))

    def sent(context: bytes, transcript: Transcript) -> Iterator[bytes]:
        yield message(CERTIFICATE, bytes((len(context),)) + context + _MOST.to_bytes(3) + entry)
        yield _proof(paper, transcript.digest())

    return await _sent(scene, paper, sent)


@case("16-message-too-long", "announces 16 MB of certificates, and sends nothing more",
      "tls illegal_parameter", "tls internal_error", "tls decode_error", CLOSED)  # fmt: skip
async def _message_too_long(scene: Scene) -> Seen:
    paper = await scene.device()
    whole = _certificates(b"", _entry(_der(paper)))
    return await _sent(scene, paper, lambda _context, _transcript: iter((whole[:1] + _MOST.to_bytes(3) + whole[4:],)))


_SPOILT = (
    "tls decrypt_error", *UNREADABLE, "tls unknown_ca", "tls certificate_expired", "tls unsupported_certificate",
    "tls certificate_unknown", "tls illegal_parameter", "tls internal_error",
)  # fmt: skip


@case("16-any-byte", "presents its certificate with one signed byte changed, at several places", *_SPOILT)
async def _any_byte(scene: Scene) -> Seen:
    paper = await scene.device()
    good = _der(paper)
    # From the TBSCertificate's first byte to its last: elsewhere a changed byte may have no effect.
    begin = len(good) - len(der.content(good))
    end = begin + len(der.elements(der.content(good))[0])
    answers: Counter[str] = Counter()
    for position in range(begin, end, _EVERY):
        spoilt = good[:position] + bytes((good[position] ^ 0xFF,)) + good[position + 1 :]
        seen = await _sent(scene, paper, _flight(paper, _entry(spoilt)))
        answers[seen.text] += 1
        if not any(map(seen.matches, _SPOILT)):
            return replace(seen, reason=f"byte {position}: {seen.reason}")
    return replace(seen, reason=each_time(answers.most_common()))


# Certificates without their key


@case("17-no-proof", "presents a genuine certificate and omits CertificateVerify", "tls unexpected_message")
async def _no_proof(scene: Scene) -> Seen:
    paper = await scene.device()
    return await _sent(scene, paper, lambda context, _: iter((_certificates(context, _entry(_der(paper))),)))


@case("17-replayed-proof", "sends the CertificateVerify of another handshake", "tls decrypt_error")
async def _replayed_proof(scene: Scene) -> Seen:
    paper = await scene.device()
    proofs: list[bytes] = []

    def sent(context: bytes, transcript: Transcript) -> Iterator[bytes]:
        yield _certificates(context, _entry(_der(paper)))
        proofs.append(_proof(paper, transcript.digest()))
        yield proofs[0]

    control = await _sent(scene, paper, sent)
    return await _sent(scene, paper, sent) if control.got_in else control


@case("17-empty-proof", "sends a CertificateVerify with an empty signature", "tls decrypt_error", "tls decode_error")
async def _empty_proof(scene: Scene) -> Seen:
    paper = await scene.device()

    def sent(context: bytes, _transcript: Transcript) -> Iterator[bytes]:
        yield _certificates(context, _entry(_der(paper)))
        yield message(CERTIFICATE_VERIFY, _ECDSA_P256_SHA256 + b"\0\0")

    return await _sent(scene, paper, sent)


@case("17-weak-proof", "signs its CertificateVerify over SHA-1, which TLS 1.3 forbids",
      "tls illegal_parameter", "tls decrypt_error", "tls handshake_failure")  # fmt: skip
async def _weak_proof(scene: Scene) -> Seen:
    paper = await scene.device()

    def sent(context: bytes, transcript: Transcript) -> Iterator[bytes]:
        yield _certificates(context, _entry(_der(paper)))
        yield _proof(paper, transcript.digest(), _ECDSA_SHA1)

    return await _sent(scene, paper, sent)


# TLS 1.3 has no signature scheme for these curves (RFC 8446 §4.2.3): the proof claims to be over P-256.
def _short_curve(name: str, description: str, curve: ec.EllipticCurve) -> None:
    async def attempt(scene: Scene) -> Seen:
        key = ec.generate_private_key(curve)
        paper = scene.target.issuer.issue(scene.target.device(scene.fresh()), key=key)
        return await _sent(scene, paper, _flight(paper, _entry(_der(paper))))

    chapter.add(name, description, (*BAD, "tls insufficient_security", "tls illegal_parameter"), attempt)


_short_curve("23-p192", "presents a certificate for a key on the curve P-192", ec.SECP192R1())
_short_curve("23-p224", "presents a certificate for a key on the curve P-224", ec.SECP224R1())


@case("23-ed448", "presents a certificate for an Ed448 key, and signs with another (with its own it may be admitted)",
      "tls decrypt_error", *BAD, "tls illegal_parameter", "tls handshake_failure")  # fmt: skip
async def _ed448_key(scene: Scene) -> Seen:
    """Show a kind of key that many programs do not know: who cannot check its proof must not leave that out."""
    key, thief = (ed448.Ed448PrivateKey.generate() for _ in range(2))
    paper = scene.target.issuer.issue(scene.target.device(scene.fresh()), public_key=key.public_key())

    def signed_by(signer: ed448.Ed448PrivateKey) -> Flight:
        def sent(context: bytes, transcript: Transcript) -> Iterator[bytes]:
            yield _certificates(context, _entry(_der(paper)))
            signature = signer.sign(_SIGNED + transcript.digest())
            yield message(CERTIFICATE_VERIFY, _ED448 + len(signature).to_bytes(2) + signature)

        return sent

    own = await _sent(scene, paper, signed_by(key))
    seen = await _sent(scene, paper, signed_by(thief))
    return replace(seen, figures=f"with its own key: {own.text}")
