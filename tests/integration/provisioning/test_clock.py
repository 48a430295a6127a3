"""The clock of a running service is set forward and back, by libfaketime: what is issued, listed, spent and refused.

curl and openssl are moved with it: what they refuse, they would refuse with the right time and such a certificate.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import CompletedProcess

import httpx
import pytest
from cryptography import x509

from tests.support.broker_process import wait_until
from tests.support.ca_life import ca, roll_over
from tests.support.curl import Curl, CurlAnswer
from tests.support.faketime import FakeClock
from tests.support.openssl import OpensslDevice, openssl
from tests.support.prepared_fleet import prepared
from tests.support.provisioning import ProvisioningService

FAST = {"crl_debounce_seconds": 0.05, "feed_heartbeat_seconds": 0.2}
NOTICED = 90
"""Seconds in which the service has looked at the wall clock: it does so every 15."""
SLOWLY = 0.4
"""Seconds between two questions whether it has."""
JSON = ("--header", "Content-Type: application/json")
MINUTE = timedelta(minutes=1)
TOLERANCE = timedelta(minutes=2)
"""For the seconds that a step takes; what is looked for is days."""


class Moved:
    """A service, and what a device and an operator do at it; both have its clock."""

    def __init__(self, service: ProvisioningService, clock: FakeClock, directory: Path) -> None:
        self.service = service
        self.clock = clock
        self._directory = directory
        self._plain = httpx.Client(base_url=service.http, trust_env=False)
        self.numbers: list[int] = []

    def close(self) -> None:
        self._plain.close()

    def command(self, *arguments: str) -> str:
        """Run a command as soon as the service proves again that its certificate is good: every 15 s it looks."""

        def run() -> CompletedProcess[str] | None:
            done = self.service.command(*arguments, "--dir", str(self.service.dir), "--url", self.service.https)
            return None if "OCSP stapling" in done.stderr else done

        done: CompletedProcess[str] = wait_until(run, "the service has a proof of its own", NOTICED, SLOWLY)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def token(self, name: str, **more: object) -> str:
        operator = Curl(self.service.https, self.service.bundle, self.service.operator)
        order = {"device": name, "group": "north", "ttl_seconds": 3600, **more}
        answer = operator.run("/v1/tokens", *JSON, data=json.dumps(order).encode())
        assert answer.status == 201, answer.text
        token: str = json.loads(answer.body)["tokens"][0]["token"]
        return token

    def enrol(self, name: str, token: str, *options: str) -> tuple[OpensslDevice, CurlAnswer]:
        device = OpensslDevice(self._directory, name)
        stranger = Curl(self.service.https, self.service.bundle)
        answer = stranger.est("simpleenroll", device.request(), "--user", f"{name}:{token}", *options)
        if answer.status == 200:
            device.take(answer.body)
        return device, answer

    def renewal(self, device: OpensslDevice) -> CurlAnswer:
        csr = device.renewal(f"URI:spiffe://fleet.internal/device/north/{device.name}", new_key=False)
        return Curl(self.service.https, self.service.bundle, device.credential).est("simplereenroll", csr)

    def list(self) -> x509.CertificateRevocationList:
        """Return the newest list; remember its number."""
        found = x509.load_der_x509_crl(self._plain.get("/crl/issuing-ca.crl").content)
        number = found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        if not self.numbers or self.numbers[-1] != number:
            self.numbers.append(number)
        return found

    def wait_for_a_list(self) -> None:
        """Wait until there is a list that is good by the service's clock."""

        def good() -> bool:
            found = self.list()
            ends = found.next_update_utc
            return ends is not None and found.last_update_utc - TOLERANCE <= self.clock.now() < ends

        wait_until(good, "a list that is good now", NOTICED, SLOWLY)

    def ready(self) -> dict[str, str]:
        checks: dict[str, str] = self._plain.get("/readyz").json()["checks"]
        return checks

    def ocsp(self, device: OpensslDevice) -> str:
        out = openssl("ocsp", "-issuer", self.service.dir / "issuing-ca.crt", "-cert", device.certificate, "-url",
                      f"{self.service.http}/ocsp", "-CAfile", self.service.bundle, "-no_nonce")  # fmt: skip
        return out.decode().partition(": ")[2].split()[0]


def read(device: OpensslDevice) -> x509.Certificate:
    return x509.load_pem_x509_certificate(device.certificate.read_bytes())


@pytest.fixture
def moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Moved]:
    prepared()  # Founded by the true clock.
    clock = FakeClock.new(tmp_path)
    clock.enter(monkeypatch)
    with ProvisioningService.copied(tmp_path / "fleet", FAST) as service:
        each = Moved(service, clock, tmp_path)
        yield each
        each.close()


def test_a_clock_that_goes_forward_and_back(moved: Moved) -> None:
    service, clock = moved.service, moved.clock
    early, answer = moved.enrol("early", moved.token("early"))
    assert answer.status == 200, answer.text
    brief, answer = moved.enrol("brief", moved.token("brief", lifetime_seconds=24 * 3600))
    assert answer.status == 200, answer.text
    unspent = moved.token("late")
    moved.wait_for_a_list()
    authority = x509.load_pem_x509_certificate((service.dir / "issuing-ca.crt").read_bytes())

    # Three weeks ahead: what is issued carries that time, no more; what was promised for an hour is over.
    clock.set(timedelta(days=21))
    moved.wait_for_a_list()
    wait_until(lambda: '"CLOCK_SET"' in service.log, "the log tells it", NOTICED, SLOWLY)
    _, refused = moved.enrol("late", unspent)
    assert (refused.status, refused.text.partition(":")[0]) == (401, "TOKEN_EXPIRED")
    ahead, answer = moved.enrol("ahead", moved.token("ahead"))
    assert answer.status == 200, answer.text
    begun = read(ahead).not_valid_before_utc
    assert abs(begun + MINUTE - clock.now()) < TOLERANCE
    renewed = moved.renewal(early)
    assert renewed.status == 200, renewed.text
    wait_until(lambda: moved.ready()["ocsp_signer"] == "ok", "the OCSP signer has noticed, too", NOTICED, SLOWLY)
    assert moved.ocsp(ahead) == "good"
    moved.command("revoke", "--device", "early", "--reason", "keyCompromise")
    moved.command("revoke", "--device", "brief", "--reason", "privilegeWithdrawn")  # By this clock it has expired.
    gone = read(early).serial_number
    wait_until(
        lambda: moved.list().get_revoked_certificate_by_serial_number(gone) is not None, "it is listed", pause=SLOWLY
    )

    # Past the end of the issuing CA: nothing is issued, and nothing is spent.
    kept = moved.token("patient")
    clock.set(authority.not_valid_after_utc - datetime.now(UTC) + timedelta(days=1))
    _, refused = moved.enrol("patient", kept, "--insecure")
    assert refused.status in {401, 503}, refused.text
    assert moved.ready()["issuing_ca"] == "expired"

    # Back: numbers go on rising, the list is of now, and whoever was revoked meanwhile still is.
    clock.set(timedelta())
    moved.wait_for_a_list()
    wait_until(
        lambda: moved.ready()["issuing_ca"] == "ok" and moved.ready()["ocsp_signer"] == "ok", "ready", NOTICED, SLOWLY
    )
    for serial in (gone, read(brief).serial_number):
        assert moved.list().get_revoked_certificate_by_serial_number(serial) is not None
    assert moved.ocsp(brief) == "revoked"
    _, answer = moved.enrol("late", unspent)
    assert answer.status == 200, "its hour is not over"
    now, answer = moved.enrol("now", moved.token("now"))
    assert answer.status == 200, answer.text
    assert abs(read(now).not_valid_before_utc + MINUTE - clock.now()) < TOLERANCE
    assert moved.ocsp(now) == "good"
    refused = moved.renewal(ahead)
    assert (refused.status, refused.text.partition(":")[0]) == (403, "CERTIFICATE_EXPIRED"), "it has not begun"
    again, answer = moved.enrol("ahead", moved.token("ahead"))
    assert answer.status == 200, "an operator's word gets it another"
    assert read(again).not_valid_before_utc < clock.now()

    # Before the CA began: as after its end. The token is worth what it was.
    waiting = moved.token("patient")
    clock.set(authority.not_valid_before_utc - datetime.now(UTC) - timedelta(days=1))
    _, refused = moved.enrol("patient", waiting, "--insecure")
    assert (refused.status, refused.text.partition(":")[0]) == (503, "UNAVAILABLE")
    assert "an operator has to set the clock" in refused.text
    assert moved.ready()["issuing_ca"] == "not yet valid", "a successor, as of one that has expired, would not help"
    clock.set(timedelta())
    moved.wait_for_a_list()
    _, answer = moved.enrol("patient", waiting)
    assert answer.status == 200, answer.text

    assert moved.numbers == sorted(set(moved.numbers)), "a list's number never falls"
    assert len(moved.numbers) >= 4
    serials = service.stored("SELECT serial FROM certificates")
    assert len(set(serials)) == len(serials)
    for (der,) in service.stored("SELECT der FROM certificates"):
        certificate = x509.load_der_x509_certificate(der)
        if certificate.issuer == authority.subject:
            assert authority.not_valid_before_utc - TOLERANCE <= certificate.not_valid_before_utc
            assert certificate.not_valid_after_utc <= authority.not_valid_after_utc
            assert certificate.not_valid_before_utc < datetime.now(UTC) + timedelta(days=22)
    verified = service.command("audit", "verify", "--dir", str(service.dir))
    assert verified.returncode == 0, verified.stdout
    assert "Traceback" not in service.log


def test_a_service_whose_issuing_ca_has_ended_starts_and_has_the_next_one_issue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared()
    clock = FakeClock.new(tmp_path)
    clock.enter(monkeypatch)
    idle = ProvisioningService.copied(tmp_path / "fleet", FAST)
    authority = x509.load_pem_x509_certificate((idle.dir / "issuing-ca.crt").read_bytes())
    clock.set(authority.not_valid_after_utc - datetime.now(UTC) + timedelta(days=1))
    with idle as service, closing(Moved(service, clock, tmp_path)) as moved:
        assert moved.ready()["issuing_ca"] == "expired"
        assert "server certificate not renewed" in service.log, "who reads the log is told why none can be reached"
        roll_over(service, "issuing-2")
        assert moved.ready()["issuing_ca"] == "ok"
        ca(service, "restore-operator")  # Whose certificate has ended, too.
        device, answer = moved.enrol("meter-1", moved.token("meter-1"))
        assert answer.status == 200, answer.text
        assert read(device).not_valid_before_utc < clock.now()


def test_no_authority_is_founded_by_a_clock_that_nobody_has_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a machine without a battery: its root would have ended as soon as the time is known."""
    clock = FakeClock.new(tmp_path)
    clock.enter(monkeypatch)
    service = ProvisioningService(tmp_path / "fleet")
    clock.set(datetime(1970, 1, 1, 0, 1, tzinfo=UTC) - datetime.now(UTC))
    refused = service.command("init", "--dir", str(service.dir))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "the clock says 1970-01-01 00:0" in refused.stderr
    assert "set the clock" in refused.stderr
    clock.set(timedelta())
    service.command("init", "--dir", str(service.dir), check=True)


def clock_finding(service: ProvisioningService) -> dict[str, str]:
    done = service.command("doctor", "--json", "--dir", str(service.dir))
    found: list[dict[str, str]] = [each for each in json.loads(done.stdout) if each["check"] == "clock"]
    (finding,) = found
    return finding


def test_a_clock_that_is_behind_is_found_though_the_service_has_gone_on_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared()  # Founded by the true clock.
    clock = FakeClock.new(tmp_path)
    clock.enter(monkeypatch)
    service = ProvisioningService.copied(tmp_path / "fleet", {"port": 0, "http_port": 0})
    clock.set(timedelta(days=3))
    with service:
        service.token(device="meter-1")
    clock.set(timedelta(days=1))
    assert clock_finding(service)["verdict"] == "failed"
    with service:
        wait_until(lambda: '"CLOCK_BEHIND"' in service.log, "the service has compared its clock")
        service.token(device="meter-2")
    finding = clock_finding(service)
    assert finding["verdict"] == "warning"
    assert "but an entry was recorded at" in finding["detail"]
    assert "audit show" in finding["remedy"]
