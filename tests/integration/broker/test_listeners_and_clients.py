"""Real clients at QoS 2, in shared subscriptions, over WebSocket, as operator, and on the listener without TLS."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from dataclasses import replace
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Event, RejectConnection, Request

from broker.mqtt.codes import PacketType
from broker.mqtt.packets import Connack, Disconnect, Publish
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from provisioning.pki.tls import client_context
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.mosquitto import Mosquitto
from tests.support.pki import DOMAIN, Held, Pki
from tests.support.tls_client import TlsClient
from tests.support.websocket_client import upgraded
from tests.support.wire import V5, connect_packet

PATIENCE = 60.0


def ports(broker: BrokerProcess) -> dict[str, int]:
    """Return the port of each kind of listener, as the ready line named them."""
    return {scheme: int(port) for scheme, _, port in (url.rpartition("://127.0.0.1:") for url in broker.urls)}


@pytest.mark.parametrize("version", ["311", "5"])
def test_mosquitto_sends_and_gets_at_qos2(
    broker: BrokerProcess, mosquitto: Mosquitto, pki: Pki, tmp_path: Path, name: str, version: str
) -> None:
    del broker
    service = pki.service(f"s-{name}"[:60]).write(tmp_path, "service")
    topic = f"fleet/meters/{name}/telemetry"
    with replace(mosquitto, credential=service, version=version).subscribe(topic, "-q", "2", "-F", "got %p q%q") as sub:
        for number in range(3):
            done = replace(mosquitto, version=version).publish(topic, str(number), "-q", "2", "-i", name)
            assert done.returncode == 0, done.stderr
        assert [sub.wait_for("got ") for _ in range(3)] == [f"got {number} q2" for number in range(3)]


def test_mosquitto_shares_a_subscription(
    broker: BrokerProcess, mosquitto: Mosquitto, pki: Pki, anchors: Path, tmp_path: Path, name: str
) -> None:
    service = f"s-{name}"[:60]
    files = pki.service(service).write(tmp_path, "service")
    topic = f"fleet/meters/{name}/telemetry"
    shared = f"$share/workers/fleet/meters/{name}/#"
    worker = replace(mosquitto, credential=files)
    with (
        worker.subscribe(shared, "-q", "1", "-i", f"{service}-1", "-F", "got %p") as first,
        worker.subscribe(shared, "-q", "1", "-i", f"{service}-2", "-F", "got %p") as second,
        TlsClient(broker.port, anchors, pki.device(name).credential) as meter,
    ):
        meter.connect(client_id=name)
        for number in range(10):
            meter.publish(topic, b"%d" % number, qos=1)
        got = [sub.wait_for("got ") for sub in (first, second) for _ in range(5)]
    assert sorted(got) == [f"got {number}" for number in range(10)]


@pytest.fixture(scope="module")
def doors(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> object:
    identity = Identity(DOMAIN, Role.DEVICE, "tool", "meters").uri
    plain = ["--unsafe-plain-port", "0", "--unsafe-plain-identity", identity]
    with BrokerProcess.with_files(tmp_path_factory.mktemp("doors"), pki, "--websocket-port", "0", *plain) as running:
        yield running


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_paho_over_websocket(doors: BrokerProcess, pki: Pki, tmp_path: Path, name: str, qos: int) -> None:
    service = f"s-{name}"[:60]
    subscribed, arrived = threading.Event(), threading.Event()
    got: list[bytes] = []

    def client(client_id: str, held: Held) -> paho.Client:
        made = paho.Client(CallbackAPIVersion.VERSION2, client_id, protocol=paho.MQTTv5, transport="websockets")
        files = held.write(tmp_path, client_id)
        made.tls_set(str(doors.dir / "anchors.pem"), str(files.certificate), str(files.key))
        return made

    def on_message(_client: object, _data: object, message: paho.MQTTMessage) -> None:
        got.append(bytes(message.payload))
        if len(got) == 2:
            arrived.set()

    backend = client(service, pki.service(service))

    def on_connect(*_: object) -> None:
        backend.subscribe(f"fleet/meters/{name}/#", qos)

    backend.on_connect = on_connect
    backend.on_subscribe = lambda *_: subscribed.set()
    backend.on_message = on_message
    meter = client(name, pki.device(name))
    try:
        for each in (backend, meter):
            each.connect("localhost", ports(doors)["wss"])
            each.loop_start()
        assert subscribed.wait(PATIENCE)
        wait_until(meter.is_connected, "the device is connected")
        for payload in (b"small", b"x" * 100_000):
            meter.publish(f"fleet/meters/{name}/telemetry", payload, qos)
        assert arrived.wait(PATIENCE)
    finally:
        for each in (backend, meter):
            each.disconnect()
            each.loop_stop()
    assert got == [b"small", b"x" * 100_000]
    assert doors.events("INTERNAL_ERROR") == []


@pytest.mark.parametrize(
    ("offered", "kind"), [(["mqtt"], AcceptConnection), (["chat"], RejectConnection), ([], RejectConnection)]
)
def test_the_subprotocol_is_needed(doors: BrokerProcess, pki: Pki, offered: list[str], kind: type[object]) -> None:
    context = client_context(doors.dir / "anchors.pem", pki.device("ws").credential)
    raw = socket.create_connection(("127.0.0.1", ports(doors)["wss"]), timeout=PATIENCE)
    with raw, context.wrap_socket(raw, server_hostname="localhost") as secure:
        websocket = WSConnection(ConnectionType.CLIENT)
        secure.sendall(websocket.send(Request(host="localhost", target="/any", subprotocols=offered)))
        events: list[Event] = []
        while not events:
            websocket.receive_data(secure.recv(65536))
            events = list(websocket.events())
        assert isinstance(events[0], kind)


def test_what_is_no_websocket_is_closed(doors: BrokerProcess, pki: Pki) -> None:
    with TlsClient(ports(doors)["wss"], doors.dir / "anchors.pem", pki.device("ws").credential) as client:
        client.send(connect_packet(V5, client_id="ws"))
        assert client.socket.recv(1000).startswith(b"HTTP/1.1 400 ")
    assert doors.running


def test_a_websocket_without_a_certificate_gets_the_true_alert(doors: BrokerProcess) -> None:
    context = client_context(doors.dir / "anchors.pem", None)
    raw = socket.create_connection(("127.0.0.1", ports(doors)["wss"]), timeout=PATIENCE)
    with (
        raw,
        context.wrap_socket(raw, server_hostname="localhost") as secure,
        pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"),
    ):
        secure.recv(1)


def test_an_operator_reads_and_says_nothing(broker: BrokerProcess, pki: Pki, anchors: Path, name: str) -> None:
    operator = pki.certify(Identity(DOMAIN, Role.OPERATOR, "admin"))
    with TlsClient(broker.port, anchors, operator.credential) as client:
        client.connect(client_id="admin")
        assert client.subscribe("$SYS/broker/version").reason_codes == (0,)
        message = client.expect(Publish)
        assert message.payload.startswith(b"fleetgate version ")
        assert message.retain
        answer = client.publish(f"fleet/meters/{name}/cmd/go", qos=1)
        assert answer is not None
        assert answer.reason_code.is_failure


def test_the_listener_without_tls_is_on_loopback_and_is_who_it_is_told(doors: BrokerProcess) -> None:
    with socket.create_connection(("127.0.0.1", ports(doors)["mqtt"]), timeout=PATIENCE) as plain:
        plain.sendall(connect_packet(V5, client_id="tool").encode())
        answer = plain.recv(1000)
        assert answer[0] == Connack.packet_type << 4
        assert answer[3] == 0
    with socket.create_connection(("127.0.0.1", ports(doors)["mqtt"]), timeout=PATIENCE) as plain:
        plain.sendall(connect_packet(V5, client_id="another").encode())
        assert plain.recv(1000)[3] == 0x85
    assert doors.events("UNSAFE_PLAIN")


def test_the_listener_without_tls_ends_a_connection_as_the_others_do(doors: BrokerProcess) -> None:
    """Each end of one was an internal error, after which the peer's next packet got a reset."""
    goodbye = bytes((PacketType.DISCONNECT << 4,))
    for last, told in ((Disconnect(), b""), (connect_packet(V5, client_id="tool"), goodbye)):
        with socket.create_connection(("127.0.0.1", ports(doors)["mqtt"]), timeout=PATIENCE) as plain:
            plain.sendall(connect_packet(V5, client_id="tool").encode())
            assert plain.recv(1000)[0] == PacketType.CONNACK << 4
            plain.sendall(last.encode(V5))
            with plain.makefile("rb") as until_the_end:
                assert until_the_end.read()[:1] == told
    assert doors.events("INTERNAL_ERROR") == []


def test_frames_without_content_keep_no_client_alive(doors: BrokerProcess, pki: Pki) -> None:
    """Only a Control Packet does [MQTT-3.1.2-22]: a device whose MQTT was dead counted as present."""
    with upgraded(ports(doors)["wss"], pki, pki.device("mute")) as client:
        client.connect(client_id="mute", keep_alive=1)

        def is_put_out() -> bool:
            with contextlib.suppress(OSError):
                client.socket.sendall(b"")
            return bool(doors.events("KEEP_ALIVE_TIMEOUT", client="mute"))

        wait_until(is_put_out, "nothing but empty frames comes from it")
