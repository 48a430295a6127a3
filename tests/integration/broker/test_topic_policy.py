"""A policy file in a running broker, with clients that nobody here wrote."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.mosquitto import Mosquitto
from tests.support.pki import Pki

POLICY = """
denied_publish = "disconnect"
[role.device]
publish.allow = ["plant/{group}/{device}/#"]
subscribe.allow = ["plant/#"]
subscribe.deny = ["plant/+/+/secret"]
[identity.hall]
publish.allow = ["plant/#"]
subscribe.allow = ["plant/#"]
"""


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[BrokerProcess]:
    directory = tmp_path_factory.mktemp("plant")
    path = directory / "policy.toml"
    path.write_text(POLICY)
    with BrokerProcess.with_files(directory, pki, "--policy-file", str(path)) as running:
        yield running


@pytest.fixture
def client(plant: BrokerProcess, mosquitto: Mosquitto) -> Mosquitto:
    return replace(mosquitto, port=plant.port)


def test_mosquitto_publishes_and_subscribes_what_the_file_allows(
    client: Mosquitto, pki: Pki, tmp_path: Path, name: str
) -> None:
    hall = replace(client, credential=pki.service("hall").write(tmp_path))
    with hall.subscribe("$share/g/plant/#", "-F", "got %t", "-i", f"hall-{name}"[:60]) as sub:
        assert client.publish(f"plant/meters/{name}/x", "1", "-q", "1").returncode == 0
        sub.wait_for(f"got plant/meters/{name}/x")


@pytest.mark.parametrize("version", ["5", "311"])
def test_a_subscription_that_reaches_what_is_denied_is_refused(client: Mosquitto, version: str) -> None:
    for topic_filter in ("plant/#", "plant/a/b/+", "$share/g/plant/#"):
        with replace(client, version=version).subscribe(topic_filter) as sub:
            sub.wait_for("denied")
            sub.end()  # By itself: a signal in this moment would be lost.


def test_a_denied_publish_is_answered_or_ends_the_connection(
    client: Mosquitto, plant: BrokerProcess, name: str
) -> None:
    answered = client.publish("plant/meters/another/x", "1", "-q", "1")
    assert "Not authorized" in answered.stdout + answered.stderr
    client.publish("plant/meters/another/x", "1", "-q", "0")
    replace(client, version="311").publish("plant/meters/another/x", "1", "-q", "1")

    def told() -> list[dict[str, Any]]:
        return [event for event in plant.events("PUBLISH_NOT_PERMITTED") if f"/{name}" in event["identity"]]

    wait_until(lambda: len(told()) >= 2, "both ends are logged: who publishes at QoS 0 waits for no answer")
    closed = told()
    assert len(closed) == 2
    assert closed[0]["detail"] == f"{name} may not publish to 'plant/meters/another/x'"


def test_a_broker_does_not_start_with_a_policy_that_it_cannot_use(tmp_path: Path, pki: Pki) -> None:
    path = tmp_path / "policy.toml"
    path.write_text('[role.device]\npublish.allow = ["{name}/#"]\n')
    broker = BrokerProcess.with_files(tmp_path / "broker", pki, "--policy-file", str(path))
    complaint = f"{path}: role.device.publish.allow[0]: '{{name}}/#': {{name}} is not a placeholder"
    code, said = broker.fail()
    assert (code, complaint in said) == (1, True)
    broker.arguments.append("--test-config")
    code, said = broker.fail()
    assert (code, said.startswith(f"fleet-broker: policy_file: {complaint}")) == (2, True)
