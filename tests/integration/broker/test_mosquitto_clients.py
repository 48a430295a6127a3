"""mosquitto_pub and mosquitto_sub over mutual TLS."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from broker.mqtt.packets import Publish
from provisioning.pki.tls import CredentialFiles
from tests.support.broker_process import BrokerProcess
from tests.support.mosquitto import Mosquitto
from tests.support.pki import Pki
from tests.support.tls_client import TlsClient

VERSIONS = pytest.mark.parametrize("version", ["311", "5"])


@pytest.fixture
def backend(mosquitto: Mosquitto, pki: Pki, tmp_path: Path, name: str) -> Mosquitto:
    """The clients as a service with a name of its own."""
    return replace(mosquitto, credential=pki.service(f"svc-{name}"[:64]).write(tmp_path, "service"))


@VERSIONS
@pytest.mark.parametrize("qos", ["0", "1"])
def test_a_message_goes_from_device_to_service(
    mosquitto: Mosquitto, backend: Mosquitto, name: str, version: str, qos: str
) -> None:
    topic = f"fleet/meters/{name}/telemetry"
    with replace(backend, version=version).subscribe("fleet/meters/+/#", "-q", "1", "-F", "got %t %p q%q r%r") as sub:
        done = replace(mosquitto, version=version).publish(topic, "21.5", "-q", qos, "-i", name)
        assert done.returncode == 0, done.stderr
        while name not in (line := sub.wait_for("got ")):
            pass
    assert line == f"got {topic} 21.5 q{qos} r0"


@pytest.mark.parametrize("version", ["31", "311", "5"])
def test_a_command_goes_from_service_to_device(
    mosquitto: Mosquitto, backend: Mosquitto, name: str, version: str
) -> None:
    with replace(mosquitto, version=version).subscribe(
        f"fleet/meters/{name}/cmd/#", "-q", "1", "-i", name, "-C", "1", "-F", "got %p"
    ) as sub:
        assert backend.publish(f"fleet/meters/{name}/cmd/reboot", "now", "-q", "1").returncode == 0
        assert sub.wait_for("got ") == "got now"
        assert sub.end() == 0


@VERSIONS
def test_a_retained_message_waits_for_who_comes_later(
    mosquitto: Mosquitto, backend: Mosquitto, name: str, version: str
) -> None:
    topic = f"fleet/meters/{name}/state"
    assert mosquitto.publish(topic, "on", "-r", "-q", "1").returncode == 0
    with replace(backend, version=version).subscribe(topic, "-F", "got %p r%r") as sub:
        assert sub.wait_for("got ") == "got on r1"
    mosquitto.publish(topic, "", "-r", "-q", "1")


@VERSIONS
def test_the_will_of_a_client_that_is_killed_is_sent(
    mosquitto: Mosquitto, backend: Mosquitto, name: str, version: str
) -> None:
    will = f"fleet/meters/{name}/event"
    with backend.subscribe(will, "-F", "got %p") as watcher:
        with replace(mosquitto, version=version).subscribe(
            f"fleet/meters/{name}/cmd/#", "-i", name, "--will-topic", will, "--will-payload", "gone", "--will-qos", "1"
        ) as victim:
            victim.process.kill()
        assert watcher.wait_for("got ") == "got gone"


def test_a_publish_outside_the_policy_is_refused_in_mqtt5(mosquitto: Mosquitto) -> None:
    done = mosquitto.publish("fleet/meters/another/telemetry", "x", "-q", "1")
    assert "Not authorized" in done.stdout + done.stderr


def test_a_subscription_outside_the_policy_is_refused(mosquitto: Mosquitto) -> None:
    with mosquitto.subscribe("fleet/#") as sub:
        sub.wait_for("denied")
        sub.end()


@VERSIONS
@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("none", "handshake failure|certificate required|lost"),
        ("foreign", "unknown ca|lost"),
        ("expired", "expired|lost"),
    ],
)
def test_who_has_no_valid_certificate_gets_nothing(
    mosquitto: Mosquitto,
    broker: BrokerProcess,
    pki: Pki,
    tmp_path: Path,
    name: str,
    version: str,
    case: str,
    words: str,
) -> None:
    credential: CredentialFiles | None = None
    if case == "foreign":
        credential = Pki().device(name).write(tmp_path, "foreign")
    elif case == "expired":
        credential = pki.device(name, not_after=pki.now - timedelta(seconds=1)).write(tmp_path, "expired")
    done = replace(mosquitto, credential=credential, version=version).publish(f"fleet/meters/{name}/state", "x")
    assert done.returncode != 0
    assert any(word in (done.stdout + done.stderr).lower() for word in words.split("|")), done
    assert broker.running


@pytest.mark.parametrize(("version", "words"), [("311", "identifier rejected"), ("5", "Client Identifier not valid")])
def test_a_wrong_client_identifier_is_refused(mosquitto: Mosquitto, name: str, version: str, words: str) -> None:
    done = replace(mosquitto, version=version).publish(f"fleet/meters/{name}/state", "x", "-i", "somebody-else")
    assert done.returncode != 0
    assert words.lower() in (done.stdout + done.stderr).lower()


def test_a_service_of_ours_understands_what_mosquitto_sends(
    broker: BrokerProcess, mosquitto: Mosquitto, pki: Pki, anchors: Path, name: str
) -> None:
    with TlsClient(broker.port, anchors, pki.service(f"raw-{name}"[:64]).credential) as client:
        client.connect()
        client.subscribe(f"fleet/meters/{name}/#", qos=1)
        mosquitto.publish(
            f"fleet/meters/{name}/state", "x", "-q", "1",
            "-D", "publish", "user-property", "b", "1", "-D", "publish", "user-property", "a", "2",
            "-D", "publish", "content-type", "text", "-D", "publish", "message-expiry-interval", "60",
        )  # fmt: skip
        message = client.expect(Publish)
        assert message.properties.user_properties == (("b", "1"), ("a", "2"))
        assert message.properties.content_type == "text"
        assert message.properties.message_expiry_interval in {59, 60}
