"""The devices and backends of a soak, each of which knows what is its right, and notes where it did not get it.

Theory
------
A `Member` enrols, connects, publishes at QoS 1 and 2, renews at two thirds of its certificate's life, comes again with
the new one, and does so until it is told to leave. A `Backend` has a session that is kept, and counts what arrives.
What a member publishes and the broker acknowledges must come to each backend: `Ledger`.

`Weather` knows when something was done to the stand, and until when its consequences may last. Who is refused in good
weather, and has a valid certificate, was refused wrongly.

Rules
-----
1. Certificates are judged by the true clock, with a margin: what is about to end proves nothing.
2. An acknowledged message counts, whatever the weather: that is what acknowledging means. One that nobody subscribed to
   (0x10) was lost too, because the backends' sessions are kept.
3. Whoever was revoked is tried until its certificate ends, and never gets in, whatever the weather, once the broker has
   closed its connection or refused it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from soak_stand import Stand

from broker.mqtt.connect import Will
from broker.mqtt.properties import Properties
from device_sim.link.closure import Closure
from device_sim.link.keep_alive import KeepAlive
from device_sim.link.light_client import LightConnection
from device_sim.link.link import NotConnected, SubscriptionRefused, Terms
from device_sim.link.shared_context import SharedContext
from device_sim.link.tls_dial import Endpoint, NotAdmitted
from provisioning.client.csr import build_csr
from provisioning.client.est import EnrolmentRefused, EnrolmentUnavailable, EstClient
from provisioning.client.operator import RequestRefused, ServiceUnavailable
from provisioning.pki.keys import generate_key, key_to_pem
from provisioning.pki.role import Role
from provisioning.pki.tls import CredentialPem, client_context

GROUP = "meters"
_MARGIN = 10.0
_PAUSE = 0.5
_KEPT_FOR_EVER = 86_400
_WILL_SECONDS = 30
_FAILURE = 0x80
_CONNECT_AGAIN = "TRUST_CHANGED"
"""The answer to who began its handshake before a change of trust: connect again, with the new one."""
_NOT_NOW = (
    *(EnrolmentRefused, EnrolmentUnavailable, RequestRefused, ServiceUnavailable),
    *(NotAdmitted, NotConnected, SubscriptionRefused),
)
_NOBODY = 0x10


class Weather:
    """When something was done to the stand."""

    def __init__(self) -> None:
        self._bad = 0
        self._calm = asyncio.Event()
        self._calm.set()
        self._until = 0.0
        self.last = "nothing"

    @contextlib.contextmanager
    def bad(self, why: str, lasting: float) -> Iterator[None]:
        """Do something to the stand in the block; its consequences may be seen for *lasting* seconds longer."""
        self._bad += 1
        self._calm.clear()
        self.last = why
        try:
            yield
        finally:
            self._bad -= 1
            if not self._bad:
                self._calm.set()
            self._until = time.monotonic() + lasting

    @property
    def is_good(self) -> bool:
        """Whether everybody gets his right."""
        return not self._bad and time.monotonic() > self._until

    async def clears_up(self) -> None:
        """Wait until it is good."""
        await self._calm.wait()
        await asyncio.sleep(max(0.0, self._until - time.monotonic()))


@dataclass
class Ledger:
    """What was acknowledged, what has arrived, and everything that went wrong, by kind."""

    acknowledged: set[bytes] = field(default_factory=set)
    arrived: dict[str, set[bytes]] = field(default_factory=dict)
    operations: Counter[str] = field(default_factory=Counter)
    refused_wrongly: list[str] = field(default_factory=list)
    admitted_wrongly: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    excused: Counter[str] = field(default_factory=Counter)

    def missing(self) -> dict[str, set[bytes]]:
        """Return what each backend has not got, although it was acknowledged."""
        return {name: gone for name, got in self.arrived.items() if (gone := self.acknowledged - got)}

    def settle(self) -> None:
        """Forget what was acknowledged and has arrived everywhere, and what is reported as lost."""
        over = self.acknowledged.copy()
        self.acknowledged.clear()
        for got in self.arrived.values():
            got.difference_update(over)  # What has arrived before its acknowledgement stays.


@dataclass
class Surroundings:
    """What all have in common."""

    stand: Stand
    weather: Weather
    ledger: Ledger
    keep_alive: KeepAlive
    endpoint: Endpoint
    context: SharedContext

    @classmethod
    def of(cls, stand: Stand, weather: Weather, keep_alive: KeepAlive) -> Surroundings:
        """Return those of *stand*."""
        root = stand.anchors.with_name("root-ca.crt")
        return cls(
            stand, weather, Ledger(), keep_alive, Endpoint("127.0.0.1", stand.broker_port, "localhost"),
            SharedContext(lambda: client_context(root)),
        )  # fmt: skip

    def note(self, who: str, what: str, since_good: bool) -> None:
        """Note that *who* did not get its right; *since_good*: the weather was good when it was asked for."""
        if _CONNECT_AGAIN in what:
            self.ledger.excused[_CONNECT_AGAIN] += 1
        elif since_good and self.weather.is_good:
            self.ledger.refused_wrongly.append(f"{datetime.now(UTC):%H:%M:%S} {who}: {what}")
        else:
            self.ledger.excused[f"{self.weather.last}: {what.split(':', maxsplit=1)[0][:40]}"] += 1


@dataclass
class Held:
    """A certificate and its key."""

    certificate: x509.Certificate
    key_pem: bytes

    @property
    def pem(self) -> CredentialPem:
        """As TLS clients want it."""
        return CredentialPem(self.certificate.public_bytes(Encoding.PEM), self.key_pem)

    @property
    def left(self) -> float:
        """For how many seconds it is valid still, by the true clock."""
        return (self.certificate.not_valid_after_utc - datetime.now(UTC)).total_seconds()

    @property
    def is_valid(self) -> bool:
        """Whether it is, by the true clock, and for a while (rule 1)."""
        return self.certificate.not_valid_before_utc <= datetime.now(UTC) and self.left > _MARGIN

    @property
    def renewal_due(self) -> bool:
        """Whether two thirds of its life are over."""
        life = self.certificate.not_valid_after_utc - self.certificate.not_valid_before_utc
        return self.left < life.total_seconds() / 3


async def enrol(here: Surroundings, name: str, *, role: Role = Role.DEVICE, credential: CredentialPem | None = None,
                label: str | None = None) -> Held:  # fmt: skip
    """Enrol *name* with a new token, or with a manufacturer's or claim's *credential* in the group *label*."""
    key = generate_key()
    token: str | None = None
    if credential is None:
        group = GROUP if role is Role.DEVICE else None
        [made] = await here.stand.operator.create_tokens(device=name, role=role, group=group, ttl_seconds=60)
        token = made.token
    async with EstClient(here.stand.service_url, here.stand.anchors, credential) as est:
        user = name if token else None
        certificate = await est.enrol(build_csr(key, name), user=user, token=token, label=label)
    here.ledger.operations["enrol"] += 1
    return Held(certificate, key_to_pem(key))


async def renew(here: Surroundings, name: str, held: Held) -> Held:
    """Return the successor of *held*, with a new key."""
    key = generate_key()
    async with EstClient(here.stand.service_url, here.stand.anchors, held.pem) as est:
        certificate = await est.reenrol(build_csr(key, name, like=held.certificate))
    here.ledger.operations["renew"] += 1
    return Held(certificate, key_to_pem(key))


async def attempt(here: Surroundings, name: str, held: Held, terms: Terms | None = None) -> Closure | None:
    """Connect and leave; return how it was refused, None if it was admitted."""
    try:
        link = await LightConnection.open(
            here.endpoint, here.context.of(held.pem), name, keep_alive=here.keep_alive, credential=held.pem,
            terms=terms or Terms(),
        )  # fmt: skip
    except NotAdmitted as refused:
        here.ledger.operations["refused"] += 1
        return refused.closure
    here.ledger.operations["connect"] += 1
    await link.close()
    return None


class Party:
    """One that has a certificate, renews it, and is connected as long as it may be."""

    role = Role.DEVICE
    terms = Terms(seconds_alive=20)

    def __init__(self, here: Surroundings, name: str) -> None:
        self.here = here
        self.name = name
        self.held: Held | None = None
        self.link: LightConnection | None = None
        self.is_rightful = True
        """Whether it may connect; false while it is suspended, and from its revocation on."""
        self.outside_since: float | None = time.monotonic()
        self._leaving = False

    @property
    def connected(self) -> bool:
        """Whether it is."""
        return self.link is not None and not self.link.closed.done()

    async def run(self) -> None:
        """Live until `leave`."""
        while not self._leaving:
            try:
                await self._connect_and_work()
            except _NOT_NOW as error:
                self._refused(f"{type(error).__name__}: {error}")
            await asyncio.sleep(_PAUSE)

    def leave(self) -> None:
        """Make it end soon."""
        self._leaving = True
        if self.link is not None:
            self.link.abort()

    async def _connect_and_work(self) -> None:
        here, self._began_good = self.here, self.here.weather.is_good and self.is_rightful
        if self.held is None:
            self.held = await enrol(here, self.name, role=self.role)
        elif self.held.renewal_due and self.is_rightful:
            self.held = await renew(here, self.name, self.held)
        held = self.held
        self.link = link = await LightConnection.open(
            here.endpoint, here.context.of(held.pem), self.name, keep_alive=here.keep_alive, credential=held.pem,
            terms=self.terms, received=self.received, acknowledged=self.acknowledged,
        )  # fmt: skip
        here.ledger.operations["connect"] += 1
        self._began_good = False
        await self.arrived(link)
        self.outside_since = None
        renewed_in_vain = False
        while not link.closed.done() and not self._leaving:
            self.work(link)
            if held.renewal_due and self.is_rightful and not renewed_in_vain:
                good = here.weather.is_good
                try:
                    self.held = await renew(here, self.name, held)
                except (EnrolmentRefused, EnrolmentUnavailable) as error:
                    if self.is_rightful:
                        here.note(self.name, f"renewal: {error}", good)
                    renewed_in_vain = True
                else:
                    break
            await asyncio.sleep(_PAUSE)
        self.outside_since = time.monotonic()
        if not link.closed.done():
            await link.close()
        elif not self._leaving and self.is_rightful and held.is_valid:
            here.note(self.name, f"closed: {link.closed.result()}", since_good=True)

    def _refused(self, what: str) -> None:
        if self.is_rightful and not self._leaving and (self.held is None or self.held.is_valid):
            self.here.note(self.name, what, self._began_good)
        if self.held is not None and not self.held.is_valid and self.is_rightful:
            self._lapsed()

    def _lapsed(self) -> None:
        """Begin anew, with a token, if its certificate has ended."""
        if self.held is not None and self.held.left < -_MARGIN:
            self.here.ledger.operations["lapsed"] += 1
            self.held = None

    async def arrived(self, link: LightConnection) -> None:
        """Subscribe, once it is connected."""

    def work(self, link: LightConnection) -> None:
        """Do what it does twice a second."""

    def received(self, topic: str, payload: bytes) -> None:
        """Take a message."""

    def acknowledged(self, packet_id: int, number: int, reason: str) -> None:
        """Take the end of an exchange."""


class Member(Party):
    """A device, which publishes."""

    def __init__(self, here: Surroundings, name: str) -> None:
        super().__init__(here, name)
        self._number = 0
        self._sent: dict[int, bytes] = {}

    async def arrived(self, link: LightConnection) -> None:
        """Subscribe to its commands."""
        self._sent.clear()
        await link.subscribe(f"fleet/{GROUP}/{self.name}/cmd/#", 1)

    def work(self, link: LightConnection) -> None:
        """Publish at QoS 1, every fourth at QoS 2."""
        if not self.is_rightful:
            return
        self._number += 1
        payload = f"{self.name} {self._number}".encode()
        with contextlib.suppress(NotConnected):
            packet_id = link.publish(f"fleet/{GROUP}/{self.name}/telemetry", payload, 1 if self._number % 4 else 2)
            self._sent[packet_id] = payload

    def acknowledged(self, packet_id: int, number: int, reason: str) -> None:
        """Note that the broker has taken a message (rule 2)."""
        payload = self._sent.pop(packet_id, b"")
        if number == _NOBODY:
            self.here.ledger.lost.append(f"{payload.decode()}: acknowledged, and nobody subscribed")
        elif number < _FAILURE:
            self.here.ledger.operations["publish"] += 1
            self.here.ledger.acknowledged.add(payload)
        elif self.is_rightful:
            self.here.note(self.name, f"publish: 0x{number:02x} {reason}", since_good=True)


class Backend(Party):
    """A service with a kept session; several with the same *share* divide the messages among themselves."""

    role = Role.SERVICE
    terms = Terms(seconds_alive=20, clean_start=False, session_seconds=_KEPT_FOR_EVER)

    def __init__(self, here: Surroundings, name: str, share: str | None = None) -> None:
        super().__init__(here, name)
        self._share = share
        self._was_there = False
        self.states: set[str] = set()
        """The topics of wills that have come."""
        here.ledger.arrived.setdefault(share or name, set())

    async def arrived(self, link: LightConnection) -> None:
        """Subscribe; a session that is gone is a loss of everything that it was to get."""
        if self._was_there and not link.session_present:
            self.here.ledger.lost.append(f"{self.name}: its session is gone")
        if not link.session_present:
            prefix = f"$share/{self._share}/" if self._share else ""
            await link.subscribe(f"{prefix}fleet/{GROUP}/+/telemetry", 2)
            if not self._share:
                await link.subscribe(f"fleet/{GROUP}/+/state/#", 1)
        self._was_there = True

    def received(self, topic: str, payload: bytes) -> None:
        """Count it."""
        if topic.endswith("/telemetry"):
            self.here.ledger.arrived[self._share or self.name].add(payload)
        else:
            self.states.add(topic)

    def command(self, device: str, payload: bytes) -> None:
        """Send a command to *device*."""
        if self.link is not None and self.connected:
            with contextlib.suppress(NotConnected):
                self.link.publish(f"fleet/{GROUP}/{device}/cmd/do", payload, 1)


def passing_terms(name: str, number: int) -> Terms:
    """Return those of a device that comes once: a will that is retained and expires, a session that does.

    The will expires later than a backend that should have it may still be on its way back.
    """
    passing = Properties(message_expiry_interval=_WILL_SECONDS, will_delay_interval=1)
    will = Will(f"fleet/{GROUP}/{name}/state/{number}", b"gone", 1, True, passing)  # type: ignore[arg-type]
    return Terms(clean_start=False, session_seconds=8, will=will)
