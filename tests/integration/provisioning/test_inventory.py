from __future__ import annotations

import asyncio
import csv
import io
import json
from datetime import datetime

import pytest
from cryptography import x509

from provisioning.client.csr import build_csr
from provisioning.client.est import EstClient
from provisioning.client.operator import OperatorClient
from provisioning.commands.last_ends import last_ends
from provisioning.pki.issued_by import is_issued_by
from provisioning.pki.keys import generate_key
from provisioning.pki.tls import certificates_in
from tests.support.curl import Curl
from tests.support.enrolled import enrol
from tests.support.openssl import OpensslDevice, certificate_facts
from tests.support.provisioning import ProvisioningService

ON_BOTH_STORES = True


def test_the_search_of_the_api_and_its_exports_agree(service: ProvisioningService, enrolled: OpensslDevice) -> None:
    fingerprint = certificate_facts(enrolled.certificate, "-fingerprint", "-sha256").strip().partition("=")[2]
    serial = certificate_facts(enrolled.certificate, "-serial").strip().removeprefix("serial=")
    with service.api() as api:
        for search in ({"fingerprint": fingerprint}, {"serial": serial}, {"device": enrolled.name, "group": "north"}):
            (item,) = api.get("/v1/certificates", params=search).json()["items"]
            assert item["device"] == enrolled.name
            exported = api.get("/v1/inventory/export", params={**search, "format": "json"})
            assert exported.json() == [item]
            text = api.get("/v1/inventory/export", params={**search, "format": "csv"}).text
            (row,) = csv.DictReader(io.StringIO(text))
            said = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in item.items()}
            assert row == {name: "" if item[name] is None else text for name, text in said.items()}
            assert row["suspended_by_itself"] == "false", "as in JSON"
            listed = ("certificate", "export", "--format", "csv", "--device", item["device"], "--dir", str(service.dir))
            done = service.command(*listed, "--serial", item["serial"], "--url", service.https)
            (printed,) = csv.DictReader(io.StringIO(done.stdout))
            assert printed == row, "the command's are the service's"
            counts = api.get("/v1/inventory/counts", params=search).json()
            assert counts == {"active": 1, "suspended": 0, "revoked": 0, "expired": 0}
        assert api.get("/v1/inventory/export", params={"device": "nobody"}).json() == []
        by_name = {"issuer": "issuing-ca", "device": enrolled.name}
        (item,) = api.get("/v1/certificates", params=by_name).json()["items"]
        by_key = {"issuer": item["issuer_key_id"].upper(), "device": enrolled.name}
        assert api.get("/v1/certificates", params=by_key).json()["items"] == [item]
        assert not any(api.get("/v1/inventory/counts", params={"issuer": "root-ca"}).json().values())
        assert "no CA is called 'issuing'" in api.get("/v1/certificates", params={"issuer": "issuing"}).text
        everything = api.get("/v1/inventory/export").json()
        assert len(everything) == sum(api.get("/v1/inventory/counts").json().values())
        for wrong in ({"fingerprint": "xyz"}, {"issuer": ""}, {"serial": "-"}, {"state": "odd"}, {"format": "xml"}):
            assert api.get("/v1/inventory/export", params=wrong).json()["code"] == "INVALID_REQUEST"
        nul = api.get("/v1/inventory/export", params={"device": "a\0b"})  # PostgreSQL takes none: it was 200, and cut.
        assert (nul.json() if nul.status_code == 200 else nul.json()["code"]) in ([], "INVALID_REQUEST")


def test_who_has_renewed_does_not_expire_soon(service: ProvisioningService) -> None:
    first, other = enrol(service, "renews-1", "sleeps-1", lifetime_seconds=86400)
    common = ("--within", "14d", "--group", "meters", "--dir", str(service.dir), "--url", service.https, "--json")

    def expiring() -> set[str]:
        listed = json.loads(service.command("certificate", "expiring", *common, check=True).stdout)
        return {each["serial"] for each in listed} & {first.serial, other.serial}

    assert expiring() == {first.serial, other.serial}

    async def renewed() -> x509.Certificate:
        async with EstClient(service.https, service.bundle, first.credential) as est:
            return await est.reenrol(build_csr(generate_key(), first.name, like=first.certificate))

    again = asyncio.run(renewed())
    assert expiring() == {other.serial}

    async def known(few: int) -> dict[str, datetime | None]:
        async with OperatorClient(service.https, service.bundle, service.operator) as client:
            return await last_ends(client, {first.name, other.name}, "meters", few=few)

    ends = {first.name: again.not_valid_after_utc, other.name: other.certificate.not_valid_after_utc}
    assert asyncio.run(known(0)) == asyncio.run(known(2)) == ends


def test_what_expires_soon_is_listed_and_exported(service: ProvisioningService, enrolled: OpensslDevice) -> None:
    common = ("--dir", str(service.dir), "--url", service.https)

    def names(*arguments: str) -> set[str]:
        listed = json.loads(service.command("certificate", *arguments, *common, "--json", check=True).stdout)
        return {each["device"] for each in listed}

    assert enrolled.name in names("expiring", "--within", "31d")
    assert enrolled.name not in names("expiring", "--within", "14d")
    # The OCSP signer lives for a week, and is the service's to renew.
    assert "provisioning" in names("list", "--state", "active")
    assert "provisioning" not in names("expiring", "--within", "400d")
    assert enrolled.name in names("list", "--group", "north", "--expires-from", "2026-01-01")
    assert service.command("certificate", "expiring", "--within", "soon", *common).returncode == 2
    done = service.command("certificate", "export", "--device", enrolled.name, *common, check=True)
    (row,) = csv.DictReader(io.StringIO(done.stdout))
    assert row["device"] == enrolled.name
    (line,) = service.command(
        "certificate", "export", "--format", "json", "--serial", row["serial"], "--state", "active", *common, check=True
    ).stdout.splitlines()
    assert json.loads(line)["fingerprint_sha256"] == row["fingerprint_sha256"]
    counted = service.command("certificate", "count", "--device", enrolled.name, *common, check=True).stdout
    assert [each.split() for each in counted.splitlines()[:2]] == [["state", "certificates"], ["active", "1"]]
    counted = service.command("certificate", "count", "--group", "no-such", "--json", *common, check=True).stdout
    assert json.loads(counted) == {"active": 0, "suspended": 0, "revoked": 0, "expired": 0}
    lines = service.command("certificate", "export", "--format", "json", *common, check=True).stdout.splitlines()
    assert enrolled.name in {json.loads(line)["device"] for line in lines}


def test_a_certificate_is_shown_itself_for_openssl(service: ProvisioningService, enrolled: OpensslDevice) -> None:
    serial = certificate_facts(enrolled.certificate, "-serial").strip().removeprefix("serial=")

    def show(*options: str) -> str:
        where = ("--dir", str(service.dir), "--url", service.https)
        return service.command("certificate", "show", serial, *options, *where, check=True).stdout

    pem, chain = show("--pem"), show("--chain")
    assert certificates_in(pem.encode()) == certificates_in(enrolled.certificate.read_bytes())
    assert chain == show("--pem", "--chain")
    (own, issuer) = certificates_in(chain.encode())
    assert (own, is_issued_by(own, issuer)) == (certificates_in(pem.encode())[0], True)
    assert issuer.issuer != issuer.subject, "the root is the anchor, which a relying party has"
    document = json.loads(show("--json"))
    assert document["pem"] + document["chain"] == chain
    assert "BEGIN CERTIFICATE" not in show()
    both = service.command("certificate", "show", serial, "--json", "--chain")
    assert (both.returncode, "the JSON has both" in both.stderr) == (2, True)


@pytest.mark.parametrize("path", ["/v1/inventory/counts", "/v1/inventory/export"])
def test_the_inventory_is_for_operators(service: ProvisioningService, enrolled: OpensslDevice, path: str) -> None:
    assert Curl(service.https, service.bundle).run(path).status == 403
    assert Curl(service.https, service.bundle, enrolled.credential).run(path).status == 403
