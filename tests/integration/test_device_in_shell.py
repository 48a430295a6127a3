"""The program of docs/device-in-shell.md enrols and renews in any shell, and no power failure leaves half a pair."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key, pkcs7

from provisioning.pki.keys import key_to_pem, spki_fingerprint
from tests.support.broker_process import wait_until
from tests.support.faketime import FakeClock
from tests.support.pki import Pki
from tests.support.provisioning import REPOSITORY, ProvisioningService

LATER = 75
SHELLS = ["sh", "bash", "busybox"]
_SETTINGS = "SERVICE=https://ca.example.org:8443 "
_PLACE = "cd /var/lib/device "


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ProvisioningService]:
    with ProvisioningService.copied(tmp_path / "fleet", {"feed_heartbeat_seconds": 1}) as running:
        running.command("group", "create", "north", "--way", "token", *there(running), check=True)
        yield running


def there(service: ProvisioningService) -> tuple[str, ...]:
    return "--dir", str(service.dir), "--url", service.https


@dataclass
class Device:
    """Where the program runs, by which shell."""

    directory: Path
    service: ProvisioningService
    shell: str
    tools: Path

    @classmethod
    def new(cls, directory: Path, service: ProvisioningService, shell: str = "sh") -> Device:
        (script,) = re.findall(
            r"^```sh\n(#!/bin/sh\n.*?)^```$",
            (REPOSITORY / "docs" / "device-in-shell.md").read_text(encoding="utf-8"),
            re.MULTILINE | re.DOTALL,
        )
        place, tools = directory / "device", directory / "tools"
        place.mkdir()
        tools.mkdir()
        for told, here in ((_SETTINGS, f"SERVICE={service.https} "), (_PLACE, f"cd {place} ")):
            assert script.count(told) == 1
            script = script.replace(told, here)
        (directory / "device.sh").write_text(script, encoding="utf-8")
        shutil.copy(service.bundle, place / "ca-bundle.crt")
        if shell == "busybox":
            for tool in ("cat", "chmod", "date", "expr", "grep", "mv", "rm", "sed", "sh", "sync", "tr"):
                (tools / tool).symlink_to(shutil.which("busybox") or "")
        return cls(place, service, shell, tools)

    @property
    def pair(self) -> Path:
        return self.directory / "pair.pem"

    def given_token(self) -> None:
        (self.directory / "token").write_text(self.service.token(device="meter-1", group="north"))

    def run(self) -> tuple[int, str]:
        """Return the program's exit code, and what it says."""
        words = ["busybox", "sh"] if self.shell == "busybox" else [self.shell]
        ran = subprocess.run(
            [*words, str(self.directory.parent / "device.sh")],
            env=os.environ | {"PATH": f"{self.tools}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ran.stdout == ""
        return ran.returncode, ran.stderr

    def certificate(self) -> x509.Certificate:
        """Return the pair's certificate, whose key is the other half."""
        content = self.pair.read_bytes()
        certificate = x509.load_pem_x509_certificate(content)
        key = load_pem_private_key(content[content.index(b"-----BEGIN PRIVATE") :], None)
        assert certificate.public_key() == key.public_key()
        assert self.pair.stat().st_mode & 0o777 == 0o600
        return certificate

    def fails_at(self, number: int) -> None:
        """Let the power fail at the *number*-th time that something has to be on disk."""
        count = self.directory.parent / "count"
        count.write_text("")
        self.has("sync", f'echo >> {count}\n[ "$(wc -l < {count})" != {number} ] || kill -9 $PPID')

    def has(self, tool: str, does: str) -> None:
        """Put a program of that name in front of the machine's."""
        place = self.tools / tool
        place.unlink(missing_ok=True)
        place.write_text(f"#!/bin/sh\n{does}\n")
        place.chmod(0o755)


def issued(service: ProvisioningService) -> int:
    with service.api() as api:
        return len(api.get("/v1/certificates", params={"device": "meter-1"}).json()["items"])


def keys_in(bundle: bytes) -> set[bytes]:
    """Return whose certificates they are, by their keys."""
    return {spki_fingerprint(each.public_key()) for each in x509.load_pem_x509_certificates(bundle)}


def keys(bundle: Path) -> set[bytes]:
    return keys_in(bundle.read_bytes())


def altered(certificate: x509.Certificate) -> x509.Certificate:
    """Return *certificate* with a signature that is none."""
    der = certificate.public_bytes(Encoding.DER)
    return x509.load_der_x509_certificate(der[:-1] + bytes((der[-1] ^ 1,)))


@pytest.mark.parametrize("shell", [each for each in SHELLS if shutil.which(each)])
def test_it_enrols_renews_when_told_and_comes_back_with_a_token(
    shell: str, tmp_path: Path, service: ProvisioningService
) -> None:
    device = Device.new(tmp_path, service, shell)
    assert device.run() == (1, "no certificate, and no token to ask for one\n")
    device.given_token()
    assert device.run() == (0, "")
    first = device.certificate()
    assert {each.name for each in device.directory.iterdir()} == {"ca-bundle.crt", "pair.pem", "lock"}
    assert device.run() == (0, "")
    assert device.certificate() == first, "it is not due"

    service.command("renewal", "hasten", "--group", "north", *there(service), check=True)
    assert device.run() == (0, "")
    second = device.certificate()
    assert second.serial_number != first.serial_number
    assert second.public_key() != first.public_key()

    service.command("renewal", "hasten", "--group", "north", *there(service), check=True)
    service.revoke(devices=["meter-1"], reason="superseded")
    code, said = device.run()
    assert (code, said.startswith("refused: 403 CERTIFICATE_REVOKED: ")) == (1, True), said
    assert device.certificate() == second
    device.given_token()
    assert device.run() == (0, "")
    assert device.certificate().serial_number not in {first.serial_number, second.serial_number}

    service.command("renewal", "hasten", "--group", "north", *there(service), check=True)
    service.stop()
    code, said = device.run()
    assert (code, said.endswith("no answer (curl: 7)\n")) == (LATER, True), said


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6])
def test_the_power_fails_and_the_next_run_gets_the_same_certificate(
    number: int, tmp_path: Path, service: ProvisioningService
) -> None:
    device = Device.new(tmp_path, service)
    device.given_token()
    device.fails_at(number)
    assert device.run()[0] == -9
    assert device.run() == (0, "")
    first = device.certificate()
    assert issued(service) == 1
    service.command("renewal", "hasten", "--group", "north", *there(service), check=True)
    device.fails_at(number)
    assert device.run()[0] == -9
    device.certificate()
    assert device.run() == (0, "")
    assert device.certificate().serial_number != first.serial_number
    assert issued(service) == 2


def test_a_power_failure_behind_the_new_pair_costs_no_token_however_long_it_lasts(
    tmp_path: Path, service: ProvisioningService
) -> None:
    service.command("group", "set", "north", "--same-key", "0", *there(service), check=True)
    device = Device.new(tmp_path, service)
    device.given_token()
    for number in (4, 1, 1):  # What it gets is on disk then: the token is not needed any more.
        device.fails_at(number)
        assert device.run()[0] == -9
    device.fails_at(0)
    assert device.run() == (0, "")
    device.certificate()
    assert issued(service) == 1
    assert {each.name for each in device.directory.iterdir()} == {"ca-bundle.crt", "pair.pem", "lock"}


def test_a_pair_that_cannot_take_its_place_is_kept_with_its_key(tmp_path: Path, service: ProvisioningService) -> None:
    service.command("group", "set", "north", "--same-key", "0", *there(service), check=True)
    device = Device.new(tmp_path, service)
    device.given_token()
    device.has("mv", f'[ "$2" != pair.pem ] || exit 1\nexec {shutil.which("mv")} "$@"')
    assert device.run()[0] == 1
    (device.tools / "mv").unlink()
    assert device.run() == (0, "")
    device.certificate()
    assert issued(service) == 1


@pytest.mark.parametrize("rest", ["", "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg"])
def test_half_a_key_that_a_full_disk_has_left_is_made_anew(
    rest: str, tmp_path: Path, service: ProvisioningService
) -> None:
    device = Device.new(tmp_path, service)
    device.given_token()
    (device.directory / "next.key").write_text(rest)
    assert device.run() == (0, "")
    device.certificate()


@pytest.mark.parametrize(
    ("status", "body", "code", "said"),
    [
        ("202", "an operator decides", LATER, "later: 202 an operator decides\n"),
        ("401", "", 1, "refused: 401 \n"),
        ("403", "$(reboot) `reboot` %s", 1, "refused: 403 $(reboot) `reboot` %s\n"),
        ("500", "", LATER, "later: 500 \n"),
        ("200", "<html>no certificate</html>\n", LATER, "no certificate for next.key in the answer\n"),
        ("200", "", LATER, "no certificate for next.key in the answer\n"),
    ],
)
def test_whatever_the_service_answers_the_pair_stays(
    status: str, body: str, code: int, said: str, tmp_path: Path, service: ProvisioningService
) -> None:
    device = Device.new(tmp_path, service)
    device.given_token()
    assert device.run() == (0, "")
    before = device.pair.read_bytes()
    (device.directory / "answer").write_text("of another day")
    device.given_token()
    (tmp_path / "body").write_text(body)
    device.has("curl", f"cat {tmp_path / 'body'} > answer\nprintf {status}")
    ended, lines = device.run()
    assert ended == code
    assert lines.endswith(said), lines
    assert device.pair.read_bytes() == before
    (device.tools / "curl").unlink()
    assert device.run() == (0, "")
    device.certificate()


def test_an_answer_that_finds_no_room_or_is_not_what_was_asked_for_is_told_of(
    tmp_path: Path, service: ProvisioningService
) -> None:
    device = Device.new(tmp_path, service)
    device.given_token()
    device.has("curl", "exit 23")  # What curl 8 does on a full disk, without a word.
    assert device.run() == (LATER, "no answer (curl: 23)\n")

    pki = Pki()
    mine = pki.device("meter-1", "north")
    ended = pki.device(
        "meter-1", "north", not_before=pki.now - timedelta(days=2), not_after=pki.now - timedelta(days=1)
    )
    others = (pki.device("meter-10", "north"), pki.device("meter-1", "south"), ended)
    device.has("curl", f'case "$*" in */est/north/cacerts*) exit 7; esac\ncat {tmp_path / "body"} > answer\nprintf 200')
    for given in (*others, mine):
        device.given_token()
        (device.directory / "next.key").write_bytes(key_to_pem(given.key))
        message = pkcs7.serialize_certificates([given.certificate], Encoding.DER)
        (tmp_path / "body").write_bytes(base64.encodebytes(message))
        said = (
            "the certificate in the answer has ended, or is not that of spiffe://fleet.internal/device/north/meter-1\n"
        )
        assert device.run() == ((0, "ca-bundle.crt stays as it was\n") if given is mine else (1, said))
    assert device.certificate() == mine.certificate

    device.has("curl", """echo '{"suggestedWindow":{"start":"zero","end":"never"}}'""")
    code, said = device.run()
    assert (code, said.startswith("no time to renew: ")) == (LATER, True), "it would never be due"


def test_a_broken_pair_is_a_matter_for_a_person(tmp_path: Path, service: ProvisioningService) -> None:
    device = Device.new(tmp_path, service)
    device.pair.write_text("-----BEGIN CERT")
    code, said = device.run()
    assert (code, said.endswith("pair.pem holds no certificate\n")) == (1, True), said


def test_a_renewal_brings_the_roots_that_there_are_then(tmp_path: Path, service: ProvisioningService) -> None:
    device = Device.new(tmp_path, service)
    device.given_token()
    assert device.run() == (0, "")
    before = keys(device.directory / "ca-bundle.crt")
    service.command("ca", "root", "begin", "--dir", str(service.dir), check=True)
    wait_until(lambda: keys_in(httpx.get(f"{service.http}/ca/bundle.pem").content) > before, "the next root")
    service.command("renewal", "hasten", "--group", "north", *there(service), check=True)
    assert device.run() == (0, "")
    assert keys(device.directory / "ca-bundle.crt") == keys(service.bundle) > before
    assert (device.directory / "ca-bundle.crt").stat().st_mode & 0o777 == 0o644
    genuine = set(x509.load_pem_x509_certificates((device.directory / "ca-bundle.crt").read_bytes()))

    # Whoever has copied the service's key is believed for a while, and leaves no root behind.
    pki, stolen = Pki(), load_pem_private_key((service.dir / "server.key").read_bytes(), None)
    own = x509.load_pem_x509_certificate((service.dir / "server.crt").read_bytes())
    fakes = [own, pki.root.certificate, pki.authority("of the service's key", key=stolen).certificate]
    fakes += [altered(each) for each in genuine]
    message = pkcs7.serialize_certificates([*genuine, *fakes], Encoding.DER)
    (forged := tmp_path / "forged").write_bytes(base64.encodebytes(message))
    device.has("curl", f'{shutil.which("curl")} "$@" || exit\ncase "$*" in */cacerts*) cp {forged} answer ;; esac')
    service.command("renewal", "hasten", "--group", "north", *there(service), check=True)
    assert device.run() == (0, "a CA that none here vouches for was left out\n")
    assert set(x509.load_pem_x509_certificates((device.directory / "ca-bundle.crt").read_bytes())) == genuine


def test_a_token_is_not_asked_for_twice_at_once(tmp_path: Path, service: ProvisioningService) -> None:
    device = Device.new(tmp_path, service)
    device.given_token()
    with (device.directory / "lock").open("w") as lock:
        held = subprocess.run(["flock", "-n", str(lock.fileno())], pass_fds=[lock.fileno()], check=False)
        assert held.returncode == 0
        assert device.run() == (LATER, "")
    assert device.run() == (0, "")


def test_by_a_wrong_clock_nothing_is_sent(
    tmp_path: Path, service: ProvisioningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device.new(tmp_path, service)
    device.given_token()
    clock = FakeClock.new(tmp_path)
    clock.set(timedelta(days=-400))
    with monkeypatch.context() as theirs:
        clock.enter(theirs)
        code, said = device.run()
    assert (code, "certificate is not yet valid" in said) == (LATER, True), said
    assert issued(service) == 0
    assert device.run() == (0, "")
    device.certificate()
