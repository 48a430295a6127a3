"""Cases 25 to 32: the way it connects is wrong, or it stops in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from device_sim.attack.capabilities import Feature, TimeLimits
from device_sim.attack.case import IN, Chapter, patience
from device_sim.attack.issuer import Paper
from device_sim.attack.raw_client import reset
from device_sim.attack.scene import Scene
from device_sim.attack.target import Impossible, Starved
from device_sim.attack.tls13_client import SUITE, HandshakeBroken, offer
from device_sim.attack.verdict import CLOSED, OPEN, UNANSWERED, ClosedBy, Layer, Seen, is_answer, seen_in
from device_sim.link.closure import from_error
from device_sim.link.lost_reset import ask_again
from device_sim.link.tls_dial import NotAdmitted

_FLOOD = 300
_STORM = 100
_READ = 4096
_INTEGRITY_ONLY = bytes.fromhex("c0b4 c0b5")
"""TLS_SHA256_SHA256 and TLS_SHA384_SHA384 (RFC 9150)."""
_QUICK = 10.0
_PATIENT = 2
"""How many times as long as the broker may wait it takes to send slowly."""
_AT_ONCE_FROM_AFAR = 20
_GOOD = 10
_FEW = 3
_AGAIN = 0.05

chapter = Chapter()
case = chapter.case


def _handshake(limits: TimeLimits) -> float:
    return limits.handshake


def _connect(limits: TimeLimits) -> float:
    return limits.connect


def _older(name: str, description: str, version: ssl.TLSVersion) -> None:
    async def attempt(scene: Scene) -> Seen:
        if version is ssl.TLSVersion.TLSv1_2 and Feature.TLS12 in scene.target.capabilities.supports:
            raise Impossible("the broker claims TLS 1.2")
        paper = await scene.device()
        context = scene.context(paper.pem, allow_tls12=True)
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version
        return await scene.present(context, paper.name)

    chapter.add(name, description, ("tls protocol_version",), attempt)


_older("25-tls10", "offers TLS 1.0 at most", ssl.TLSVersion.TLSv1)
_older("25-tls11", "offers TLS 1.1 at most", ssl.TLSVersion.TLSv1_1)
_older("25-tls12", "offers TLS 1.2 at most, which the broker does not", ssl.TLSVersion.TLSv1_2)


@case(
    "26-null-cipher", "offers only cipher suites without encryption",
    "tls handshake_failure", "tls insufficient_security",
)  # fmt: skip
async def _null_cipher(scene: Scene) -> Seen:
    if Feature.TLS12 not in scene.target.capabilities.supports:
        # Those of TLS 1.2 would be refused for the version. TLS 1.3 has its own; OpenSSL never offers them.
        try:
            control = await offer(scene.target.endpoint, SUITE, scene.at_most(_QUICK))
            if not control.got_in or control.code == OPEN:
                raise Impossible(f"a good suite is refused as well: {control.text} {control.reason}".rstrip())
            started = time.monotonic()
            return (await offer(scene.target.endpoint, _INTEGRITY_ONLY, scene.at_most(_QUICK))).since(started)
        except HandshakeBroken as error:
            raise Impossible(f"our own TLS cannot follow the server: {error}") from error
    paper = await scene.device()
    context = scene.context(paper.pem, allow_tls12=True)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("eNULL:@SECLEVEL=0")
    return await scene.present(context, paper.name)


@case("27-plain-mqtt", "speaks MQTT without TLS", CLOSED)
async def _plain_mqtt(scene: Scene) -> Seen:
    return await _says(scene, scene.connect("plain", keep_alive=60).encode())


@case("27-http", "speaks HTTP without TLS", CLOSED)
async def _http(scene: Scene) -> Seen:
    return await _says(scene, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")


async def _says(scene: Scene, data: bytes) -> Seen:
    plain = await plain_socket(scene)
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_sendall(plain, data)
        return await _end_of(plain, scene.at_most(_QUICK))
    finally:
        plain.close()


# RFC 7301 §3.2: a server without ALPN ignores it. A wrong protocol gains nothing.
@case("27-wrong-alpn", "asks for HTTP by ALPN, then speaks MQTT", "tls no_application_protocol", IN)
async def _wrong_alpn(scene: Scene) -> Seen:
    paper = await scene.device()
    context = scene.context(paper.pem)
    context.set_alpn_protocols(["http/1.1"])
    return await scene.present(context, paper.name)


def _asks_for(
    name: str, description: str, expected: tuple[str, ...], asked: Callable[[Scene, str], str], *,
    needs: tuple[Feature, ...] = (), as_another: bool = False,
) -> None:  # fmt: skip
    """Add a case of a good device that asks for the server *asked*, given a victim's name (RFC 6066 §3)."""

    async def attempt(scene: Scene) -> Seen:
        paper, victim = await scene.device(), scene.fresh("victim")
        context = scene.context(paper.pem)
        context.check_hostname = False  # The broker's certificate is for the name that is not asked for.
        client_id = victim if as_another else paper.name
        return await scene.present(context, client_id, server_name=asked(scene, victim))

    chapter.add(name, description, expected, attempt, needs=needs)


# A server may require the extension (RFC 8446 §9.2), and refuse a name that it does not know, or go on (RFC 6066 §3).
_asks_for("27-no-sni", "is good, and names no server (SNI)", (IN, "tls missing_extension", "tls unrecognized_name"),
          lambda scene, _: scene.target.endpoint.host)  # fmt: skip
_asks_for("27-wrong-sni", "is good, and names another server (SNI)", (IN, "tls unrecognized_name"),
          lambda *_: "elsewhere.invalid")  # fmt: skip
_asks_for(
    "27-sni-of-another", "names another device as the server (SNI), and uses its client identifier",
    ("mqtt CONNACK 0x85", "mqtt CONNACK 0x87", "tls unrecognized_name"), lambda _, victim: f"{victim}.invalid",
    needs=(Feature.CLIENT_ID_BINDING,), as_another=True,
)  # fmt: skip


@case("28-silence", "connects and sends nothing", CLOSED, limit=_handshake, idle=True)
async def _silence(scene: Scene) -> Seen:
    plain = await plain_socket(scene)
    started = time.monotonic()
    try:
        seen = await scene.with_grace(lambda within: _end_of(plain, within), scene.target.capabilities.limits.handshake)
        return seen.since(started)
    finally:
        plain.close()


@case("29-slow-handshake", "sends its ClientHello one byte at a time", CLOSED, limit=_handshake, idle=True)
async def _slow_handshake(scene: Scene) -> Seen:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    paper = await scene.device()
    tls = scene.context(paper.pem).wrap_bio(incoming, outgoing, server_hostname=scene.target.endpoint.server_name)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    plain = await plain_socket(scene)
    started = time.monotonic()
    try:
        return (await _dripped(scene, outgoing.read(), plain)).since(started)
    finally:
        plain.close()


async def _dripped(scene: Scene, data: bytes, plain: socket.socket) -> Seen:
    """Send *data* so slowly that it takes longer than the peer may wait; return how that ends the connection."""
    loop, limit = asyncio.get_running_loop(), scene.target.capabilities.limits.handshake
    drip = asyncio.create_task(_drip(loop, plain, data, _PATIENT * scene.at_most(limit) / len(data)))
    try:
        return await scene.with_grace(lambda within: _end_of(plain, within), limit)
    finally:
        drip.cancel()
        await asyncio.wait([drip])


async def _drip(loop: asyncio.AbstractEventLoop, plain: socket.socket, data: bytes, pause: float) -> None:
    for byte in data:
        try:
            await loop.sock_sendall(plain, bytes((byte,)))
        except OSError:
            return  # Closed by the peer; the reader reports that.
        await asyncio.sleep(pause)


@case("30-no-connect", "completes TLS and sends no CONNECT", CLOSED, limit=_connect, idle=True)
async def _no_connect(scene: Scene) -> Seen:
    client = await scene.dialled(await scene.device())
    started = time.monotonic()
    try:
        return (await scene.with_grace(client.end, scene.target.capabilities.limits.connect)).since(started)
    finally:
        client.close()


@case("31-slow-connect", "sends its CONNECT one byte at a time", CLOSED, limit=_connect, idle=True)
async def _slow_connect(scene: Scene) -> Seen:
    client = await scene.dialled(await scene.device())
    limit = scene.target.capabilities.limits.connect
    data = scene.connect("x" * 50, keep_alive=60).encode()

    async def drip() -> None:
        for byte in data:
            if not await client.send(bytes((byte,))):
                return
            await asyncio.sleep(_PATIENT * scene.at_most(limit) / len(data))

    started = time.monotonic()
    task = asyncio.create_task(drip())
    try:
        return (await scene.with_grace(client.end, limit)).since(started)
    finally:
        task.cancel()
        await asyncio.wait([task])
        client.close()


@case(
    "32-handshake-flood",
    "sends ClientHellos and resets without end: a good device can still connect",
    "mqtt served",
    limit=patience,
)
async def _handshake_flood(scene: Scene) -> Seen:
    paper = await scene.device()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = scene.context(None).wrap_bio(incoming, outgoing, server_hostname=scene.target.endpoint.server_name)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = outgoing.read()

    trouble = _Trouble(_FLOOD)

    async def flood() -> None:
        loop = asyncio.get_running_loop()
        while trouble.goes_on:
            try:
                plain = await plain_socket(scene, _elsewhere(scene))
            except NotAdmitted as error:
                await trouble.turned_away(error)
                continue
            try:
                with contextlib.suppress(OSError):  # Rejected under load.
                    await loop.sock_sendall(plain, hello)
            finally:
                reset(plain)
            trouble.came_through()

    return await _meanwhile(scene, paper, trouble, flood)


@dataclass(slots=True)
class _Trouble:
    """The number of hostile attempts: at least *least*, and until the good device has been served *enough* times."""

    least: int
    made: int = 0
    came: int = 0
    enough: bool = False
    told: str = ""
    """How the last of those was turned away that did not come through."""

    @property
    def goes_on(self) -> bool:
        return self.made < self.least or not self.enough

    def came_through(self) -> None:
        """Count an attempt that the broker has taken."""
        self.made += 1
        self.came += 1

    async def turned_away(self, why: NotAdmitted) -> None:
        """Count one that it has not, as it should under load; where nobody listens nothing else would get a turn."""
        self.made += 1
        self.told = str(why)
        await asyncio.sleep(_AGAIN)


async def _meanwhile(
    scene: Scene, paper: Paper, trouble: _Trouble, makes: Callable[[], Coroutine[None, None, None]]
) -> Seen:
    """Let the good *paper* connect while *makes* causes trouble, and return how it was served.

    The trouble ends when the good one has been served, not before: so a broker that serves nobody meanwhile is detected
    at any machine speed, and one with little of the machine is merely slow. The good one connects ten times, or as
    often as it can until there was enough trouble, and at least three times: a slow machine does not take minutes.
    """
    # Across a long link one attempt takes seconds: one after the other they would be no flood, and take minutes.
    at_once = _AT_ONCE_FROM_AFAR if scene.bystander.distance.is_far else 1
    making = [asyncio.create_task(makes(), name="trouble") for _ in range(at_once)]
    worst = 0.0
    try:
        for number in range(1, _GOOD + 1):
            seen, seconds = await _let_in(scene, paper)
            worst = max(worst, seconds)
            if not seen.got_in:
                return seen
            if number >= _FEW and trouble.made >= trouble.least:
                break
        trouble.enough = True
        await asyncio.gather(*making)
    finally:
        for task in making:
            task.cancel()
        await asyncio.gather(*making, return_exceptions=True)
    if not trouble.came:
        raise Impossible(f"not one hostile connection came through, so there was no trouble: {trouble.told}")
    figures = f"{trouble.made} of the others; the slowest good connection took {worst * 1000:.0f} ms"
    return Seen(Layer.MQTT, "served", figures, ClosedBy.NOBODY, seconds=worst)


async def _let_in(scene: Scene, paper: Paper) -> tuple[Seen, float]:
    """Connect the good *paper* until it is admitted, or refused with a reason; return that, and how long it took.

    Raises `Starved`. A device that is disconnected without a reason tries again: on a slow machine the broker's own
    deadlines expire.
    """
    started = time.monotonic()
    try:
        async with asyncio.timeout(scene.patience):
            while not is_answer(seen := await scene.show(paper)):  # noqa: ASYNC110 - who was shed comes again later
                await asyncio.sleep(_AGAIN)
    except TimeoutError:
        raise Starved(f"a good device was not let in within {scene.patience:g} s, while the others went on") from None
    return seen, time.monotonic() - started


@case("32-reconnect-storm", "connects again and again: a good device can still connect", "mqtt served", limit=patience)
async def _reconnect_storm(scene: Scene) -> Seen:
    storming, paper = await scene.device(), await scene.device()

    trouble = _Trouble(_STORM)

    async def storm() -> None:
        while trouble.goes_on:
            try:
                client = await scene.dial(scene.context(storming.pem), source=_elsewhere(scene))
            except NotAdmitted as error:
                await trouble.turned_away(error)
                continue
            try:
                await client.send(scene.connect(storming.name, keep_alive=60).encode())
            finally:
                client.abort()
            trouble.came_through()

    return await _meanwhile(scene, paper, trouble, storm)


def _elsewhere(scene: Scene) -> str | None:
    """Return another source address, if available: a per-address limit must not affect the good one."""
    return "127.0.0.2" if scene.target.endpoint.host == "127.0.0.1" else None


async def plain_socket(scene: Scene, source: str | None = None) -> socket.socket:
    """Return a connected, non-blocking TCP socket, from the address *source* if given."""
    endpoint = scene.target.endpoint
    plain = socket.socket(socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET)
    plain.setblocking(False)
    try:
        if source is not None:
            plain.bind((source, 0))
        ask_again(plain)
        await asyncio.get_running_loop().sock_connect(plain, (endpoint.host, endpoint.port))
    except OSError as error:
        plain.close()
        raise NotAdmitted(from_error(error, time.monotonic())) from error
    except BaseException:
        plain.close()
        raise
    return plain


async def _end_of(plain: socket.socket, limit: float) -> Seen:
    """Read until the peer closes; a plaintext alert counts as a close."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(limit + 1):
            while await loop.sock_recv(plain, _READ):
                pass
    except TimeoutError:
        return Seen(Layer.TCP, OPEN, f"not closed within {limit + 1:g} s", ClosedBy.NOBODY, got_in=True)
    except OSError as error:
        seen = seen_in(from_error(error, time.monotonic()))
        return Seen(Layer.TCP, UNANSWERED, seen.reason) if seen.code == "error" else seen
    return Seen(Layer.TCP, "closed", "the peer closed the connection")
