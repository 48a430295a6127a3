"""Case 32, continued: a handshake of somebody whom nobody knows costs the broker far more than he pays.

A server must read a ClientHello, and the certificates of its client, before it knows anything of whoever sends them.
OpenSSL looks for each key share among all groups that a hello lists, makes structures of the CAs that it names and
keeps them until the handshake is over, and takes very long for a key on some curves of the client's own making.

Rules
-----
1. What counts is what the broker uses, processor time and memory, and not how long anybody waits: that is the same on
   a busy machine.
2. It is compared with what as many ordinary handshakes cost. A refusal is as good as an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from device_sim.attack.case import Chapter, patience
from device_sim.attack.client_hello import AUTHORITIES, X25519, hello, numbers, sized
from device_sim.attack.handshake_cases import plain_socket
from device_sim.attack.load_cases import processor_time
from device_sim.attack.own_curve import on_own_curve
from device_sim.attack.scene import Scene
from device_sim.attack.target import BrokenPromise, Impossible
from device_sim.attack.tls13_client import CERTIFICATE, Flight, HandshakeBroken, Transcript, exchange, message
from device_sim.attack.verdict import ClosedBy, Layer, Seen

_STRANGERS = 20
_GROUPS, _SHARES, _NAMES = 16_300, 6_400, 16_000
_CERTIFICATES = 8
_MOST_SECONDS = 0.3
_MOST_BYTES = 1 << 19
"""Of memory, for each of them."""
_ODD = 0xFEFE
"""A group that nobody has."""
_READ = 4096

chapter = Chapter()
case = chapter.case


@case("32-long-hello", "lists 16,300 groups in its hello, and 6,400 shares: 20 such cost the broker little time",
      "tcp cheap", limit=patience)  # fmt: skip
async def _long_hello(scene: Scene) -> Seen:
    process = _process(scene)
    long = hello(groups=[X25519, *[0x9000] * (_GROUPS - 2), _ODD], shares=[(_ODD, b"x")] * _SHARES)
    spent: list[float] = []
    for said in (hello(), long):
        before = processor_time(process)
        for _ in range(_STRANGERS):
            (await _answered(scene, said)).close()
        spent.append(processor_time(process) - before)
    return _told(spent[1] - spent[0], f"{_STRANGERS} hellos")


@case("32-names-of-cas", "names 16,000 CAs in its hello, and waits: 20 such cost the broker little memory",
      "tcp cheap", limit=patience)  # fmt: skip
async def _names(scene: Scene) -> Seen:
    process = _process(scene)
    said = hello(numbers(AUTHORITIES) + sized(sized(sized(b"\x30\0") * _NAMES)))
    (await _answered(scene, said)).close()  # What the first one needs stays for the others.
    before = _memory(process)
    with contextlib.ExitStack() as waiting:
        for _ in range(_STRANGERS):
            waiting.enter_context(await _answered(scene, said))
        each = max(_memory(process) - before, 0) / _STRANGERS
    if each > _MOST_BYTES:
        raise BrokenPromise(f"each of {_STRANGERS} hellos costs the broker {each / 1024:.0f} KB while its client waits")
    return Seen(Layer.TCP, "cheap", "", ClosedBy.NOBODY, figures=f"{each / 1024:.0f} KB each")


@case("32-own-curve", "presents 8 certificates on a curve of its own: they cost the broker little time",
      "tcp cheap", limit=patience)  # fmt: skip
async def _own_curve(scene: Scene) -> Seen:
    process = _process(scene)
    unknown = _self_signed()
    spent: list[float] = []
    for sent in (unknown.public_bytes(Encoding.DER), on_own_curve(unknown)):
        before = processor_time(process)
        try:
            await exchange(scene.target.endpoint, _presenting(sent), b"", scene.patience)
        except HandshakeBroken as error:
            raise Impossible(f"our own TLS cannot follow the server: {error}") from error
        spent.append(processor_time(process) - before)
    return _told(spent[1] - spent[0], f"{_CERTIFICATES} certificates")


def _process(scene: Scene) -> int:
    if scene.target.broker_pid is None:
        raise Impossible("the broker is not a process of this tester's: what it uses is not known")
    return scene.target.broker_pid


def _told(seconds: float, what: str) -> Seen:
    """Return what is seen of a broker that has used *seconds* more for *what*; raise `BrokenPromise` if too many."""
    if seconds > _MOST_SECONDS:
        raise BrokenPromise(f"{what} of a stranger cost the broker {seconds:.1f} s of processor time")
    return Seen(Layer.TCP, "cheap", "", ClosedBy.NOBODY, figures=f"{max(seconds, 0.0) * 1000:.0f} ms")


async def _answered(scene: Scene, said: bytes) -> socket.socket:
    """Connect and send *said*; return the socket when the broker has answered, or closed."""
    plain, loop = await plain_socket(scene), asyncio.get_running_loop()
    try:
        async with asyncio.timeout(scene.patience):
            with contextlib.suppress(OSError):  # Refused before it was whole.
                await loop.sock_sendall(plain, said)
            with contextlib.suppress(OSError):
                await loop.sock_recv(plain, _READ)
    except TimeoutError:
        plain.close()
        raise Impossible("the broker does not answer a hello: what that costs is not known") from None
    except BaseException:
        plain.close()
        raise
    return plain


def _memory(process: int) -> int:
    """Return how many bytes of memory *process* holds; raise `Impossible` if it is gone."""
    try:
        told = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError as error:
        raise Impossible("the broker's process is gone") from error
    return int(told.partition("VmRSS:")[2].split()[0]) * 1024


def _presenting(certificate: bytes) -> Flight:
    entries = (len(certificate).to_bytes(3) + certificate + b"\0\0") * _CERTIFICATES

    def sent(context: bytes, _transcript: Transcript) -> Iterator[bytes]:
        yield message(CERTIFICATE, bytes((len(context),)) + context + len(entries).to_bytes(3) + entries)

    return sent


def _self_signed() -> x509.Certificate:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "stranger")])
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(hours=1))
    return made.sign(key, SHA256())
