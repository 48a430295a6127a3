"""Two services on one PostgreSQL, and one whose PostgreSQL goes away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from cryptography import x509
from cryptography.x509 import ocsp

from provisioning.client.csr import build_csr
from provisioning.client.est import EnrolmentUnavailable, EstClient
from provisioning.client.feed_reader import RevocationEvent
from provisioning.pki.keys import generate_key
from tests.support.broker_process import wait_until
from tests.support.curl import Curl
from tests.support.enrolled import Enrolled, enrol, spent
from tests.support.feed_events import follow
from tests.support.ocsp import SHA256, request_der
from tests.support.postgresql import PostgresqlServer
from tests.support.provisioning import ProvisioningService

# A heartbeat that is longer than the tests wait: what arrives was pushed.
EVERY_FEW_SECONDS = {
    "FEED_NOT_READ",
    "CAS_NOT_TAKEN_OVER",
    "ENROLMENT_TRUST_STALE",
    "MANUFACTURER_LIST_UNFETCHED",
    "MANUFACTURER_WATCH_FAILED",
}
"""What is said when the store cannot be read, of what is tried so often."""
SETTINGS = {
    "crl_debounce_seconds": 0.05,
    "feed_heartbeat_seconds": 60,
    "public_http_url": "http://ca.example.org",
}
PATIENCE = 60


@pytest.fixture(scope="module")
def two(
    postgresql: PostgresqlServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ProvisioningService, ProvisioningService]]:
    directory = tmp_path_factory.mktemp("several") / "fleet"
    with (
        ProvisioningService.copied_on(postgresql, directory, SETTINGS) as idle,
        idle as first,
        ProvisioningService(directory, SETTINGS | {"database_url": first.database_url}) as second,
    ):
        yield first, second


async def test_a_device_that_enrols_at_both_at_once_gets_one_certificate_for_its_token(
    two: tuple[ProvisioningService, ProvisioningService],
) -> None:
    token = two[0].token(device="meter-1", group="north")

    attempts = [spent(service, "meter-1", token) for service in (*two, *two)]
    assert sorted(await asyncio.gather(*attempts)) == ["TOKEN_USED"] * 3 + ["enrolled"]
    with two[1].api() as api:
        assert api.get("/v1/devices/meter-1").json()["certificates"] == 1


def status_at(service: ProvisioningService, device: Enrolled) -> ocsp.OCSPCertStatus:
    issuer = x509.load_pem_x509_certificate((service.dir / "issuing-ca.crt").read_bytes())
    answer = Curl(service.http).run(
        "/ocsp",
        "--header",
        "Content-Type: application/ocsp-request",
        data=request_der(device.certificate, issuer, SHA256),
    )
    return ocsp.load_der_ocsp_response(answer.body).certificate_status


async def test_a_revocation_in_one_is_pushed_by_the_other_and_its_answers_change(
    two: tuple[ProvisioningService, ProvisioningService],
) -> None:
    first, second = two
    (device,) = await asyncio.to_thread(enrol, first, "meter-2")
    assert status_at(second, device) is ocsp.OCSPCertStatus.GOOD  # Remembered from now on.
    feed = follow(second.https, second.bundle, second.operator, 0, heartbeat=60)
    async with contextlib.aclosing(feed), asyncio.timeout(PATIENCE):
        await anext(feed)
        await asyncio.to_thread(first.revoke, device="meter-2")
        async for event in feed:
            if isinstance(event, RevocationEvent) and event.device == "meter-2":
                break
    assert status_at(second, device) is ocsp.OCSPCertStatus.REVOKED


def crl_at(service: ProvisioningService) -> tuple[int, int]:
    """Return the number and the length of the list that a service has now."""
    read = x509.load_der_x509_crl(Curl(service.http).run("/crl/issuing-ca.crl").body)
    return read.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number, len(read)


def test_both_publish_what_either_has_revoked_under_rising_numbers(
    two: tuple[ProvisioningService, ProvisioningService],
) -> None:
    enrol(two[0], "meter-3", "meter-4")
    seen: set[tuple[int, int]] = set()
    for index, name in enumerate(("meter-3", "meter-4")):
        before = [crl_at(service) for service in two]
        seen |= set(before)
        two[index].revoke(device=name)
        deadline = time.monotonic() + PATIENCE
        while any(crl_at(service)[1] <= length for service, (_, length) in zip(two, before, strict=True)):
            assert time.monotonic() < deadline, "a list without the revocation"
            time.sleep(0.1)
        after = [crl_at(service) for service in two]
        seen |= set(after)
        assert all(new > old for (new, _), (old, _) in zip(after, before, strict=True))
    lengths = dict(seen)
    assert len(lengths) == len(seen), "one number, two lists"
    assert [lengths[number] for number in sorted(lengths)] == sorted(lengths.values())


def ready(service: ProvisioningService) -> tuple[int, str, str]:
    """Return the status, what is said of the store, and of the OCSP signer."""
    answer = Curl(service.http).run("/readyz")
    checks = json.loads(answer.body)["checks"]
    return answer.status, checks["store"], checks["ocsp_signer"]


def codes_told(service: ProvisioningService) -> dict[str, int]:
    """Return how often the log says with the same words that one of `EVERY_FEW_SECONDS` has failed."""
    lines = [json.loads(line) for line in service.log.splitlines() if line.endswith("}")]
    told = Counter((line["code"], line["detail"]) for line in lines if line.get("code") in EVERY_FEW_SECONDS)
    return {code: times for (code, _), times in sorted(told.items(), key=lambda each: each[1])}


def test_without_its_database_a_service_says_so_and_goes_on_when_it_is_back(tmp_path: Path) -> None:
    with PostgresqlServer() as server:
        settings = SETTINGS | {"feed_heartbeat_seconds": 0.1, "database_url": server.new_database(template="template0")}
        with ProvisioningService.founded(tmp_path / "fleet", settings) as service, service.api() as api:
            token = service.token(device="meter-1", group="north")
            assert ready(service) == (200, "ok", "ok")
            server.stop()
            assert ready(service) == (503, "unavailable", "ok")
            refused = api.post("/v1/tokens", json={"device": "meter-2"})
            assert (refused.status_code, refused.json()["code"]) == (503, "UNAVAILABLE")
            assert int(refused.headers["retry-after"]) > 0
            assert refused.headers["content-type"] == "application/problem+json"
            assert str(server.port) not in refused.text
            assert Curl(service.http).run("/crl/issuing-ca.crl").status == 200
            # Of those that try every few seconds the slowest have done so: by now the others many times.
            wait_until(lambda: codes_told(service).keys() == EVERY_FEW_SECONDS, "each part says that it cannot read")
            assert set(codes_told(service).values()) == {1}, "and not each time"
            server.start()
            deadline = time.monotonic() + PATIENCE
            while api.get("/v1/status").status_code == 503:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            csr = build_csr(generate_key(), "meter-1")

            async def enrol_with_old_token() -> None:
                async with EstClient(service.https, service.bundle) as client:
                    await client.enrol(csr, user="meter-1", token=token)

            asyncio.run(enrol_with_old_token())
            assert ready(service) == (200, "ok", "ok")
            assert "Traceback" not in service.log
            assert "fleet:" not in service.log, "no credential of the database"


def test_init_and_serve_say_what_is_wrong_with_the_database(postgresql: PostgresqlServer, tmp_path: Path) -> None:
    url = postgresql.new_database(template="template0")
    ProvisioningService.founded(tmp_path / "first", {"database_url": url})
    second = ProvisioningService(tmp_path / "second", {"database_url": url})
    done = second.command("init", "--dir", str(second.dir))
    assert done.returncode == 1
    assert (
        "holds another authority's records, or those of an init that was stopped: give each authority a database"
        in done.stderr
    )
    assert not second.dir.exists()
    gone = ProvisioningService(
        tmp_path / "first", {"database_url": "postgresql+psycopg://fleet:hush@127.0.0.1:1/fleet"}
    )
    done = gone.command("serve", "--dir", str(gone.dir), "--port", "0", "--http-port", "0")
    assert done.returncode == 1
    assert "database_url: the database postgresql+psycopg://fleet:***@127.0.0.1:1/fleet cannot be used" in done.stderr
    assert "hush" not in done.stderr


def test_a_database_in_which_no_tables_may_be_made_is_named_with_what_it_said(
    postgresql: PostgresqlServer, tmp_path: Path
) -> None:
    url = postgresql.new_database(template="template0")
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as owner:
        owner.execute("DROP ROLE IF EXISTS guest")
        owner.execute("CREATE ROLE guest LOGIN")
        guest = ProvisioningService(tmp_path / "fleet", {"database_url": url.replace("fleet@", "guest@", 1)})
        done = guest.command("init", "--dir", str(guest.dir))
        owner.execute("DROP ROLE guest")
    assert done.returncode == 1
    assert "cannot be used: permission denied for schema public" in done.stderr
    assert "make tables there? See docs/postgresql.md" in done.stderr
    assert "Traceback" not in done.stderr
    assert not guest.dir.exists()


async def test_both_count_together_how_many_certificates_a_group_has_had(
    two: tuple[ProvisioningService, ProvisioningService],
) -> None:
    with two[0].api() as api:
        rules = {"name": "paced", "ways": ["token"], "certificates_per_minute": 4}
        assert api.post("/v1/groups", json=rules).status_code == 201
    names = [f"paced-{number}" for number in range(10)]
    tokens = [two[0].token(device=name, group="paced") for name in names]

    async def one(service: ProvisioningService, name: str, token: str) -> str:
        async with EstClient(service.https, service.bundle) as client:
            try:
                await client.enrol(build_csr(generate_key(), name), user=name, token=token)
            except EnrolmentUnavailable as refusal:
                return "RATE_LIMITED" if "429: RATE_LIMITED" in str(refusal) else str(refusal)
            return "enrolled"

    begun = time.monotonic()
    attempts = [one(two[place % 2], name, token) for place, (name, token) in enumerate(zip(names, tokens, strict=True))]
    outcomes = await asyncio.gather(*attempts)
    gained = int((time.monotonic() - begun) * 4 / 60)  # On a machine that takes its time, another one is due.
    assert 4 <= outcomes.count("enrolled") <= 4 + gained, outcomes
    assert set(outcomes) == {"enrolled", "RATE_LIMITED"}
