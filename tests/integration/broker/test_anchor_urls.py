"""Trust anchors from a URL: a real HTTPS server, a real broker, devices of two CAs; nobody in between decides."""

from __future__ import annotations

import json
import socket
import ssl
import stat
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from typer.testing import CliRunner

from broker.cli import app
from broker.mqtt.codes import ReasonCode
from tests.support.broker_process import PATIENCE, BrokerProcess, wait_until
from tests.support.listed import answer
from tests.support.pki import Held, Pki, pem_of
from tests.support.provisioning import ProvisioningService
from tests.support.tls_client import TlsClient, attempt
from tests.support.web import WebServer

PAGE = "/anchors.pem"
IN = (ReasonCode.SUCCESS, "")
NOT_SIGNED = bytes.fromhex("300f06092a864886f70d010701a0020400")
"""PKCS #7 that holds data, no certificates."""


class Scene:
    """A web server's CA of its own, two fleets, and a broker that fetches its anchors."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.web_pki, self.ours, self.theirs = Pki(), Pki(), Pki()
        self.directory = directory
        self.stack = stack
        self.web_ca = directory / "web-ca.pem"
        self.web_ca.write_text(self.web_pki.anchors)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.web_pki.broker("web").credential.load_into(context)
        self.web = stack.enter_context(WebServer(context))
        self.web.pages[PAGE] = self.ours.anchors.encode()
        self.config = directory / "broker.toml"
        own = self.ours.broker().write(directory)
        flags = ["--certfile", str(own.certificate), "--keyfile", str(own.key), "--cafile", str(own.certificate)]
        self.broker = BrokerProcess(directory, [*flags, "--config", str(self.config)])
        self.write(f'anchors_url_cafile = "{self.web_ca}"')

    @property
    def copies(self) -> list[Path]:
        return list((self.directory / "state" / "anchors").glob("*.pem"))

    def write(self, *terms: str, url: str | None = None, refresh: float = 0.1) -> None:
        lines = ["[[trust]]", 'name = "ours"', f'anchors_url = "{url or self.web.url + PAGE}"', *terms]
        lines += [f"anchors_refresh_seconds = {refresh}", "unsafe_no_revocation = true"]
        self.config.write_text("\n".join(lines))

    def start(self) -> None:
        self.stack.enter_context(self.broker)

    def connect(self, pki: Pki, name: str) -> TlsClient:
        client = self.stack.enter_context(TlsClient(self.broker.port, self.ours.anchors, pki.device(name).credential))
        client.connect(client_id=name)
        return client

    def refused(self, held: Held) -> bool:
        alert = attempt(self.broker.port, self.ours.anchors, held.credential)
        return alert.endswith(("ALERT_UNKNOWN_CA", "ALERT_DECRYPT_ERROR"))  # The CAs have one name and other keys.

    def shown(self) -> dict[str, object]:
        done = CliRunner().invoke(app, ["trust", "show", "--state-dir", str(self.directory / "state"), "--json"])
        followed: dict[str, object] = json.loads(done.stdout)["anchor_urls"][0]
        return followed


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(tmp_path, stack)


def test_devices_of_fetched_anchors_are_admitted_and_a_change_puts_out_the_others(scene: Scene) -> None:
    scene.start()
    stays = scene.connect(scene.ours, "stays")
    assert scene.refused(scene.theirs.device("early"))
    scene.web.pages[PAGE] = (scene.ours.anchors + scene.theirs.anchors).encode()
    wait_until(lambda: scene.broker.events("RELOADED", part="trust"), "the other anchors count")
    comes = scene.connect(scene.theirs, "comes")
    scene.web.pages[PAGE] = scene.ours.anchors.encode()
    farewell = comes.farewell()
    assert farewell.reason_code is ReasonCode.NOT_AUTHORIZED
    assert (farewell.properties.reason_string or "").startswith("UNTRUSTED_ISSUER")
    stays.check_alive()
    wait_until(lambda: len(scene.broker.events("RELOADED", part="trust")) == 2, "the change is told")
    [first, second] = scene.broker.events("RELOADED", part="trust")
    assert (first["disconnected"], second["disconnected"]) == (0, 1)
    assert "generation 3" in second["detail"]
    wait_until(lambda: scene.web.not_modified, "what has not changed is not sent again")
    assert scene.shown()["problem"] == ""


def test_a_broker_starts_with_the_last_good_copy_while_the_url_is_down(scene: Scene) -> None:
    scene.start()
    [copy] = scene.copies
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    scene.broker.stop()
    scene.web.pages.clear()
    scene.broker.start()
    assert answer(scene.broker, scene.ours.anchors, scene.ours.device("meter-1")) == IN
    assert scene.broker.events("ANCHORS_UNFETCHED", detail="HTTP status 404")
    assert scene.shown()["problem"] == "HTTP status 404"
    scene.web.pages[PAGE] = scene.ours.anchors.encode()
    wait_until(lambda: scene.broker.events("ANCHORS_CURRENT"), "that it answers again is said")


def test_a_signal_ends_the_wait_for_a_server_that_does_not_answer(scene: Scene) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        scene.write(f'anchors_url_cafile = "{scene.web_ca}"', url=f"https://127.0.0.1:{silent.getsockname()[1]}")
        scene.broker.launch()
        silent.settimeout(PATIENCE)
        with silent.accept()[0] as asked:
            asked.settimeout(PATIENCE)
            assert asked.recv(1), "it asks"
            assert scene.broker.stop() == 0
    assert not scene.broker.log


def test_a_broker_without_copy_and_without_answer_does_not_start(scene: Scene) -> None:
    scene.web.pages.clear()
    code, said = scene.broker.fail()
    assert code == 1
    assert "could not be fetched yet, and there is no copy of an earlier answer" in said
    done = CliRunner().invoke(app, [*scene.broker.arguments, "--test-config"])
    assert (done.exit_code, done.stdout) == (0, "the settings are valid\n")  # It asks nobody.


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (lambda _: b"", "an empty answer"),
        (lambda _: b"<html>maintenance</html>", "neither PEM nor PKCS #7"),
        (lambda _: NOT_SIGNED, "neither PEM nor PKCS #7"),
        (lambda scene: scene.ours.anchors.encode()[:-200], "incomplete"),
        (lambda scene: pem_of(scene.ours.device("x").certificate), "is not the certificate of a CA"),
        (lambda scene: scene.ours.anchors.encode() + b" " * 1024 * 1024, "more than 1048576 bytes"),
        (lambda scene: scene.ours.anchors.encode() * 101, "202 certificates; 200 are taken at most"),
    ],
)
def test_a_bad_answer_is_refused_and_the_old_anchors_stay(
    scene: Scene, bad: Callable[[Scene], bytes], reason: str
) -> None:
    scene.start()
    client = scene.connect(scene.ours, "meter-1")
    [copy] = scene.copies
    before = copy.read_bytes()
    scene.web.pages[PAGE] = bad(scene)
    [event] = wait_until(lambda: scene.broker.events("ANCHORS_REFUSED"), "the answer is refused")
    assert reason in event["detail"]
    assert copy.read_bytes() == before
    client.check_alive()
    assert answer(scene.broker, scene.ours.anchors, scene.ours.device("meter-2")) == IN


def test_a_server_of_another_ca_is_not_believed(scene: Scene) -> None:
    stranger = scene.directory / "stranger.pem"
    stranger.write_text(Pki().anchors)
    scene.write(f'anchors_url_cafile = "{stranger}"')
    code, _ = scene.broker.fail()
    assert code == 1
    assert not scene.copies
    # Nor one whose certificate is for another name.
    scene.write(
        f'anchors_url_cafile = "{scene.web_ca}"', url=f"{scene.web.url}{PAGE}".replace("127.0.0.1", "127.0.0.2")
    )
    assert scene.broker.fail()[0] == 1
    assert not scene.copies


def test_only_pinned_certificates_are_taken(scene: Scene) -> None:
    scene.web.pages[PAGE] = (scene.ours.anchors + scene.theirs.anchors).encode()
    pins = [each.certificate.fingerprint(SHA256()).hex(":").upper() for each in (scene.ours.root, scene.ours.issuing)]
    scene.write(f'anchors_url_cafile = "{scene.web_ca}"', f"anchors_sha256 = {json.dumps(pins)}")
    scene.start()
    assert answer(scene.broker, scene.ours.anchors, scene.ours.device("meter-1")) == IN
    assert scene.refused(scene.theirs.device("meter-2"))
    scene.web.pages[PAGE] = scene.theirs.anchors.encode()
    [event] = wait_until(lambda: scene.broker.events("ANCHORS_REFUSED"), "none is pinned")
    assert event["detail"] == "anchors_sha256 names none of the 2 certificates"


def test_by_plain_http_the_pinned_set_is_neither_grown_nor_shrunk(scene: Scene) -> None:
    plain = scene.stack.enter_context(WebServer())
    plain.pages[PAGE] = (scene.ours.anchors + scene.theirs.anchors).encode()
    pins = [each.certificate.fingerprint(SHA256()).hex() for each in (scene.ours.root, scene.ours.issuing)]
    scene.write(f"anchors_sha256 = {json.dumps(pins)}", url=plain.url + PAGE)
    scene.start()
    client = scene.connect(scene.ours, "meter-1")
    assert scene.refused(scene.theirs.device("meter-2"))
    plain.pages[PAGE] = pem_of(scene.ours.root.certificate)
    [event] = wait_until(lambda: scene.broker.events("ANCHORS_REFUSED"), "one is missing")
    assert event["detail"] == f"the certificate {pins[1]} of anchors_sha256 is not there"
    client.check_alive()


def test_a_new_url_in_the_settings_is_fetched_by_the_reload(scene: Scene) -> None:
    scene.start()
    ours = scene.connect(scene.ours, "meter-1")
    scene.web.pages["/theirs"] = b64encode(
        pkcs7.serialize_certificates([scene.theirs.root.certificate, scene.theirs.issuing.certificate], Encoding.DER)
    )
    scene.write(f'anchors_url_cafile = "{scene.web_ca}"', url=f"{scene.web.url}/theirs")
    assert ours.farewell().reason_code is ReasonCode.NOT_AUTHORIZED
    scene.connect(scene.theirs, "meter-2")
    # It is told of after everybody was judged by it.
    wait_until(lambda: scene.broker.events("RELOADED", part="trust"), "the reload has ended")
    before = len(scene.broker.events("RELOADED", part="trust"))
    scene.web.pages["/theirs"] = (scene.ours.anchors + scene.theirs.anchors).encode()
    wait_until(lambda: len(scene.broker.events("RELOADED", part="trust")) > before, "it is followed from now on")
    scene.connect(scene.ours, "meter-1")
    scene.write(f'anchors_url_cafile = "{scene.web_ca}"', url=f"{scene.web.url}/none")
    [event] = wait_until(lambda: scene.broker.events("RELOAD_REFUSED", part="trust"), "nothing is there")
    assert f"{scene.web.url}/none could not be fetched yet" in event["detail"]
    scene.connect(scene.theirs, "meter-3")


def test_the_cacerts_of_our_own_service_are_anchors(scene: Scene, service: ProvisioningService) -> None:
    scene.write(
        f'anchors_url_cafile = "{service.bundle}"', 'required_eku = ["clientAuth"]',
        url=f"{service.https}/.well-known/est/cacerts",
    )  # fmt: skip
    scene.start()
    assert {each["url"] for each in [scene.shown()]} == {f"{service.https}/.well-known/est/cacerts"}
    [copy] = scene.copies
    assert sorted(copy.read_text().split("-----END")) == sorted(service.bundle.read_text().split("-----END"))
