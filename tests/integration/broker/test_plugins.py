"""amqtt's plugins, unchanged, in a real broker, with real clients and over mutual TLS.

That amqtt is imported only where there is one, `test_start` says of a broker that has none.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from broker.mqtt.codes import ReasonCode
from broker.mqtt.packets import Publish
from broker.process.stopping import STOP_SECONDS
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from tests.support.auth_server import Asked, AuthServer
from tests.support.broker_process import REPOSITORY, wait_until
from tests.support.mosquitto import Mosquitto
from tests.support.pki import Held, Pki
from tests.support.plugins import plugged
from tests.support.tls_client import TlsClient

PAGE = (REPOSITORY / "docs" / "plugins.md").read_text(encoding="utf-8")


def code_of_page(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def clients(port: int, anchors: Path, held: Held, directory: Path, stem: str) -> Mosquitto:
    return Mosquitto(port, anchors, held.write(directory, stem))


def test_the_plugins_of_the_page_keep_devices_out_and_say_when_one_was_here(
    tmp_path: Path, pki: Pki, anchors: Path
) -> None:
    settings = code_of_page("toml").removeprefix("[plugins]\n")
    with plugged(tmp_path, pki, settings, code_of_page("python")) as broker:
        good = clients(broker.port, anchors, pki.device("meter-1"), tmp_path, "good")
        barred = clients(broker.port, anchors, pki.device("meter-17"), tmp_path, "barred")
        service = clients(broker.port, anchors, pki.service("backend"), tmp_path, "service")
        refused = barred.publish("fleet/meters/meter-17/telemetry", "1", "-q", "1", "-i", "meter-17")
        assert "Not authorized" in refused.stdout + refused.stderr
        # From 2.1 on it sends DISCONNECT behind a message of QoS 0 alone.
        assert good.publish("fleet/meters/meter-1/telemetry", "1", "-i", "meter-1").returncode == 0
        wait_until(lambda: (tmp_path / "state").exists() and broker.events("CLIENT_DISCONNECTED"), "the end")
        with service.subscribe("fleet/last-seen/#", "-F", "got %t %p %r") as sub:
            _, topic, seen, retained = sub.wait_for("got ").split()
    assert (topic, retained) == ("fleet/last-seen/meter-1", "1")
    assert abs(time.time() - int(seen)) < 100
    assert [event["client"] for event in broker.events("REFUSED_BY_PLUGIN", plugin="InRepair")] == ["meter-17"]
    assert broker.events("REFUSED_BY_PLUGIN", event="refused")[0]["identity"].endswith("/meter-17")


def test_the_device_shadow_of_amqtt_outlives_the_broker_and_is_its_device_s_alone(
    tmp_path: Path, pki: Pki, anchors: Path
) -> None:
    shadow = f'"amqtt.contrib.shadows.ShadowPlugin" = {{ connection = "sqlite+aiosqlite:///{tmp_path}/shadow.db" }}'
    with plugged(tmp_path, pki, shadow) as broker:
        meter = clients(broker.port, anchors, pki.device("meter-1"), tmp_path, "meter")
        thief = clients(broker.port, anchors, pki.device("meter-2"), tmp_path, "thief")
        service = clients(broker.port, anchors, pki.service("backend"), tmp_path, "service")
        topic = "$shadow/meter-1/thermostat"
        stolen = thief.publish(f"{topic}/update", '{"state": {"desired": {"celsius": 99}}}', "-q", "1", "-i", "meter-2")
        assert "RC:135" in stolen.stdout, "the policy refuses it"
        with meter.subscribe(f"{topic}/#", "-i", "meter-1", "-F", "got %t %p") as sub:
            assert service.publish(f"{topic}/update", '{"state": {"desired": {"celsius": 21}}}').returncode == 0
            update = json.loads(sub.wait_for("update/accepted ").split(" ", 2)[2])
            assert update["state"]["desired"] == {"celsius": 21}
            assert json.loads(sub.wait_for("update/delta ").split(" ", 2)[2])["state"] == {"celsius": 21}
        assert broker.stop() == 0
        broker.start()
        service = replace(service, port=broker.port)
        with service.subscribe(f"{topic}/get/#", "-F", "got %t %p") as sub:
            assert replace(meter, port=broker.port).publish(f"{topic}/get", "", "-i", "meter-1").returncode == 0
            kept = json.loads(sub.wait_for("get/accepted ").split(" ", 2)[2])
            assert kept["state"]["desired"] == {"celsius": 21}, "and nothing of the thief's"
            assert service.publish("$shadow/meter-9/none/get", "").returncode == 0
        with service.subscribe("$shadow/meter-9/#", "-F", "got %t %p") as sub:
            assert service.publish("$shadow/meter-9/none/get", "").returncode == 0
            assert json.loads(sub.wait_for("get/rejected ").split(" ", 2)[2])["code"] == 404


def test_the_sys_plugin_of_amqtt_counts_what_happens_here(tmp_path: Path, pki: Pki, anchors: Path) -> None:
    plugin = '"amqtt.plugins.sys.broker.BrokerSysPlugin" = { sys_interval = 1 }'
    with plugged(tmp_path, pki, plugin) as broker:
        meter = clients(broker.port, anchors, pki.device("meter-1"), tmp_path, "meter")
        service = clients(broker.port, anchors, pki.service("backend"), tmp_path, "service")
        for _ in range(3):
            assert meter.publish("fleet/meters/meter-1/t", "1", "-i", "meter-1").returncode == 0
        with service.subscribe("$SYS/broker/#", "-F", "got %t %p") as sub:
            assert sub.wait_for("$SYS/broker/messages/publish/received ").endswith(" 3")
            assert sub.wait_for("$SYS/broker/clients/connected ").endswith(" 1")
            assert sub.wait_for("$SYS/broker/messages/subscriptions/count ").endswith(" 1")
            # CONNECT, PUBLISH and DISCONNECT of each device; CONNECT and SUBSCRIBE of the service.
            assert sub.wait_for("$SYS/broker/messages/received ").endswith(" 11")
            received = sub.wait_for("$SYS/broker/load/bytes/received ")
        with service.subscribe("$SYS/broker/#", "-F", "got %t %p") as sub:
            assert "fleetgate version" in sub.wait_for("$SYS/broker/version ")
            megabytes = float(sub.wait_for("$SYS/broker/heap/maximum ").rpartition(" ")[2])
            assert megabytes < 10_000, "the plugin's figure, not the broker's in bytes"
        assert int(received.rpartition(" ")[2]) > 3 * len("fleet/meters/meter-1/t")


def test_the_http_plugin_of_amqtt_is_asked_about_users_after_admission(tmp_path: Path, pki: Pki, anchors: Path) -> None:
    def allows(path: str, asked: Asked) -> bool:
        return path == "/user" and asked["username"] == "anna" and asked.get("password") == "s3cret"

    with AuthServer(allows) as server:
        plugin = f'"amqtt.contrib.http.UserAuthHttpPlugin" = {{ {server.settings} }}'
        with plugged(tmp_path, pki, plugin, plugin_timeout=3, log_level="debug") as broker:
            meter = clients(broker.port, anchors, pki.device("meter-1"), tmp_path, "meter")

            def publish(*options: str, client_id: str = "meter-1") -> str:
                done = meter.publish("fleet/meters/meter-1/t", "1", "-q", "1", "-i", client_id, *options)
                return "sent" if done.returncode == 0 else done.stdout + done.stderr

            assert publish("-u", "anna", "-P", "s3cret") == "sent"
            assert "Not authorized" in publish("-u", "anna", "-P", "wrong")
            assert "Not authorized" in publish()
            assert server.asked[-1]["username"] == "meter-1", "without a user name, the certificate's"
            asked = len(server.asked)
            assert "CONNACK (133)" in publish("-u", "anna", "-P", "s3cret", client_id="meter-2")
            assert len(server.asked) == asked, "whom admission refuses, nobody else is asked about"
            server.answers.clear()
            assert "Server unavailable" in publish("-u", "anna", "-P", "s3cret")
            server.answers.set()
            assert publish("-u", "anna", "-P", "s3cret") == "sent"
        assert "s3cret" not in broker.log
        assert broker.events("PLUGIN_FAILED", plugin="UserAuthHttpPlugin", client="meter-1")


def test_while_a_topic_plugin_thinks_a_client_waits_and_its_messages_keep_their_order(
    tmp_path: Path, pki: Pki, anchors: Path
) -> None:
    with AuthServer(lambda _path, asked: "secret" not in asked["topic"]) as server:
        plugin = f'"amqtt.contrib.http.TopicAuthHttpPlugin" = {{ {server.settings} }}'
        with (
            plugged(tmp_path, pki, plugin, plugin_timeout=30) as broker,
            TlsClient(broker.port, anchors, pki.service("backend").credential) as backend,
            TlsClient(broker.port, anchors, pki.device("meter-1").credential) as meter,
        ):
            backend.connect(client_id="backend")
            assert list(backend.subscribe("fleet/meters/#", "fleet/secret/#", qos=1).reason_codes) == [
                ReasonCode.GRANTED_QOS_1,
                ReasonCode.NOT_AUTHORIZED,
            ]
            meter.connect(client_id="meter-1")
            server.answers.clear()
            topics = [f"fleet/meters/meter-1/{name}" for name in "abcab"]
            meter.send(*(Publish(topic, b"%d" % i, packet_id=None) for i, topic in enumerate(topics)))
            wait_until(lambda: any(each["topic"].endswith("/a") for each in server.asked), "the question about a")
            asked = {(each["topic"][-1], each["acc"]) for each in server.asked if "meter-1" in each["topic"]}
            assert asked <= {("a", "2"), ("a", "1")}, "of what is behind it nobody has looked at anything"
            server.answers.set()
            got = [backend.expect(Publish) for _ in topics]
            assert [(each.topic, each.payload) for each in got] == [(t, b"%d" % i) for i, t in enumerate(topics)]
            asked_of_a = [each["acc"] for each in server.asked if each["topic"].endswith("/a")]
            assert sorted(asked_of_a) == ["1", "2"], "publish and receive, once each: the answers are remembered"
            refused = meter.publish("fleet/meters/meter-1/secret", b"x", qos=1)
            assert refused is not None
            assert refused.reason_code is ReasonCode.NOT_AUTHORIZED
            assert (refused.properties.reason_string or "").startswith("NOT_AUTHORIZED: REFUSED_BY_PLUGIN")
            meter.publish("fleet/meters/meter-1/end", b"end", qos=1)
            assert backend.expect(Publish).payload == b"end"


TROUBLE = """
import asyncio
from amqtt.plugins.base import BasePlugin, BaseTopicPlugin

class Raises(BasePlugin):
    async def on_broker_client_connected(self, *, client_id, client_session):
        raise RuntimeError("broken on purpose")

class Hangs(BasePlugin):
    async def on_broker_message_received(self, *, client_id, message):
        await asyncio.Event().wait()

class Counts(BasePlugin):
    seen = 0
    async def on_broker_message_received(self, *, client_id, message):
        self.seen += 1
        await self.context.broadcast_message("fleet/meters/meter-1/seen", str(self.seen).encode())
        try:
            await self.context.add_subscription(client_id, "fleet/other/#", 0)
        except Exception as error:
            self.context.logger.warning("denied: %s", error)
        try:
            await self.context.add_subscription("nobody", "fleet/other/#", 0)
        except NotImplementedError as error:
            self.context.logger.warning("not offered: %s", error)

class HiddenReceiver(BaseTopicPlugin):
    async def topic_filtering(self, *, session=None, topic=None, action=None):
        service = session.attributes["fleetgate.role"] == "service"
        return not (action == "receive" and service and topic.endswith("/own"))
"""


def test_plugins_that_raise_or_hang_concern_themselves_alone(tmp_path: Path, pki: Pki, anchors: Path) -> None:
    names = ("Raises", "Hangs", "Counts")
    plugins = "\n".join(f'"fleet_plugins.{name}" = {{}}' for name in names)
    limits = {"limits__max_plugin_events": 5}
    with (
        plugged(tmp_path, pki, plugins, TROUBLE, plugin_timeout=2, **limits) as broker,
        TlsClient(broker.port, anchors, pki.service("backend").credential) as backend,
        TlsClient(broker.port, anchors, pki.device("meter-1").credential) as meter,
    ):
        backend.connect(client_id="backend")
        backend.subscribe("fleet/meters/meter-1/seen")
        meter.connect(client_id="meter-1")
        for number in range(20):
            meter.publish("fleet/meters/meter-1/t", b"%d" % number, qos=1)
        seen = [backend.expect(Publish).payload for _ in range(5)]
        assert seen == [b"1", b"2", b"3", b"4", b"5"]
        wait_until(lambda: broker.events("PLUGIN_FAILED", plugin="Hangs"), "the end of patience")
        meter.check_alive()
        assert broker.stop() == 0
    assert "broken on purpose" in broker.events("PLUGIN_FAILED", plugin="Raises")[0]["error"]
    said = [event["text"] for event in broker.events("plugin says")]
    assert any("may not subscribe to 'fleet/other/#'" in text for text in said)
    assert any("none is made without a certificate" in text for text in said)


ENDS_ALL = """
import asyncio
import sys
from amqtt.plugins.base import BaseAuthPlugin

class Quits(BaseAuthPlugin):
    async def authenticate(self, *, session):
        if session.client_id == "meter-1":
            sys.exit("as a library for command lines does")
        if session.client_id == "meter-2":
            raise asyncio.CancelledError
        return True
"""


def test_a_plugin_that_would_end_the_program_refuses_one_client(tmp_path: Path, pki: Pki, anchors: Path) -> None:
    with plugged(tmp_path, pki, '"fleet_plugins.Quits" = {}', ENDS_ALL) as broker:
        for name, expected in (
            ("meter-1", ReasonCode.SERVER_UNAVAILABLE),
            ("meter-2", ReasonCode.SERVER_UNAVAILABLE),
            ("meter-3", ReasonCode.SUCCESS),
        ):
            with TlsClient(broker.port, anchors, pki.device(name).credential) as client:
                client.connect(client_id=name, expect=expected)
        assert broker.stop() == 0
    told = [event["error"] for event in broker.events("PLUGIN_FAILED", plugin="Quits")]
    assert told == ["SystemExit: as a library for command lines does", "CancelledError: "]


@pytest.mark.parametrize("fails", [False, True], ids=["stopped", "fails"])
@pytest.mark.parametrize("step", ["pre", "post"])
def test_a_start_that_does_not_end_ends_the_broker_in_time_and_in_order(
    tmp_path: Path, pki: Pki, step: str, fails: bool
) -> None:
    code = f"""
import asyncio
from pathlib import Path
from amqtt.plugins.base import BasePlugin

class Named(BasePlugin):
    def heard(self, what):
        with Path(__file__).with_name("heard").open("a") as file:
            file.write(f"{{type(self).__name__}} {{what}}\\n")

    async def on_broker_pre_shutdown(self):
        self.heard("stop")

    async def close(self):
        self.heard("close")

class Ready(Named):
    pass

class Slow(Named):
    async def on_broker_{step}_start(self):
        Path(__file__).with_name("waits").touch()
        await asyncio.wait_for(asyncio.Event().wait(), {0 if fails else None})

class Late(Named):
    pass
"""
    names = ("Ready", "Slow", "Late")
    broker = plugged(tmp_path, pki, "\n".join(f'"fleet_plugins.{name}" = {{}}' for name in names), code)
    if fails:
        exit_code, said = broker.fail()
        assert exit_code == 1
        assert f"plugins: fleet_plugins.Slow: on_broker_{step}_start has failed: TimeoutError" in said
    else:
        broker.launch()
        wait_until((tmp_path / "waits").exists, "the plugin")
        started = time.monotonic()
        assert broker.stop() == 0
        assert time.monotonic() - started < STOP_SECONDS / 2
        assert not broker.events("STOP_GAVE_UP")
    told = ["Ready", "Slow"] if step == "pre" else names
    assert (tmp_path / "heard").read_text().split("\n") == [
        *(f"{name} stop" for name in told),
        *(f"{name} close" for name in names),
        "",
    ]


def test_plugins_are_closed_whose_start_ends_as_the_broker_is_to_stop(tmp_path: Path, pki: Pki) -> None:
    code = """
import asyncio
from pathlib import Path
from amqtt.plugins.base import BasePlugin

class Ends(BasePlugin):
    async def on_broker_pre_start(self):
        stopping = next(task for task in asyncio.all_tasks() if task.get_coro().__qualname__ == "Event.wait")
        stopping.get_coro().cr_frame.f_locals["self"].set()  # As a signal would that comes just now.

    async def close(self):
        Path(__file__).with_name("closed").touch()
"""
    broker = plugged(tmp_path, pki, '"fleet_plugins.Ends" = {}', code)
    exit_code, said = broker.fail()
    assert exit_code == 0, said
    assert (tmp_path / "closed").exists()


def test_what_a_plugin_retains_before_the_broker_listens_is_what_is_retained(
    tmp_path: Path, pki: Pki, anchors: Path
) -> None:
    """Also where it had retained something else there before the last stop, and when the broker is killed."""
    code = """
from amqtt.plugins.base import BasePlugin

class Says(BasePlugin):
    async def on_broker_pre_start(self):
        known = sorted(self.context.retained_messages)
        await self.context.retain_message("fleet/broker", b"on, and " + ",".join(known).encode(), 1)
        await self.context.retain_message("fleet/starts", b"some", 1)

    async def on_broker_pre_shutdown(self):
        await self.context.retain_message("fleet/broker", b"off", 1)
"""

    def said() -> set[str]:
        service = clients(broker.port, anchors, pki.service("backend"), tmp_path, "service")
        with service.subscribe("fleet/#", "-F", "got %t %p") as sub:
            return {sub.wait_for("got fleet/") for _ in range(2)}

    with plugged(tmp_path, pki, '"fleet_plugins.Says" = {}', code) as broker:
        assert said() == {"got fleet/starts some", "got fleet/broker on, and "}
        assert broker.stop() == 0
        broker.start()
        assert said() == {"got fleet/starts some", "got fleet/broker on, and fleet/broker,fleet/starts"}
        broker.stop(signal.SIGKILL)
        broker.start()
        assert said() == {"got fleet/starts some", "got fleet/broker on, and fleet/broker,fleet/starts"}


def test_a_plugin_decides_who_receives_message_by_message(tmp_path: Path, pki: Pki, anchors: Path) -> None:
    with (
        plugged(tmp_path, pki, '"fleet_plugins.HiddenReceiver" = {}', TROUBLE) as broker,
        TlsClient(broker.port, anchors, pki.service("backend").credential) as backend,
        TlsClient(broker.port, anchors, pki.device("meter-1").credential) as meter,
    ):
        backend.connect(client_id="backend")
        backend.subscribe("fleet/meters/#", qos=1)
        meter.connect(client_id="meter-1")
        meter.subscribe("fleet/meters/meter-1/#", qos=1)
        for topic in ("own", "other"):
            meter.send(Publish(f"fleet/meters/meter-1/{topic}", b"1", retain=True))
        assert backend.expect(Publish).topic.endswith("/other")
        assert [meter.expect(Publish).topic[-5:] for _ in range(2)] == ["1/own", "other"]
        with TlsClient(broker.port, anchors, pki.service("late").credential) as late:
            late.connect(client_id="late")
            late.subscribe("fleet/meters/#", qos=1)
            assert late.expect(Publish).topic.endswith("/other"), "of what is retained too"
            late.check_alive()


def test_an_operator_sees_which_plugins_run_and_what_they_refuse(tmp_path: Path, pki: Pki, anchors: Path) -> None:
    with (
        AuthServer(lambda *_: False) as server,
        plugged(tmp_path, pki, f'"amqtt.contrib.http.TopicAuthHttpPlugin" = {{ {server.settings} }}') as broker,
        TlsClient(broker.port, anchors, pki.device("meter-1").credential) as meter,
    ):
        meter.connect(client_id="meter-1")
        meter.subscribe("fleet/meters/meter-1/cmd")
        state = ("--state-dir", str(tmp_path / "state"))
        status = subprocess.run(
            [sys.executable, "-m", "broker", "status", *state], capture_output=True, text=True, check=True, timeout=60
        ).stdout
        why = subprocess.run(
            [sys.executable, "-m", "broker", "why", "meter-1", *state],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        assert broker.events("PLUGIN_STARTED", path="amqtt.contrib.http.TopicAuthHttpPlugin")
        assert broker.events("REFUSED_BY_PLUGIN", action="subscribe", topic="fleet/meters/meter-1/cmd")
    assert re.search(r"^plugins +amqtt\.contrib\.http\.TopicAuthHttpPlugin$", status, re.MULTILINE)
    assert "fleet/meters/meter-1/cmd" in why


def test_topic_plugins_see_the_certificate_s_name_whatever_a_client_calls_itself(
    tmp_path: Path, pki: Pki, anchors: Path
) -> None:
    plant, theirs = Pki(), tmp_path / "plant.crt"
    theirs.write_text(plant.anchors)
    foreign = plant.certify(Identity("plant.example", Role.DEVICE, "meter-1", "plant"))
    settings = f"""
        "amqtt.contrib.shadows.ShadowTopicAuthPlugin" = {{}}
        [[trust]]
        name = "ours"
        anchors = ["{anchors}"]
        roles = ["device", "service"]
        unsafe_no_revocation = true
        [[trust]]
        name = "plant"
        anchors = ["{theirs}"]
        trust_domain = "plant.example"
        groups = ["plant"]
        unsafe_no_revocation = true"""
    with plugged(tmp_path, pki, settings) as broker:
        for held, client_id, reason in (
            (pki.device("meter-1"), "meter-1", ReasonCode.GRANTED_QOS_0),
            (foreign, "meter-1", ReasonCode.NOT_AUTHORIZED),  # The policy has no bare name here, and lets it pass.
            (pki.service("backend"), "backend", ReasonCode.NOT_AUTHORIZED),
        ):
            with TlsClient(broker.port, anchors, held.credential) as client:
                client.connect(client_id=client_id, username="meter-1")
                assert client.subscribe("$shadow/meter-1/x/get/accepted").reason_codes == (reason,)


def test_topic_plugins_see_the_user_where_another_plugin_checks_it(tmp_path: Path, pki: Pki, anchors: Path) -> None:
    with AuthServer(lambda path, asked: path == "/acl" or asked.get("password") == "s3cret") as server:
        plugins = "\n".join(
            f'"amqtt.contrib.http.{name}AuthHttpPlugin" = {{ {server.settings} }}' for name in ("User", "Topic")
        )
        with (
            plugged(tmp_path, pki, plugins, plugin_username="connect") as broker,
            TlsClient(broker.port, anchors, pki.device("meter-1").credential) as meter,
        ):
            meter.connect(client_id="meter-1", username="anna", password=b"s3cret")
            meter.publish("fleet/meters/meter-1/t", qos=1)
        assert [(each["path"], each["username"]) for each in server.asked] == [("/user", "anna"), ("/acl", "anna")]


def test_nobody_is_let_in_while_plugins_are_told_of_the_stop(tmp_path: Path, pki: Pki) -> None:
    """The revocation feed is followed no more by then."""
    code = """
import asyncio
from pathlib import Path
from amqtt.plugins.base import BasePlugin

class Slow(BasePlugin):
    async def on_broker_pre_shutdown(self):
        Path(__file__).with_name("waits").touch()
        await asyncio.Event().wait()
"""
    with plugged(tmp_path, pki, '"fleet_plugins.Slow" = {}', code, plugin_timeout=1) as broker:
        broker.send_signal(signal.SIGTERM)
        wait_until((tmp_path / "waits").exists, "the plugin")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", broker.port))
        assert broker.stop() == 0
