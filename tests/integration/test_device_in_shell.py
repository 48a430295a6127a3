"""The program of docs/device-in-shell.md enrols and renews in any shell, and no power failure leaves half a pair."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.support.faketime import FakeClock
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
            for tool in ("cat", "date", "expr", "grep", "mv", "rm", "sed", "sh", "sync", "tr"):
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
        sync = self.tools / "sync"
        sync.unlink(missing_ok=True)
        sync.write_text(f'#!/bin/sh\necho >> {count}\n[ "$(wc -l < {count})" != {number} ] || kill -9 $PPID\n')
        sync.chmod(0o755)


def issued(service: ProvisioningService) -> int:
    with service.api() as api:
        return len(api.get("/v1/certificates", params={"device": "meter-1"}).json()["items"])


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
    assert (code, "curl: (7)" in said) == (LATER, True), said


@pytest.mark.parametrize("number", [1, 2, 3, 4])
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
