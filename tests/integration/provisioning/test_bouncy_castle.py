"""Bouncy Castle, Java's: it enrols, renews and waits here, asks by OCSP; and what it needs of an answer, by curl.

A JDK is a large thing to install for one test: where there is none, curl alone asks as Bouncy Castle does.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.curl import Curl
from tests.support.openssl import OpensslDevice
from tests.support.provisioning import REPOSITORY, ProvisioningService

SOURCE = REPOSITORY / "tests" / "support" / "clients" / "BouncyCastleClient.java"
OCSP_SOURCE = SOURCE.with_name("BouncyCastleOcsp.java")
JARS = [Path("/usr/share/java") / f"{each}.jar" for each in ("bcprov", "bcutil", "bcpkix")]
NAMELESS = ("--header", "User-Agent:")


@pytest.fixture(scope="module")
def approved(service: ProvisioningService) -> str:
    """A group whose requests wait for an operator."""
    made = service.post("/v1/groups", name="unread", ways=["approval"])
    assert made.status_code == 201, made.text
    return "unread"


@pytest.mark.skipif(shutil.which("javac") is None, reason="there is no JDK")
def test_bouncy_castle_enrols_by_token_renews_and_waits(
    service: ProvisioningService, approved: str, tmp_path: Path
) -> None:
    missing = [str(each) for each in JARS if not each.exists()]
    assert not missing, f"{missing}. Remedy: apt-get install libbcpkix-java"
    token = service.token(device="bouncy-1", group="meters")
    done = subprocess.run(
        ["java", "-cp", ":".join(map(str, JARS)), SOURCE, service.bundle, f"localhost:{service.port}", "bouncy-1",
         token, approved],
        capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "cacerts: 2 certificates", "csrattrs: 3 attributes", "enrol: CN=bouncy-1", "again: 401 TOKEN_USED null",
        "renew: CN=bouncy-1", "wait: a time to come again",
    ], done.stderr  # fmt: skip
    assert done.returncode == 0
    with service.api() as api:
        issued = api.get("/v1/certificates", params={"device": "bouncy-1"}).json()["items"]
    assert len(issued) == 2


@pytest.mark.skipif(shutil.which("javac") is None, reason="there is no JDK")
def test_bouncy_castle_finds_its_certificate_in_the_ocsp_answer(
    service: ProvisioningService, enrolled: OpensslDevice, tmp_path: Path
) -> None:
    """It compares the whole CertID, and names SHA-1 with NULL and SHA-256 without parameters."""
    done = subprocess.run(
        ["java", "-cp", ":".join(map(str, JARS)), OCSP_SOURCE, f"{service.http}/ocsp",
         service.dir / "issuing-ca.crt", enrolled.certificate],
        capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["SHA-1 NULL: good", "SHA-256 null: good"], done.stderr


def test_each_answer_in_base64_says_so(stranger: Curl, service: ProvisioningService, device: OpensslDevice) -> None:
    """RFC 7030 §4.1.3, §4.2.3 and §4.5.2 have it so, and RFC 8951 §3 has who needs it not read past it."""
    token = service.token(device=device.name, group="north")
    enrolment = stranger.est("simpleenroll", device.request(), "--user", f"{device.name}:{token}")
    told = [stranger.run(f"/.well-known/est/{each}") for each in ("cacerts", "csrattrs")]
    for answer in (enrolment, *told):
        assert (answer.status, answer.headers["Content-Transfer-Encoding"]) == (200, "base64")


def test_who_is_asked_for_a_password_or_to_wait_gets_a_text_if_he_names_what_he_asks_with(
    stranger: Curl, approved: str, device: OpensslDevice
) -> None:
    request = device.request()
    for operation, status, field in (
        ("simpleenroll", 401, "WWW-Authenticate"),
        (f"{approved}/simpleenroll", 202, "Retry-After"),
    ):
        named, nameless = stranger.est(operation, request), stranger.est(operation, request, *NAMELESS)
        assert named.status == nameless.status == status
        assert named.headers[field] == nameless.headers[field]
        assert named.body
        assert (nameless.body, nameless.headers["Content-Length"]) == (b"", "0")


def test_every_other_refusal_has_its_text_for_everybody(stranger: Curl, device: OpensslDevice) -> None:
    """Who has shown a password is not asked for one: his 401 is the end, and it says why."""
    request = device.request()
    refused = stranger.est("simpleenroll", request, "--user", f"{device.name}:nothing", *NAMELESS)
    assert (refused.status, refused.text.split(":")[0]) == (401, "TOKEN_UNKNOWN")
    refused = stranger.est("simpleenroll", b"nothing", "--user", f"{device.name}:nothing", *NAMELESS)
    assert (refused.status, refused.text.split(":")[0]) == (400, "BODY_ENCODING")
