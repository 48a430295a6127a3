"""Two persistent MQTT 5 clients: a publisher that keeps each message until its exchange is over, and a subscriber.

Each runs in its own thread on a real connection and reconnects, with its session, whenever the broker goes away. They
witness what a broker acknowledged, refused and delivered over any number of restarts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from broker.mqtt.codes import QoS, ReasonCode
from broker.mqtt.packets import Packet, Puback, Pubcomp, Publish, Pubrec, Pubrel, Suback, Subscribe, SubscriptionRequest
from provisioning.pki.tls import Credential
from tests.support.acting_thread import ActingThread
from tests.support.tls_client import TlsClient
from tests.support.wire import publication

_PAUSE = 0.02
_WINDOW = 20


class Persistent(ActingThread):
    """A client with a session that outlives its connections, in a thread."""

    def __init__(self, port: Callable[[], int], anchors: Path, name: str, credential: Credential, qos: int) -> None:
        """Connect as *name* to whatever *port* returns at that moment."""
        super().__init__()
        self.qos = qos
        self.connections = 0
        self._port = port
        self._anchors = anchors
        self._name = name
        self._credential = credential

    def _act(self) -> None:
        with TlsClient(self._port(), self._anchors, self._credential) as client:
            answer = client.connect(client_id=self._name, clean_start=False, session_expiry_interval=3600)
            self.connections += 1
            self.begin(client, present=answer.session_present)
            while not self._stopping.is_set():
                try:
                    packet = client.next_packet(patience=_PAUSE)
                except TimeoutError:
                    pass
                else:
                    self.take(client, packet)
                self.go_on(client)

    def begin(self, client: TlsClient, *, present: bool) -> None:
        """Send the first packets of a new connection."""

    def take(self, client: TlsClient, packet: Packet) -> None:
        """Process *packet*."""

    def go_on(self, client: TlsClient) -> None:
        """Send more, if there is more to send."""


class Publisher(Persistent):
    """Publishes 0, 1, 2 … to *topic*, several in flight, until told to finish."""

    def __init__(
        self, port: Callable[[], int], anchors: Path, name: str, credential: Credential, qos: int, topic: str
    ) -> None:
        super().__init__(port, anchors, name, credential, qos)
        self.topic = topic
        self.acknowledged: list[int] = []
        self.refused: list[int] = []
        self.padding = b""
        self.finishing = threading.Event()
        self.idle = threading.Event()
        self._sent = 0
        self._open: dict[int, int | None] = {}

    def finish(self) -> None:
        """Publish nothing new, and wait until all that was published is answered."""
        self.finishing.set()
        assert self.idle.wait(60), f"unanswered: {self._open}"

    def begin(self, client: TlsClient, *, present: bool) -> None:
        if not present:
            self._open = {packet_id: number for packet_id, number in self._open.items() if number is not None}
        for packet_id, number in self._open.items():
            self._say(client, packet_id, number, dup=True)

    def take(self, client: TlsClient, packet: Packet) -> None:
        match packet:
            case Puback(packet_id, reason) | Pubrec(packet_id, reason):
                number = self._open.pop(packet_id)
                if number is not None:
                    (self.refused if reason.is_failure else self.acknowledged).append(number)
                assert not reason.is_failure or reason is ReasonCode.QUOTA_EXCEEDED, packet
                if isinstance(packet, Pubrec) and not reason.is_failure:
                    self._open[packet_id] = None
                    client.send(Pubrel(packet_id))
            case Pubcomp(packet_id):
                self._open.pop(packet_id, None)

    def go_on(self, client: TlsClient) -> None:
        while not self.finishing.is_set() and len(self._open) < _WINDOW:
            packet_id = next(each for each in range(1, 2 * _WINDOW) if each not in self._open)
            self._open[packet_id] = self._sent
            self._sent += 1
            self._say(client, packet_id, self._sent - 1, dup=False)
        if self.finishing.is_set() and not self._open:
            self.idle.set()

    def _say(self, client: TlsClient, packet_id: int, number: int | None, *, dup: bool) -> None:
        if number is None:
            client.send(Pubrel(packet_id))
        else:
            payload = b"%d " % number + self.padding
            client.send(publication(self.topic, payload, self.qos, packet_id=packet_id, dup=dup))


class Stream(Persistent):
    """Publishes 0, 1, 2 … to *topic* at QoS 0, a few per second, whether received or not."""

    def __init__(self, port: Callable[[], int], anchors: Path, name: str, credential: Credential, topic: str) -> None:
        super().__init__(port, anchors, name, credential, 0)
        self.topic = topic
        self.sent = 0

    def go_on(self, client: TlsClient) -> None:
        client.send(publication(self.topic, b"%d" % self.sent))
        self.sent += 1


class Subscriber(Persistent):
    """Subscribes to *topic_filter* and records what arrives; at QoS 2 by packet identifier, once until PUBREL."""

    def __init__(
        self, port: Callable[[], int], anchors: Path, name: str, credential: Credential, qos: int, topic_filter: str
    ) -> None:
        super().__init__(port, anchors, name, credential, qos)
        self.topic_filter = topic_filter
        self.subscribed = threading.Event()
        self.got: list[int] = []
        self._known: set[int] = set()

    def begin(self, client: TlsClient, *, present: bool) -> None:
        del present
        if not self.subscribed.is_set():
            client.send(Subscribe(1, (SubscriptionRequest(self.topic_filter, QoS(self.qos)),)))

    def take(self, client: TlsClient, packet: Packet) -> None:
        match packet:
            case Suback():
                self.subscribed.set()
            case Publish(packet_id=None):
                self.got.append(int(packet.payload.split()[0]))
            case Publish(packet_id=packet_id) if packet_id is not None:
                if packet_id not in self._known:
                    self.got.append(int(packet.payload.split()[0]))
                if packet.qos is QoS.EXACTLY_ONCE:
                    self._known.add(packet_id)
                    client.send(Pubrec(packet_id))
                else:
                    client.send(Puback(packet_id))
            case Pubrel(packet_id):
                self._known.discard(packet_id)
                client.send(Pubcomp(packet_id))
