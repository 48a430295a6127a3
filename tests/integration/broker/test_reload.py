"""Another certificate, trust, policy, limits for a running broker: nobody is dropped, a bad file changes nothing."""

from __future__ import annotations

import functools
import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from typer.testing import CliRunner

from broker.admin.client import AdminClient, RequestRefused
from broker.admission.policy_file import DEFAULT_POLICY_FILE
from broker.cli import app
from broker.mqtt.codes import ReasonCode
from broker.mqtt.connect import Connack
from broker.mqtt.disconnect import Disconnect
from broker.mqtt.publication import Publish
from provisioning.pki.keys import key_to_pem
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.mosquitto import Mosquitto
from tests.support.pki import Held, Pki, pem_of
from tests.support.plugins import plugged
from tests.support.tls_client import Ended, TlsClient, attempt
from tests.support.wire import connect_packet

DEFAULT = DEFAULT_POLICY_FILE.read_text(encoding="utf-8")
NO_COMMANDS = DEFAULT.replace('subscribe.allow = ["fleet/{group}/{device}/cmd/#"]', "")


class Reloaded:
    """A broker whose files are the test's to change, and a device and a service that are connected all the time."""

    def __init__(self, broker: BrokerProcess, pki: Pki, stack: ExitStack) -> None:
        self.broker, self.pki = broker, pki
        self.policy, self.settings = broker.dir / "policy.toml", broker.dir / "broker.toml"
        self.certificate, self.key = broker.dir / "broker-1.crt", broker.dir / "broker-1.key"
        self.anchors = broker.dir / "anchors.pem"
        self.device = stack.enter_context(TlsClient(broker.port, self.anchors, pki.device("m-1").credential))
        self.device.connect(client_id="m-1")
        self.service = stack.enter_context(TlsClient(broker.port, self.anchors, pki.service("s-1").credential))
        self.service.connect(client_id="s-1")
        self.service.subscribe("fleet/#")

    def events(self, code: str, part: str) -> int:
        return len(self.broker.events(code, part=part))

    def check_flow(self) -> None:
        """Make sure that both are still connected, and that messages flow between them."""
        self.device.publish("fleet/meters/m-1/state", b"x", qos=1)
        assert isinstance(self.service.next_packet(), Publish)

    def new_certificate(self, held: Held) -> None:
        self.certificate.write_bytes(pem_of(held.certificate, *held.chain))
        self.key.write_bytes(key_to_pem(held.key))

    def presented(self) -> str:
        """The serial number that a newcomer sees."""
        with TlsClient(self.broker.port, self.anchors, self.pki.device("m-2").credential) as client:
            client.connect(client_id="m-2")
            return client.presented

    def command(self, *arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["reload", *arguments, "--state-dir", str(self.broker.dir / "state")])
        return done.exit_code, done.stdout


def start(directory: Path, pki: Pki, watch: str) -> BrokerProcess:
    directory.mkdir(exist_ok=True)
    (directory / "policy.toml").write_text(DEFAULT)
    (directory / "broker.toml").write_text("[limits]\nmax_inflight = 100\n")
    arguments = ["--config", str(directory / "broker.toml"), "--policy-file", str(directory / "policy.toml"), watch]
    return BrokerProcess.with_files(directory, pki, *arguments)


@pytest.fixture
def running(tmp_path: Path, pki: Pki) -> Iterator[Reloaded]:
    """A broker that looks at its files only when it is told to."""
    with start(tmp_path / "b", pki, "--no-watch-files") as broker, ExitStack() as stack:
        yield Reloaded(broker, pki, stack)


def test_sighup_replaces_everything_and_drops_nobody(running: Reloaded, pki: Pki) -> None:
    first = running.presented()
    other = Pki()
    newcomer = other.device("m-3")
    assert attempt(running.broker.port, running.anchors, newcomer.credential) == "TLSV1_ALERT_UNKNOWN_CA"
    running.new_certificate(pki.broker())
    running.anchors.write_text(pki.anchors + other.anchors)
    running.policy.write_text(NO_COMMANDS)
    running.settings.write_text("port = 1\n[limits]\nmax_inflight = 7\n")
    running.broker.send_signal(signal.SIGHUP)
    for part in ("certificate", "trust", "policy", "limits"):
        wait_until(functools.partial(running.events, "RELOADED", part), f"{part} reloaded")
    assert running.presented() != first
    with TlsClient(running.broker.port, pki.anchors, newcomer.credential) as client:
        assert client.connect(client_id="m-3").properties.receive_maximum == 7
    assert running.device.subscribe("fleet/meters/m-1/cmd/#").reason_codes == (ReasonCode.NOT_AUTHORIZED,)
    assert "restart needed for: " not in running.broker.log, "the flag for the port comes before the file"
    running.check_flow()
    running.broker.send_signal(signal.SIGHUP)
    wait_until(lambda: running.events("RELOAD_UNCHANGED", "certificate"), "nothing new")
    running.check_flow()


def test_what_cannot_be_used_is_refused_with_the_reason_and_the_old_one_stays(running: Reloaded, pki: Pki) -> None:
    first = running.presented()
    running.certificate.write_bytes(pem_of(pki.broker().certificate))  # Its key has not come.
    running.anchors.write_text("no anchors")
    running.policy.write_text("[role.x]")
    running.settings.write_text("[limits]\nmax_inflight = 0\n")
    code, said = running.command()
    assert code == 1
    certificate, trust, policy, limits = said.splitlines()
    assert certificate.startswith("certificate: refused: ")
    assert trust.startswith(f"trust: refused: {running.anchors} holds no certificate, neither PEM nor DER")
    assert policy.startswith(f"policy: refused: {running.policy}: role.x: no such role; there are ")
    assert limits.startswith(f"limits: refused: {running.settings}: limits.max_inflight: input should be greater")
    running.anchors.write_text(pki.anchors)
    assert running.presented() == first
    running.check_flow()
    expired = pki.broker(not_after=pki.now)
    running.new_certificate(expired)
    code, said = running.command("certificate")
    assert code == 1
    assert said.startswith(f"certificate: refused: {running.certificate} is valid from ")
    running.check_flow()


def test_limits_below_what_is_in_use_take_nothing_from_anybody(running: Reloaded, pki: Pki) -> None:
    """Places, subscriptions, queued messages: who has more keeps it, and gets no more."""
    filters, port, away = [f"fleet/meters/{number}/#" for number in range(3)], running.broker.port, pki.device("away")
    running.service.subscribe(*filters)

    def come() -> TlsClient:
        return TlsClient(port, running.anchors, away.credential)

    with come() as client:
        client.connect(client_id="away", clean_start=False, session_expiry_interval=600)
        client.subscribe("fleet/meters/away/cmd/#", qos=1)
    wait_until(lambda: running.broker.events("closed", client="away"), "it has gone")
    with TlsClient(port, running.anchors, pki.service("s-2").credential) as sender:
        sender.connect(client_id="s-2")
        for number in range(3):
            sender.publish("fleet/meters/away/cmd/x", b"%d" % number, qos=1)
            running.service.expect(Publish)
        lowered = "max_connections = 2\nmax_subscriptions = 1\nmax_queued_messages = 1\nmax_instances = 1\n"
        running.settings.write_text(f"[limits]\n{lowered}")
        code, said = running.command("limits")
        assert code == 0
        assert "max_subscriptions 100 → 1" in said
        sender.check_alive()
        running.check_flow()
        assert running.service.subscribe(*filters).reason_codes == (ReasonCode.SUCCESS,) * 3, "those that it has"
        assert running.service.subscribe("fleet/other/#").reason_codes == (ReasonCode.QUOTA_EXCEEDED,)
        sender.publish("fleet/meters/away/cmd/x", b"too much", qos=1)
        running.service.expect(Publish)
        with pytest.raises((Ended, OSError)), come() as client:
            client.connect(client_id="away")
        running.check_flow()
    running.settings.write_text(f"[limits]\n{lowered.replace('max_connections = 2', 'max_connections = 4')}")
    running.command("limits")
    with come() as client:
        client.connect(client_id="away", clean_start=False, session_expiry_interval=600)
        assert [client.expect(Publish).payload for _ in range(3)] == [b"0", b"1", b"2"]
        client.check_alive()


def test_what_would_put_everybody_out_by_mistake_is_refused(running: Reloaded, pki: Pki) -> None:
    device = pki.device("m-9")
    running.new_certificate(device)
    running.anchors.write_bytes(pem_of(device.certificate))
    code, said = running.command("certificate", "trust")
    assert code == 1
    certificate, trust = said.splitlines()
    assert certificate.startswith(f"certificate: refused: {running.certificate} is not for servers (no serverAuth)")
    assert trust.startswith(f"trust: refused: {running.anchors} holds no CA's certificate")
    running.anchors.write_text(pki.anchors)
    running.check_flow()


def test_a_certificate_that_is_refused_does_not_come_in_with_other_anchors(running: Reloaded, pki: Pki) -> None:
    first, other = running.presented(), Pki()
    running.new_certificate(pki.broker(not_after=pki.now))
    running.anchors.write_text(pki.anchors + other.anchors)
    code, said = running.command()
    assert code == 1
    assert said.startswith("certificate: refused: ")
    assert "trust: reloaded: 4 trust anchors" in said
    assert running.presented() == first
    with AdminClient.at_socket(running.broker.dir / "state" / "admin.sock") as client:
        assert client.get("/v1/status")["certificate"] == "ok", "of what is presented, not of what was refused"
    with TlsClient(running.broker.port, pki.anchors, other.device("m-3").credential) as client:
        client.connect(client_id="m-3")
    running.check_flow()


def test_anchors_that_nobody_has_reloaded_do_not_come_in_with_another_certificate(running: Reloaded, pki: Pki) -> None:
    first, other = running.presented(), Pki()
    running.new_certificate(pki.broker())
    running.anchors.write_text(pki.anchors + other.anchors)
    assert running.command("certificate")[0] == 0
    newcomer = other.device("m-3").credential
    assert attempt(running.broker.port, pki.anchors, newcomer) == "TLSV1_ALERT_UNKNOWN_CA"
    running.anchors.write_text("is being written")
    running.new_certificate(pki.broker())
    assert running.command("certificate")[0] == 0
    running.anchors.write_text(pki.anchors)
    assert running.presented() != first
    running.check_flow()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x = " + "[" * 50_000, "not TOML: more than 32 levels, one within the other (at line 1)"),
        (".".join("a" * 30_000) + " = 1", "not TOML: more than 32 levels, one within the other (at line 1)"),
        ("x = 1" + "0" * 5_000, "not TOML: Exceeds the limit"),
    ],
    ids=["brackets", "dots", "digits"],
)
def test_whatever_stands_in_its_files_the_broker_goes_on(running: Reloaded, text: str, why: str) -> None:
    running.policy.write_text(text)
    running.settings.write_text(text)
    running.broker.send_signal(signal.SIGHUP)
    for part in ("policy", "limits"):
        wait_until(functools.partial(running.events, "RELOAD_REFUSED", part), f"{part} refused")
    assert all(why in each["detail"] for each in running.broker.events("RELOAD_REFUSED"))
    running.check_flow()
    code, said = running.command("--dry-run", "--policy", str(running.policy))
    assert code == 1
    assert said.startswith(f"policy: would be refused: the proposed policy: {why}")
    assert not running.broker.events("INTERNAL_ERROR")


def test_a_dry_run_says_who_would_be_disconnected_and_disconnects_nobody(running: Reloaded, tmp_path: Path) -> None:
    running.device.subscribe("fleet/meters/m-1/cmd/#")
    proposed = tmp_path / "new.toml"
    proposed.write_text(NO_COMMANDS)
    code, said = running.command("--dry-run", "--policy", str(proposed))
    assert code == 0
    assert said == (
        "policy: would be reloaded; would disconnect 1 of 2 clients, end 1 subscription: "
        "m-1 (may not subscribe to 'fleet/meters/m-1/cmd/#')\n"
    )
    code, said = running.command("--dry-run", "--policy", str(proposed), "--json")
    (part,) = json.loads(said)["parts"]
    assert (part["outcome"], part["effects"]["disconnected"], part["effects"]["connected"]) == ("reloaded", 1, 2)
    running.check_flow()
    running.policy.write_text(NO_COMMANDS)
    code, said = running.command("policy")
    assert said.startswith("policy: reloaded; disconnected 1 of 2 clients, ended 1 subscription: m-1 (")
    farewell = running.device.expect(Disconnect)
    assert farewell.reason_code is ReasonCode.NOT_AUTHORIZED


def test_the_command_says_what_is_wrong_with_it(running: Reloaded, tmp_path: Path) -> None:
    assert running.command("everything")[0] == 2
    assert running.command("--policy", str(running.policy))[0] == 2
    assert running.command("--dry-run", "--policy", str(tmp_path / "none"))[0] == 2


def test_a_changed_file_is_noticed(tmp_path: Path, pki: Pki) -> None:
    with start(tmp_path / "b", pki, "--watch-files") as broker, ExitStack() as stack:
        running = Reloaded(broker, pki, stack)
        first = running.presented()
        good = running.policy.read_text()
        running.policy.write_text("[role.x]")
        wait_until(lambda: running.events("RELOAD_REFUSED", "policy"), "a bad policy refused")
        running.policy.write_text(good)
        wait_until(lambda: running.events("RELOAD_UNCHANGED", "policy"), "it is said that it is good again")
        (event,) = broker.events("RELOAD_UNCHANGED")
        assert (event["part"], event["detail"]) == ("policy", "the files are again as they are in use")
        proposed = broker.dir / "proposed"
        proposed.write_text(NO_COMMANDS)
        proposed.replace(running.policy)
        wait_until(lambda: running.events("RELOADED", "policy"), "a good one taken")
        running.new_certificate(pki.broker())
        wait_until(lambda: running.presented() != first, "another certificate")
        running.check_flow()
        assert running.device.subscribe("fleet/meters/m-1/cmd/#").reason_codes == (ReasonCode.NOT_AUTHORIZED,)


def test_a_policy_that_changed_while_the_broker_was_away_counts_for_kept_sessions(tmp_path: Path, pki: Pki) -> None:
    broker = start(tmp_path / "b", pki, "--no-watch-files")
    device = pki.device("m-1")
    anchors = broker.dir / "anchors.pem"
    with broker, TlsClient(broker.port, anchors, device.credential) as client:
        client.connect(client_id="m-1", session_expiry_interval=600)
        client.subscribe("fleet/meters/m-1/cmd/#", qos=1)
    (broker.dir / "policy.toml").write_text(NO_COMMANDS)
    with broker, TlsClient(broker.port, anchors, pki.service("s").credential) as service:
        service.connect()
        service.publish("fleet/meters/m-1/cmd/x", b"x", qos=1)
        with TlsClient(broker.port, anchors, device.credential) as client:
            assert client.connect(client_id="m-1", clean_start=False).session_present
            client.check_alive()
    assert broker.events("POLICY_ENFORCED", subscriptions=1)


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ('{"parts": ["everything"]}', "parts: a list of certificate, trust, policy, limits"),
        ('{"parts": []}', "parts: a list of"),
        ('{"parts": [{}]}', "parts: a list of"),
        ('{"dry_run": 1}', "dry_run: true or false"),
        ('{"policy": "x"}', "policy: the text of a policy file, and only for a dry run"),
        ('{"polcy": "x"}', "polcy: no such field; there are parts, dry_run, policy"),
    ],
)
def test_the_api_says_what_is_wrong_with_a_request(broker: BrokerProcess, document: str, complaint: str) -> None:
    with AdminClient.at_socket(broker.dir / "state" / "admin.sock") as client, pytest.raises(RequestRefused) as caught:
        client.post("/v1/reload", json.loads(document))
    assert str(caught.value).startswith(f"INVALID_REQUEST: {complaint}")


def test_a_directory_of_anchors_may_change(tmp_path: Path, pki: Pki) -> None:
    """A CA whose file comes into a bundle's directory is trusted, and not any more when it goes."""
    directory, other = tmp_path / "anchors", Pki()
    directory.mkdir()
    (directory / "first.pem").write_text(pki.anchors)
    settings = tmp_path / "trust.toml"
    settings.write_text(f'[[trust]]\nname = "fleet"\nanchors = ["{directory}"]\nunsafe_no_revocation = true\n')
    with BrokerProcess.with_files(tmp_path / "b", pki, "--config", str(settings)) as broker:
        newcomer = other.device("m-3")
        assert attempt(broker.port, pki.anchors, newcomer.credential) == "TLSV1_ALERT_UNKNOWN_CA"
        (directory / "second.pem").write_text(other.anchors)

        def admitted() -> bool:
            try:
                with TlsClient(broker.port, pki.anchors, newcomer.credential) as client:
                    client.send(connect_packet(client.version, client_id="m-3"))
                    # Whose handshake was made under the old anchors is refused by the new ones.
                    return client.expect(Connack).reason_code is ReasonCode.SUCCESS
            except (OSError, Ended):
                return False

        wait_until(admitted, "the new CA is trusted")
        (directory / "second.pem").unlink()
        wait_until(lambda: not admitted(), "the new CA is not trusted any more")
        with TlsClient(broker.port, pki.anchors, pki.device("m-1").credential) as client:
            client.connect(client_id="m-1")


def test_policy_and_anchors_that_are_changed_while_the_broker_is_starting_count(
    tmp_path: Path, pki: Pki, anchors: Path
) -> None:
    """They are read before plugins start, which may take half a minute, and are looked at every second after that."""
    other, trusted = Pki(), tmp_path / "trusted.pem"
    trusted.write_text(pki.anchors + other.anchors)
    code = f"""
from pathlib import Path
from amqtt.plugins.base import BasePlugin


class Edits(BasePlugin):
    async def on_broker_pre_start(self):
        Path({str(tmp_path / "policy.toml")!r}).write_text('[role.device]\\npublish.allow = ["other/#"]\\n')
        Path({str(trusted)!r}).write_text({pki.anchors!r})
"""
    bundle = f'[[trust]]\nname = "ours"\nanchors = ["{trusted}"]\nunsafe_no_revocation = true\nroles = ["device"]'
    with plugged(tmp_path, pki, f'"fleet_plugins.Edits" = {{}}\n{bundle}', code) as broker:
        for part in ("policy", "trust"):
            wait_until(lambda: broker.events("RELOADED", part=part), f"what the {part} says now counts")
        meter = Mosquitto(broker.port, anchors, pki.device("meter-1").write(tmp_path, "meter"))
        refused = meter.publish("fleet/meters/meter-1/t", "1", "-q", "1", "-i", "meter-1")
        assert "RC:135" in refused.stdout
        theirs = other.device("meter-2").credential
        with TlsClient(broker.port, anchors, theirs) as client, pytest.raises(Ended, match="UNKNOWN_CA"):
            client.connect(client_id="meter-2")
