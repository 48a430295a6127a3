"""Another generation of trust for a running broker: whom it vouches for stays, others go, a bad one changes nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner

from broker.cli import app
from broker.mqtt.codes import ReasonCode
from broker.mqtt.connect import Connack
from broker.mqtt.framing import split_frames
from broker.mqtt.packets import Publish, decode_packet
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from provisioning.pki.tls import CredentialPem, client_context
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.crl import crl, pem
from tests.support.half_message import half_of_a_key_update
from tests.support.pki import DOMAIN, Held, Pki, pem_of
from tests.support.tls_client import PATIENCE, Ended, TlsClient, attempt
from tests.support.wire import KEPT, V5, connect_packet, will

TABLE = """
[[trust]]
name = "{name}"
anchors = ["{anchors}"]
{terms}
"""
_SHA256, _SHA512_256 = (bytes.fromhex(f"60864801650304020{last}") for last in (1, 6))
"""Their object identifiers."""
BLIND = "unsafe_no_revocation = true\nroles = ['device', 'service']"


def test_what_everybody_may_write_to_is_not_read_again(tmp_path: Path, pki: Pki, anchors: Path) -> None:
    """Another user of the machine who could write to `cafile` had his own CA's devices admitted within seconds."""
    broker = BrokerProcess.with_files(tmp_path / "b", pki)
    cafile = Path(broker.arguments[broker.arguments.index("--cafile") + 1])
    stranger = Pki()
    with broker:
        cafile.chmod(0o666)
        with cafile.open("a") as file:
            file.write(stranger.anchors)
        wait_until(lambda: broker.events("RELOAD_REFUSED"), "the broker notices that it has changed")
        assert "everybody on this machine may write to it" in broker.events("RELOAD_REFUSED")[0]["detail"]
        theirs = stranger.device("meter-1").credential
        with TlsClient(broker.port, anchors, theirs) as client, pytest.raises(Ended, match="UNKNOWN_CA"):
            client.connect(client_id="meter-1")
        with TlsClient(broker.port, anchors, pki.device("meter-1").credential) as client:
            client.connect(client_id="meter-1")


class HalfHandshake:
    """A client that has sent its ClientHello, and finishes later what the broker has begun."""

    def __init__(self, connected: socket.socket, context: ssl.SSLContext) -> None:
        self.socket = connected
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        with pytest.raises(ssl.SSLWantReadError):
            self._tls.do_handshake()
        self._pass_on()
        self._incoming.write(self.socket.recv(65536))

    def connect(self, client_id: str) -> Connack | None:
        """Finish the handshake, send CONNECT, and return the answer; None where TLS itself ends."""
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._pass_on()
                self._incoming.write(self.socket.recv(65536))
        self._tls.write(connect_packet(V5, client_id=client_id).encode(V5))
        self._pass_on()
        while True:
            try:
                data = self._tls.read(65536)
            except ssl.SSLWantReadError:
                received = self.socket.recv(65536)
                self._incoming.write(received) if received else self._incoming.write_eof()
            except ssl.SSLError:
                return None
            else:
                if not data:
                    return None
                (frame, *_), _ = split_frames(data, 1 << 20)
                answer = decode_packet(frame[0], data[frame[1] : frame[2]], V5)
                assert isinstance(answer, Connack)
                return answer

    def _pass_on(self) -> None:
        self.socket.sendall(self._outgoing.read())


class Scene:
    """A broker whose trust is the test's to change, and clients of two CAs that are connected."""

    def __init__(self, directory: Path, stack: ExitStack, text: str, *arguments: str) -> None:
        self.ours, self.theirs = Pki(), Pki()
        directory.mkdir()
        self.directory = directory
        self.files = {name: directory / f"{name}.pem" for name in ("ours", "theirs", "both")}
        self.files["ours"].write_text(self.ours.anchors)
        self.files["theirs"].write_text(self.theirs.anchors)
        self.files["both"].write_text(self.ours.anchors + self.theirs.anchors)
        self.config = directory / "broker.toml"
        self.write(text)
        own = self.ours.broker().write(directory)
        flags = ["--certfile", str(own.certificate), "--keyfile", str(own.key), "--cafile", str(self.files["both"])]
        self.broker = stack.enter_context(
            BrokerProcess(directory, [*flags, "--config", str(self.config), "--no-watch-files", *arguments])
        )
        self.stack = stack

    def write(self, text: str) -> None:
        for name, path in self.files.items():
            text = text.replace(f"{{{name}}}", str(path))
        self.config.write_text(text)

    def connect(self, pki: Pki, name: str, held: Held | None = None) -> TlsClient:
        credential = (held or pki.device(name)).credential
        client = self.stack.enter_context(TlsClient(self.broker.port, self.ours.anchors, credential))
        client.connect(client_id=name)
        return client

    def connect_silent(self, pki: Pki, name: str) -> TlsClient:
        """Connect one that then sends half of a KeyUpdate: OpenSSL takes it for one that shakes hands again."""
        context = client_context(self.ours.anchors, pki.device(name).credential)
        context.keylog_filename = str(self.directory / f"{name}.keys")
        client = self.stack.enter_context(TlsClient(self.broker.port, "", context=context))
        client.connect(client_id=name)
        os.write(client.socket.fileno(), half_of_a_key_update(context, sent=1))
        return client

    def connect_service(self, pki: Pki, name: str) -> TlsClient:
        return self.connect(pki, name, pki.service(name))

    def command(self, *arguments: str) -> dict[str, object]:
        state = str(self.broker.dir / "state")
        done = CliRunner().invoke(app, ["reload", "trust", *arguments, "--state-dir", state, "--json"])
        report: dict[str, object] = json.loads(done.stdout)["parts"][0]
        return report

    def hangup(self, outcome: str = "RELOADED") -> None:
        before = len(self.broker.events(outcome, part="trust"))
        self.broker.send_signal(signal.SIGHUP)
        wait_until(lambda: len(self.broker.events(outcome, part="trust")) > before, f"trust {outcome}")


def both(terms_of_theirs: str = BLIND) -> str:
    ours = TABLE.format(name="ours", anchors="{ours}", terms=BLIND)
    return ours + TABLE.format(name="theirs", anchors="{theirs}", terms=terms_of_theirs)


def test_an_anchor_that_is_taken_out_of_cafile_puts_out_its_clients(tmp_path: Path) -> None:
    with ExitStack() as stack:
        scene = Scene(tmp_path / "b", stack, "", "--unsafe-no-revocation")
        silent = scene.connect_silent(scene.theirs, "silent")
        stays, goes = scene.connect(scene.ours, "stays"), scene.connect(scene.theirs, "goes")
        context = client_context(scene.ours.anchors, scene.ours.device("again").credential)
        with TlsClient(scene.broker.port, "", context=context) as first:
            first.connect(client_id="again")
            session = first.leave()
        resumed = stack.enter_context(TlsClient(scene.broker.port, "", context=context, session=session))
        resumed.connect(client_id="again")
        assert resumed.socket.session_reused
        scene.files["both"].write_text(scene.ours.anchors)
        assert scene.command("--dry-run")["effects"] == {
            "connected": 4,
            "disconnected": 2,
            "subscriptions_ended": 0,
            "wills_dropped": 0,
            "affected": [
                {
                    "client_id": name,
                    "identity": f"spiffe://fleet.internal/device/meters/{name}",
                    "why": "UNTRUSTED_ISSUER: no trust bundle vouches for the issuer 'CN=Test Issuing CA'",
                }
                for name in ("silent", "goes")
            ],
            "more": 0,
        }
        goes.check_alive()
        scene.hangup()
        farewell = goes.farewell()
        assert farewell.reason_code is ReasonCode.NOT_AUTHORIZED
        assert str(farewell.properties.reason_string).startswith("UNTRUSTED_ISSUER: the trust settings have changed")
        silent.expect_end()
        stays.check_alive()
        resumed.check_alive()
        assert attempt(scene.broker.port, scene.ours.anchors, scene.theirs.device("goes").credential) == (
            "TLSV1_ALERT_UNKNOWN_CA"
        )
        with TlsClient(scene.broker.port, "", context=context, session=session) as again:
            assert not again.socket.session_reused, "tickets of before are worth nothing"


def test_nobody_stays_for_as_long_as_a_list_cannot_be_read(tmp_path: Path) -> None:
    with ExitStack() as stack:
        scene = Scene(tmp_path / "b", stack, both())
        stays, goes = scene.connect(scene.ours, "stays"), scene.connect(scene.theirs, "goes")
        hanging = tmp_path / "hanging.crl"  # As on a disk that does not answer.
        os.mkfifo(hanging)
        scene.write(TABLE.format(name="ours", anchors="{ours}", terms=f"{BLIND}\ncrlfile = ['{hanging}']"))
        scene.broker.send_signal(signal.SIGHUP)
        assert "UNTRUSTED_ISSUER" in str(goes.farewell().properties.reason_string)
        stays.check_alive()
        wait_until(lambda: scene.broker.events("RELOADED", part="trust"), "the reload ends, and others may begin")
        assert "CRL files are still being read" in scene.broker.events("RELOADED", part="trust")[0]["detail"]
        hanging.open("wb").close()


@pytest.mark.parametrize("text", ["", "tables"])
def test_who_is_at_the_door_when_trust_changes_is_judged_by_the_new(tmp_path: Path, text: str) -> None:
    # TLS was completed, or begun, while the CA was still believed; the sweep sees only whom it has let in.
    with ExitStack() as stack:
        flags = () if text else ("--unsafe-no-revocation",)
        scene = Scene(tmp_path / "b", stack, both() if text else "", *flags)
        waiting = {
            name: stack.enter_context(TlsClient(scene.broker.port, scene.ours.anchors, pki.device(name).credential))
            for name, pki in (("goes", scene.theirs), ("stays", scene.ours))
        }
        half = stack.enter_context(socket.create_connection(("127.0.0.1", scene.broker.port), timeout=PATIENCE))
        begun = HalfHandshake(half, client_context(scene.ours.anchors, scene.theirs.device("late").credential))
        if text:
            scene.write(TABLE.format(name="ours", anchors="{ours}", terms=BLIND))
        else:
            scene.files["both"].write_text(scene.ours.anchors)
        scene.hangup()
        for name, client in waiting.items():
            answer = client.connect(client_id=name, expect=ReasonCode.SERVER_UNAVAILABLE)
            assert str(answer.properties.reason_string).startswith("TRUST_CHANGED: ")
            assert answer.properties.user_properties == (("retry-after", "0"),)
        scene.connect(scene.ours, "stays").check_alive()
        refused = begun.connect("late")
        assert refused is None or refused.reason_code is not ReasonCode.SUCCESS
        assert not scene.broker.events("admitted", client="late")


def test_an_operator_of_a_ca_that_is_withdrawn_gets_no_further_answer(tmp_path: Path) -> None:
    with ExitStack() as stack:
        scene = Scene(tmp_path / "b", stack, "", "--unsafe-no-revocation", "--admin-port", "0")
        url = next(each for each in scene.broker.urls if each.startswith("https://"))
        operator = scene.theirs.certify(Identity(DOMAIN, Role.OPERATOR, "olga"))
        context = client_context(scene.ours.anchors, operator.credential)
        client = stack.enter_context(httpx.Client(base_url=url, verify=context, trust_env=False, timeout=PATIENCE))
        assert client.get("/v1/status").status_code == 200
        scene.files["both"].write_text(scene.ours.anchors)
        scene.hangup()
        answer = client.get("/v1/status")  # On the same connection.
        assert (answer.status_code, answer.json()["code"]) == (503, "TRUST_CHANGED")
        with pytest.raises(httpx.TransportError):
            client.get("/v1/status")


@pytest.mark.parametrize(
    ("terms", "code"),
    [
        (f"{BLIND}\nissuers = ['CN=Somebody else']", "UNTRUSTED_ISSUER"),
        (f"{BLIND}\ngroups = ['gas']", "WRONG_GROUP"),
        (f"{BLIND}\ntrust_domain = 'else.where'", "WRONG_TRUST_DOMAIN"),
        (f"{BLIND}\ntrust_domain = 'a.b'\n[[trust.identity]]\nsource = 'common-name'\ngroup = 'x'", "IDENTITY_CHANGED"),
    ],
)
def test_other_terms_are_everybodys_terms_at_once(tmp_path: Path, terms: str, code: str) -> None:
    with ExitStack() as stack:
        scene = Scene(tmp_path / "b", stack, both())
        stays, goes = scene.connect(scene.ours, "stays"), scene.connect(scene.theirs, "goes")
        scene.write(both(terms))
        scene.hangup()
        assert str(goes.farewell().properties.reason_string).startswith(f"{code}: ")
        stays.check_alive()
        assert scene.broker.events("RELOADED", part="trust", disconnected=1, of=2)


@pytest.mark.parametrize(
    ("terms", "sent"),
    [
        ("", True),
        ("issuers = ['CN=Test Issuing CA']", True),
        ("issuers = ['CN=Somebody else']", False),
        ("max_depth = 0", False),
        ("groups = ['gas']", False),
    ],
)
@pytest.mark.parametrize("anchor", ["root", "both"])
def test_the_will_of_who_is_away_is_held_to_the_new_terms(
    tmp_path: Path, terms: str, anchor: str, *, sent: bool
) -> None:
    """Who was connected was put out without the will; who had left before had it sent."""
    with ExitStack() as stack:
        scene = Scene(tmp_path / "b", stack, both())
        if anchor == "root":
            scene.files["theirs"].write_bytes(pem_of(scene.theirs.root.certificate))
            scene.hangup()
        last = will("fleet/meters/goes/event", b"gone", 1, will_delay_interval=600)
        credential = scene.theirs.device("goes").credential
        with TlsClient(scene.broker.port, scene.ours.anchors, credential) as client:
            client.connect(client_id="goes", will=last, **KEPT)
        wait_until(lambda: scene.broker.events("CLIENT_CLOSED", client="goes"), "it is gone")
        scene.write(both(f"{BLIND}\n{terms}\n"))
        scene.files["ours"].write_text(scene.ours.anchors + Pki().anchors)  # So that all are other ones, in any case.
        scene.hangup()
        watcher = scene.connect_service(scene.ours, "watcher")
        watcher.subscribe("fleet/+/+/event", qos=1)
        scene.connect(scene.ours, "goes")  # A clean start: the will is due.
        if sent or (terms == "max_depth = 0" and anchor == "both"):
            assert watcher.expect(Publish).payload == b"gone"
        watcher.check_alive()  # Raises for a message that has come before the answer.


def test_a_bundle_that_cannot_be_used_changes_nothing(tmp_path: Path) -> None:
    with ExitStack() as stack:
        scene = Scene(tmp_path / "b", stack, both())
        client = scene.connect(scene.theirs, "stays")
        scene.files["theirs"].write_text("nothing")
        scene.hangup("RELOAD_REFUSED")
        (event,) = scene.broker.events("RELOAD_REFUSED", part="trust")
        assert event["detail"].startswith(f"trust bundle theirs: {scene.files['theirs']} holds no certificate")
        client.check_alive()
        scene.connect(scene.theirs, "newcomer").check_alive()


def test_a_source_of_revocations_can_be_added_to_a_running_broker(tmp_path: Path) -> None:
    with ExitStack() as stack:
        scene = Scene(tmp_path / "b", stack, both())
        revoked = scene.theirs.device("revoked")
        victim, stays = scene.connect(scene.theirs, "revoked", revoked), scene.connect(scene.theirs, "stays")
        lists = scene.directory / "theirs.crl"
        lists.write_bytes(pem(crl(scene.theirs.issuing, [revoked]), crl(scene.theirs.root)))
        scene.write(both(f"crlfile = ['{lists}']"))
        scene.hangup()
        assert str(victim.farewell().properties.reason_string).startswith("REVOKED: ")
        stays.check_alive()
        scene.connect(scene.theirs, "newcomer").check_alive()


def test_who_was_connected_when_the_broker_was_killed_leaves_no_will_if_his_ca_is_trusted_no_more(
    tmp_path: Path,
) -> None:
    """The anchors are replaced while there is no broker; the session waits for its time."""
    with ExitStack() as stack:
        scene = Scene(tmp_path / "b", stack, "", "--unsafe-no-revocation")
        watcher = scene.ours.service("watcher").credential
        with TlsClient(scene.broker.port, scene.ours.anchors, watcher) as client:
            client.connect(client_id="watcher", **KEPT)
            client.subscribe("fleet/+/+/event", qos=1)
        for pki, name, delay in (
            (scene.theirs, "goes", 0), (scene.theirs, "later", 2), (scene.ours, "stays", 0), (scene.ours, "waits", 2),
        ):  # fmt: skip
            client = stack.enter_context(TlsClient(scene.broker.port, scene.ours.anchors, pki.device(name).credential))
            last = will(f"fleet/meters/{name}/event", name.encode(), 1, will_delay_interval=delay)
            client.connect(client_id=name, will=last, **KEPT)
            client.publish(f"fleet/meters/{name}/telemetry", b"here", qos=1)  # Acknowledged when all is on disk.
        scene.broker.stop(signal.SIGKILL)
        scene.files["both"].write_text(scene.ours.anchors)
        scene.broker.start()
        with TlsClient(scene.broker.port, scene.ours.anchors, watcher) as client:
            assert client.connect(client_id="watcher", **KEPT).session_present
            assert {client.expect(Publish).payload for _ in range(2)} == {b"stays", b"waits"}
            scene.files["both"].write_text(scene.ours.anchors + scene.theirs.anchors)
            scene.hangup()
            for name in ("goes", "later"):
                back = scene.theirs.device(name).credential
                with TlsClient(scene.broker.port, scene.ours.anchors, back) as returned:
                    assert returned.connect(client_id=name, **KEPT).session_present
                    returned.leave()
            client.check_alive()  # Raises for a message that has come before the answer.


@pytest.mark.parametrize("renewed", [True, False])
def test_the_will_of_who_is_below_an_anchor_that_has_expired_is_sent(tmp_path: Path, *, renewed: bool) -> None:
    """It was taken for an untrusted one, against decision 0143; a CA that is no anchor any more is one all the same."""
    with ExitStack() as stack:
        scene = Scene(tmp_path / "b", stack, "", "--unsafe-no-revocation")
        watcher = scene.connect_service(scene.ours, "watcher")
        watcher.subscribe("fleet/+/+/event", qos=1)
        credential = scene.theirs.device("goes").credential
        goes = stack.enter_context(TlsClient(scene.broker.port, scene.ours.anchors, credential))
        goes.connect(client_id="goes", will=will("fleet/meters/goes/event", b"gone", 1))
        ended = scene.theirs.now - timedelta(hours=1)
        earlier = scene.theirs.authority(
            "Test Issuing CA",
            scene.theirs.root,
            key=scene.theirs.issuing.key if renewed else None,
            not_after=ended,
        )
        scene.files["both"].write_bytes(scene.ours.anchors.encode() + pem_of(earlier.certificate))
        code = "EXPIRED" if renewed else "UNTRUSTED_ISSUER"
        alert = {"EXPIRED": "SSLV3_ALERT_CERTIFICATE_EXPIRED", "UNTRUSTED_ISSUER": "TLSV1_ALERT_UNKNOWN_CA"}[code]
        scene.hangup()
        assert str(goes.farewell().properties.reason_string).startswith(f"{code}: the trust settings have changed")
        if renewed:
            assert watcher.expect(Publish).payload == b"gone"
        watcher.check_alive()  # Raises for a message that has come before the answer.
        assert attempt(scene.broker.port, scene.ours.anchors, credential) == alert


def test_nobody_is_put_out_for_what_is_odd_about_anothers_certificate(tmp_path: Path) -> None:
    """A reload took one's own flaw for that of all whose certificates say the same of their issuer."""
    with ExitStack() as stack:
        scene = Scene(tmp_path / "b", stack, "", "--unsafe-no-revocation")
        works = RsaAuthority(scene.theirs)
        scene.files["both"].write_bytes(scene.ours.anchors.encode() + pem_of(works.certificate))
        scene.hangup()
        clients: dict[str, TlsClient] = {}
        for name in ("odd", "even"):
            credential = works.issue(name, odd=name == "odd")
            clients[name] = stack.enter_context(TlsClient(scene.broker.port, scene.ours.anchors, credential))
            clients[name].connect(client_id=name)
        scene.files["both"].write_bytes(pem_of(works.certificate) + scene.ours.anchors.encode())
        scene.hangup()
        clients["odd"].farewell()  # The library cannot tell who has signed it: it may come back, by a handshake.
        clients["even"].check_alive()


class RsaAuthority:
    """A CA with an RSA key, whose signatures may be of a kind that OpenSSL knows, and the library does not."""

    def __init__(self, pki: Pki) -> None:
        self._pki, self._key = pki, rsa.generate_private_key(65537, 2048)
        self.certificate = self._renamed(pki.authority("Works CA"), self._key.public_key()).sign(
            self._key, hashes.SHA256()
        )

    def issue(self, name: str, *, odd: bool) -> CredentialPem:
        """Return a device's credential."""
        held = self._pki.device(name)
        kind = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
        signed = self._renamed(held, held.key.public_key()).sign(self._key, hashes.SHA256(), rsa_padding=kind)
        if odd:
            tbs, digest = signed.tbs_certificate_bytes.replace(_SHA256, _SHA512_256), hashes.SHA512_256()
            signature = self._key.sign(tbs, padding.PSS(padding.MGF1(digest), 32), digest)
            der = signed.public_bytes(Encoding.DER).replace(_SHA256, _SHA512_256)
            signed = x509.load_der_x509_certificate(der.replace(signed.signature, signature))
        return Held(signed, held.key).credential

    def _renamed(self, held: Held, key: CertificatePublicKeyTypes) -> x509.CertificateBuilder:
        """Return what *held* says, issued by this CA."""
        there = held.certificate
        named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Works CA")])
        builder = x509.CertificateBuilder(
            named, there.subject, key, there.serial_number, there.not_valid_before_utc, there.not_valid_after_utc
        )
        own = x509.SubjectKeyIdentifier.from_public_key(key)
        by = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(own, critical=False).add_extension(by, critical=False)
        for each in there.extensions:
            if not isinstance(each.value, x509.SubjectKeyIdentifier | x509.AuthorityKeyIdentifier):
                builder = builder.add_extension(each.value, each.critical)
        return builder


def test_where_cafile_alone_judges_any_number_of_cas_of_one_name_may_have_clients(tmp_path: Path) -> None:
    """A bundle takes no more than 32. A handshake admits them all, and a reload put out who was below the 33rd."""
    with ExitStack() as stack:
        scene = Scene(tmp_path / "b", stack, "", "--unsafe-no-revocation")
        namesakes = [scene.theirs.authority("Works CA") for _ in range(34)]
        every = scene.ours.anchors.encode() + pem_of(*(each.certificate for each in namesakes))
        scene.files["both"].write_bytes(every)
        scene.hangup()
        names = [f"meter-{number}" for number in range(len(namesakes))]
        devices = [scene.theirs.device(name, issuer=each) for name, each in zip(names, namesakes, strict=True)]
        clients = [scene.connect(scene.theirs, name, each) for name, each in zip(names, devices, strict=True)]
        scene.files["both"].write_bytes(every + scene.theirs.anchors.encode())
        scene.hangup()
        for each in clients:
            each.check_alive()
