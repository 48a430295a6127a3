"""``serve --workers``: several service processes of one command, as real processes on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import re
import select
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.x509 import ocsp
from prometheus_client.parser import text_string_to_metric_families

from provisioning.client.feed_reader import RevocationEvent
from provisioning.pki.keys import spki_fingerprint
from tests.support.broker_process import wait_until
from tests.support.curl import Curl
from tests.support.enrolled import enrol, spent
from tests.support.feed_events import follow
from tests.support.ocsp import SHA256, request_der
from tests.support.openssl import OpensslDevice
from tests.support.postgresql import PostgresqlServer
from tests.support.prepared_fleet import PASSPHRASE
from tests.support.provisioning import REPOSITORY, ProvisioningService
from tests.support.workers import ends_of, one_to_each, workers_of

# A heartbeat that is longer than the tests wait: what arrives was pushed.
SETTINGS = {"workers": 2, "metrics": "loopback", "crl_debounce_seconds": 0.05, "feed_heartbeat_seconds": 60}
PATIENCE = 60
GOOD, REVOKED = ocsp.OCSPCertStatus.GOOD, ocsp.OCSPCertStatus.REVOKED


@pytest.fixture(scope="module")
def service(postgresql: PostgresqlServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProvisioningService]:
    directory = tmp_path_factory.mktemp("workers") / "fleet"
    with ProvisioningService.copied_on(postgresql, directory, SETTINGS) as idle, idle as running:
        yield running


def figures(service: ProvisioningService, name: str, **labels: str) -> dict[str, float]:
    """Return the samples called *name* that have *labels*, by worker, from one scrape."""
    page = Curl(service.http).run("/metrics").text
    return {
        sample.labels["worker"]: sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    }


async def test_a_token_that_is_used_at_all_workers_at_once_is_spent_once_and_a_scrape_tells_of_all(
    service: ProvisioningService,
) -> None:
    attempts = 16  # That one worker gets none of them happens once in 30,000 times.
    token = await asyncio.to_thread(service.token, device="meter-1", group="north")

    outcomes = Counter(await asyncio.gather(*(spent(service, "meter-1", token) for _ in range(attempts))))
    assert outcomes == {"enrolled": 1, "TOKEN_USED": attempts - 1}
    refused = await asyncio.to_thread(figures, service, "fleet_provisioning_refusals_total", code="TOKEN_USED")
    assert sum(refused.values()) == attempts - 1
    assert sorted(refused) == ["1", "2"]
    assert all(refused.values()), "each worker had some"
    assert await asyncio.to_thread(figures, service, "fleet_provisioning_worker_up") == {"1": 1.0, "2": 1.0}


def test_the_page_is_as_documented_and_has_what_the_alerts_watch(service: ProvisioningService) -> None:
    page = Curl(service.http).run("/metrics").text
    shown = {name for name in re.findall(r"^# TYPE (\w+) ", page, re.MULTILINE) if not name.endswith("_created")}
    reference = (REPOSITORY / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`(fleet_provisioning_\w+)`", reference))
    assert documented == {name for name in shown if name.startswith("fleet_")}
    rules = (REPOSITORY / "deploy" / "prometheus" / "alerts.yml").read_text(encoding="utf-8")
    watched = set(re.findall(r"\bfleet_provisioning_\w+", rules))
    assert watched - shown == set()
    assert len(watched) > 6
    fit = figures(service, "fleet_provisioning_ready", check="store")
    assert fit == {"1": 1.0, "2": 1.0}, "each worker for itself"


def test_what_is_the_same_for_all_is_looked_at_by_one_worker(service: ProvisioningService) -> None:
    """Each would ask the store the same, and log it: that the last admin's certificate ends, once a worker."""
    guarded = "fleet_provisioning_audit_triggers_disabled"
    assert wait_until(lambda: figures(service, guarded), "the first look") == {"1": 0}
    last = "fleet_provisioning_operators_not_after_timestamp_seconds"
    assert wait_until(lambda: figures(service, last, operator_role="admin"), "the first look").keys() == {"1"}


def test_curl_enrols_and_what_is_printed_and_logged_names_no_secret(
    service: ProvisioningService, tmp_path: Path
) -> None:
    device = OpensslDevice(tmp_path, "meter-2")
    token = service.token(device="meter-2", group="north")
    answer = Curl(service.https, service.bundle).est("simpleenroll", device.request(), "--user", f"meter-2:{token}")
    assert answer.status == 200, answer.text
    device.take(answer.body)
    for pid in (service.pid, *workers_of(service.pid)):
        assert PASSPHRASE not in Path(f"/proc/{pid}/cmdline").read_text()
    assert PASSPHRASE not in service.log
    assert token not in service.log
    assert {1, 2} <= {int(number) for number in re.findall(r'"worker": (\d+)', service.log)}


class Asked:
    """A kept connection to the plain port of one worker."""

    def __init__(self, service: ProvisioningService) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(service.http).netloc, timeout=PATIENCE)
        assert self._get("/healthz") == b'{"status":"ok"}'
        self.socket: socket.socket = self._connection.sock

    def close(self) -> None:
        self._connection.close()

    def ask(self, request: bytes) -> ocsp.OCSPResponse:
        """Ask for a certificate's status."""
        self._connection.request("POST", "/ocsp", request, {"Content-Type": "application/ocsp-request"})
        return ocsp.load_der_ocsp_response(self._connection.getresponse().read())

    def crl_length(self) -> int:
        """Return how many certificates the list of the issuing CA has."""
        return len(x509.load_der_x509_crl(self._get("/crl/issuing-ca.crl")))

    def ready(self) -> int:
        """Return the status of the worker's readiness."""
        self._connection.request("GET", "/readyz")
        answer = self._connection.getresponse()
        answer.read()
        return answer.status

    def _get(self, path: str) -> bytes:
        self._connection.request("GET", path)
        return self._connection.getresponse().read()


def asked_of_each(service: ProvisioningService) -> AbstractContextManager[list[Asked]]:
    return one_to_each(workers_of(service.pid), lambda: Asked(service))


async def test_a_revocation_through_any_worker_is_told_by_every_workers_ocsp_crl_and_feed(
    service: ProvisioningService,
) -> None:
    (device,) = await asyncio.to_thread(enrol, service, "meter-3")
    issuer = x509.load_pem_x509_certificate((service.dir / "issuing-ca.crt").read_bytes())
    question = request_der(device.certificate, issuer, SHA256)
    with asked_of_each(service) as each:
        await revoked_everywhere(service, each, question)


async def revoked_everywhere(service: ProvisioningService, each: list[Asked], question: bytes) -> None:
    assert [worker.ready() for worker in each] == [200, 200]
    answers = [worker.ask(question) for worker in each]
    assert [answer.certificate_status for answer in answers] == [GOOD, GOOD]  # Remembered from now on.
    signers = {spki_fingerprint(answer.certificates[0].public_key()) for answer in answers}
    assert len(signers) == 2, "forked workers have made the same key"
    lengths = [worker.crl_length() for worker in each]
    async with contextlib.AsyncExitStack() as stack, asyncio.timeout(PATIENCE):
        feeds = []
        while len(set(re.findall(r'"event": "feed subscribed", "worker": (\d+)', service.log))) < 2:
            feed = follow(service.https, service.bundle, service.operator, 0, heartbeat=60)
            feeds.append(await stack.enter_async_context(contextlib.aclosing(feed)))
            await anext(feed)
        with service.api() as api:
            assert api.get("/v1/status").json()["feed"]["subscribers"] == len(feeds), "at whichever worker"
        await asyncio.to_thread(service.revoke, device="meter-3")
        for feed in feeds:
            async for event in feed:
                if isinstance(event, RevocationEvent) and event.device == "meter-3":
                    break
    deadline = time.monotonic() + PATIENCE
    for worker, before in zip(each, lengths, strict=True):
        while worker.ask(question).certificate_status is not REVOKED or worker.crl_length() == before:
            assert time.monotonic() < deadline, "a worker that does not hear of it"
            await asyncio.sleep(0.01)


def test_a_claim_lets_its_device_through_the_tls_of_every_worker_at_once(service: ProvisioningService) -> None:
    with service.api() as api:
        order = {"name": "batch-1", "group": "north", "maximum_devices": 4, "life_seconds": 3600}
        made = api.post("/v1/claims", json=order)
        assert made.status_code == 201, made.text
    # Comparing with the store comes every three seconds: both have done so once more, because they were told.
    changes = re.findall(r'"anchors": 1, "event": "enrolment trust changed", "worker": (\d+)', service.log)
    assert sorted(changes) == ["1", "2"]


def test_a_port_that_has_workers_is_refused_to_another_service(service: ProvisioningService) -> None:
    for workers in ("1", "2"):
        done = serve(service, "--workers", workers, port=service.port)
        assert done.returncode == 1
        told = f"{service.dir} is served already, by process {service.pid}, at {service.https}"
        assert f"port {service.port} on 127.0.0.1 is in use: {told.replace('127.0.0.1', 'localhost')}" in done.stderr


def serve(service: ProvisioningService, *flags: str, port: int = 0) -> subprocess.CompletedProcess[str]:
    """Start a service that cannot start, and return what it said."""
    return service.command("serve", "--dir", str(service.dir), "--port", str(port), "--http-port", "0", *flags)


def test_what_keeps_workers_from_starting_is_told_once(service: ProvisioningService) -> None:
    done = serve(ProvisioningService(service.dir, {"workers": 2}))  # On SQLite, as no database is named.
    assert done.returncode == 1
    assert done.stderr == (
        "fleet-provisioning: workers: 2 processes need PostgreSQL, SQLite carries one: "
        "set database_url, or workers = 1\n"
    )
    settings = SETTINGS | {"database_url": service.database_url, "passphrase": "wrong"}
    done = serve(ProvisioningService(service.dir, settings))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("or the passphrase is wrong") == 1
    assert "Traceback" not in done.stderr


def test_a_killed_worker_is_replaced_a_killed_supervisor_leaves_none_and_ctrl_c_ends_all(
    postgresql: PostgresqlServer, tmp_path: Path
) -> None:
    with ProvisioningService.copied_on(postgresql, tmp_path / "fleet", SETTINGS) as service:
        service.start()
        killed, other = workers_of(service.pid)
        with asked_of_each(service) as (_, kept), ends_of([killed]) as ended:
            os.kill(killed, signal.SIGKILL)
            ended()
            assert kept.ready() == 200
        service.token(device="meter-1", group="north")
        deadline = time.monotonic() + PATIENCE
        while '"worker is back"' not in service.log:
            assert time.monotonic() < deadline, service.log
            time.sleep(0.01)
        again, replacing = workers_of(service.pid)
        assert again == other
        assert replacing != killed
        assert '"exit_code": 137' in service.log
        assert figures(service, "fleet_provisioning_worker_starts_total") == {"1": 2.0, "2": 1.0}
        assert figures(service, "fleet_provisioning_worker_up") == {"1": 1.0, "2": 1.0}

        with ends_of([other, replacing]) as ended:
            service.kill()
            ended()
        (left,) = service.stored("SELECT count(*) FROM serial_reservations")
        assert left == (63,), "those of the killed worker, one of which was used: the others have ended in order"

        service.start()
        workers = workers_of(service.pid)
        with ends_of(workers) as ended:
            for pid in (*workers, service.pid):  # The terminal sends it to everybody, twice if somebody is impatient.
                os.kill(pid, signal.SIGINT)
            assert service.stop(signal.SIGINT) == 0
            ended()
        assert service.stored("SELECT count(*) FROM serial_reservations") == [left]
        assert "Traceback" not in service.log


def answers_of_who_does_not_hang(service: ProvisioningService, question: bytes) -> set[ocsp.OCSPResponseStatus]:
    """Ask through several connections at once, as the kernel spreads them; return what those say that say anything."""
    address = urlsplit(service.http)
    head = f"POST /ocsp HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n"
    request = f"{head}Content-Type: application/ocsp-request\r\nContent-Length: {len(question)}\r\n\r\n".encode()
    found = set()
    with contextlib.ExitStack() as stack:
        waiting, tried = select.poll(), {}
        for _ in range(16):
            each = stack.enter_context(socket.create_connection((address.hostname, address.port), PATIENCE))
            each.sendall(request + question)
            waiting.register(each, select.POLLIN)
            tried[each.fileno()] = each
        ready = waiting.poll(PATIENCE * 1000)
        for number, _ in ready:
            answer = stack.enter_context(http.client.HTTPResponse(tried[number]))
            answer.begin()
            found.add(ocsp.load_der_ocsp_response(answer.read()).response_status)
    return found


async def test_a_worker_whose_fellow_hangs_calls_nobody_good_until_that_answers(
    postgresql: PostgresqlServer, tmp_path: Path
) -> None:
    """It served after half a minute, without what the other alone may have known."""
    with ProvisioningService.copied_on(postgresql, tmp_path / "fleet", SETTINGS) as idle, idle as service:
        (device,) = await asyncio.to_thread(enrol, service, "meter-1")
        issuer = x509.load_pem_x509_certificate((service.dir / "issuing-ca.crt").read_bytes())
        question = request_der(device.certificate, issuer, SHA256)
        killed, hanging = workers_of(service.pid)
        os.kill(hanging, signal.SIGSTOP)
        try:
            os.kill(killed, signal.SIGKILL)
            await asyncio.to_thread(wait_until, lambda: '"worker is back"' in service.log, "it accepts connections")
            assert '"code": "FELLOWS_IN_DOUBT"' in service.log
            said = await asyncio.to_thread(answers_of_who_does_not_hang, service, question)
            assert said == {ocsp.OCSPResponseStatus.TRY_LATER}
        finally:
            os.kill(hanging, signal.SIGCONT)
        good = {ocsp.OCSPResponseStatus.SUCCESSFUL}
        await asyncio.to_thread(
            wait_until, lambda: answers_of_who_does_not_hang(service, question) == good, "all are heard"
        )
