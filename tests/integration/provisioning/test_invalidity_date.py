"""Since when a stolen key was in other hands: told by CRL, delta, shard, feed, API and audit log."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from cryptography import x509

from provisioning.pki.crl import parse, read_entries
from tests.integration.provisioning.test_feed import following
from tests.support.broker_process import wait_until
from tests.support.curl import Curl
from tests.support.enrolled import Enrolled, enrol
from tests.support.openssl import openssl
from tests.support.provisioning import ProvisioningService

SINCE = "2026-01-05T08:30:00Z"
SHOWN = "Invalidity Date: \n                Jan  5 08:30:00 2026 GMT"
FAST = {"crl_debounce_seconds": 0.05, "feed_heartbeat_seconds": 0.2, "crl_shards": 2}


def shown(service: ProvisioningService, name: str) -> str:
    body = Curl(service.http).run(f"/crl/{name}").body
    return openssl("crl", "-inform", "DER", "-noout", "-text", data=body).decode()


def shard_of(device: Enrolled) -> str:
    points = device.certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    (name,) = next(iter(points)).full_name or []
    return str(name.value).rpartition("/")[2]


def test_it_is_told_wherever_the_revocation_is(tmp_path: Path) -> None:
    with ProvisioningService.copied(tmp_path / "fleet", FAST) as service, service.api() as api:
        thief, plain, held = enrol(service, "meter-1", "meter-2", "meter-3")
        future = {"device": "meter-1", "reason": "keyCompromise", "invalidity_date": "2099-01-01T00:00:00Z"}
        refused = api.post("/v1/revocations", json=future)
        assert (refused.status_code, refused.json()["code"]) == (400, "INVALID_REQUEST")
        assert "must be a time in the past, not before 1970" in refused.json()["detail"]
        naive = api.post("/v1/revocations", json=future | {"invalidity_date": "2026-01-05T08:30:00"})
        assert naive.status_code == 422 or naive.json()["code"] == "INVALID_REQUEST"

        done = service.command(
            "revoke", "--device", "meter-1", "--reason", "keyCompromise", "--invalidity-date",
            "2026-01-05T09:30:00+01:00", "--json", "--dir", str(service.dir), "--url", service.https,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)[0]["invalidity_date"] == SINCE
        again = api.post("/v1/revocations", json={"device": "meter-1"}).json()["revoked"]
        assert [each["invalidity_date"] for each in again] == [SINCE], "the original facts"
        assert api.post("/v1/revocations", json={"device": "meter-2"}).json()["revoked"][0]["invalidity_date"] is None
        # A hold becomes final, and has been distrusted since before it.
        api.post("/v1/suspensions", json={"device": "meter-3"})
        batch = {"devices": ["meter-3"], "reason": "keyCompromise", "invalidity_date": "2026-01-05T09:30:00+01:00"}
        assert api.post("/v1/revocations", json=batch).json()["revoked"][0]["invalidity_date"] == SINCE

        def told(name: str, *devices: Enrolled) -> bool:
            text = shown(service, name)
            return all(f"{each.certificate.serial_number:X}" in text for each in devices)

        lists = {"issuing-ca.crl": 2, "issuing-ca.delta.crl": 2}
        for name, times in lists.items():
            wait_until(lambda: told(name, thief, plain, held), f"{name} has all three")
            # The one that was on hold had no date yet: a list of that moment has all three, too.
            wait_until(lambda: shown(service, name).count(SHOWN) == times, f"{name} has the dates")
        for name in (shard_of(thief), shard_of(thief).replace(".crl", ".delta.crl")):
            wait_until(lambda: told(name, thief), f"{name} has it")
            assert SHOWN in shown(service, name)
        complete = Curl(service.http).run("/crl/issuing-ca.crl").body
        entry = x509.load_der_x509_crl(complete).get_revoked_certificate_by_serial_number(
            thief.certificate.serial_number
        )
        assert entry is not None
        extension = entry.extensions.get_extension_for_class(x509.InvalidityDate)
        assert (extension.critical, f"{extension.value.invalidity_date_utc:%FT%TZ}") == (False, SINCE)
        assert thief.certificate.serial_number in read_entries(parse(complete), lambda: None), (
            "relying parties of ours read it"
        )

        operator = Curl(service.https, service.bundle, service.operator)
        with following(operator, "?after=0") as feed:
            dates = {each["device"]: each.get("invalidity_date") for each in feed.revoked(4)}
        assert dates == {"meter-1": SINCE, "meter-2": None, "meter-3": SINCE}
        listed = api.get("/v1/certificates", params={"device": "meter-1"}).json()["items"]
        assert [each["invalidity_date"] for each in listed] == [SINCE]
        log = json.loads(service.command("audit", "show", "--dir", str(service.dir), "--json").stdout)
        (noted,) = [each for each in log if each["action"] == "revoked" and each["subject"] == "meter-1"]
        assert noted["details"]["invalidity_date"] == SINCE
        gnutls = subprocess.run(["certtool", "--crl-info", "--inder"], input=complete, capture_output=True, check=True,
                                timeout=60)  # fmt: skip
        assert b"Revoked certificates (3)" in gnutls.stdout, "it reads the entries, and says nothing of extensions"
