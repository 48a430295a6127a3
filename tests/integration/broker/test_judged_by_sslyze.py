"""What sslyze, which judges TLS servers with OpenSSLs of its own, makes of both doors: TLS 1.3 and nothing to find.

Of provisioning's door, which takes TLS 1.2 as well, it is asked for ciphers, curves and certificate.

It is no dependency of the tests: it wants an older `cryptography` than the product does, so that `make setup-tests`
gives it an environment of its own. Not asked: SSL 2, at which its own old OpenSSL stumbles over a client certificate;
testssl.sh asks that (`test_judged_by_testssl`); nor early data, where it takes a broker that closes for a failure.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.broker_process import BrokerProcess
from tests.support.pki import Pki
from tests.support.provisioning import ProvisioningService
from tests.support.responder import Responder, delegate
from tests.support.web import WebServer

FOLDER = Path(__file__).parents[3] / ".build" / "sslyze"
SSLYZE, UNAVAILABLE = FOLDER / "bin" / "sslyze", FOLDER / "unavailable"
OLD = ("sslv3", "tlsv1", "tlsv1_1", "tlsv1_2")
CHECKS = (
    *OLD,
    *("tlsv1_3", "certinfo", "compression", "openssl_ccs", "heartbleed", "robot", "reneg", "fallback", "ems"),
    "elliptic_curves",
)


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[BrokerProcess]:
    with WebServer() as web:
        broker = BrokerProcess.with_files(
            tmp_path_factory.mktemp("sslyze"), pki, "--websocket-port", "0", ocsp_stapling_responder=f"{web.url}/ocsp"
        )
        own = pki.broker()
        own.write(broker.dir)
        web.pages["/ocsp"] = Responder(pki.issuing, delegate(pki), [own])
        with broker as running:
            yield running


def doors_of(broker: BrokerProcess) -> dict[int, str]:
    """Return the scheme of each of the broker's doors, by port."""
    return {int(url.rpartition(":")[2].partition("/")[0]): url.partition(":")[0] for url in broker.urls}


def judged(
    directory: Path, doors: dict[int, str], anchors: Path, checks: tuple[str, ...] = CHECKS, *, device_of: Pki | None
) -> dict[str, dict[str, Any]]:
    """Return what sslyze says of each of the *doors*, by door and check; as a device, or as a stranger."""
    if UNAVAILABLE.exists():
        pytest.skip("sslyze cannot be had here, as deploy/install-sslyze has said")
    assert SSLYZE.exists(), "sslyze is not installed: make setup-tests"
    written, own = directory / "judged.json", list[Path | str]()
    if device_of is not None:
        credential = device_of.device("meter-sslyze").write(directory)
        own = ["--cert", credential.certificate, "--key", credential.key]
    done = subprocess.run(
        [
            *(SSLYZE, "--mozilla_config", "disable", "--quiet", "--json_out", written),
            *own,
            *("--certinfo_ca_file", anchors),
            *(f"--{check}" for check in checks),
            *(f"localhost:{port}" for port in doors),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert written.exists(), done.stderr
    said = {}
    for scanned in json.loads(written.read_text())["server_scan_results"]:
        assert scanned["connectivity_status"] == "COMPLETED", scanned
        asked = {name: each for name, each in scanned["scan_result"].items() if each["status"] != "NOT_SCHEDULED"}
        failed = {name: each["error_trace"] for name, each in asked.items() if each["status"] != "COMPLETED"}
        assert not failed
        said[doors[scanned["server_location"]["port"]]] = {name: each["result"] for name, each in asked.items()}
    return said


def test_sslyze_finds_nothing_at_either_door(doors: BrokerProcess, pki: Pki, tmp_path: Path) -> None:
    found = judged(tmp_path, doors_of(doors), doors.dir / "anchors.pem", device_of=pki)
    assert set(found) == {"mqtts", "wss"}
    for said in found.values():
        check_nothing_found(said)


def check_nothing_found(said: dict[str, Any]) -> None:
    assert len(said) == len(CHECKS)
    offered = {name: accepted(each) for name, each in said.items() if name.endswith("_cipher_suites")}
    assert {name for name, suites in offered.items() if suites} == {"tls_1_3_cipher_suites"}
    assert offered["tls_1_3_cipher_suites"] == {
        "TLS_AES_256_GCM_SHA384",
        "TLS_CHACHA20_POLY1305_SHA256",
        "TLS_AES_128_GCM_SHA256",
    }
    assert not said["tls_compression"]["supports_compression"]
    assert not said["openssl_ccs_injection"]["is_vulnerable_to_ccs_injection"]
    assert not said["heartbleed"]["is_vulnerable_to_heartbleed"]
    assert said["robot"]["robot_result"].startswith("NOT_VULNERABLE")
    assert not said["session_renegotiation"]["is_vulnerable_to_client_renegotiation_dos"]
    assert said["tls_fallback_scsv"]["supports_fallback_scsv"]
    assert said["tls_extended_master_secret"]["supports_ems_extension"]
    check_curves(said)
    check_certificate(said)


def check_certificate(said: dict[str, Any]) -> None:
    (deployment,) = said["certificate_info"]["certificate_deployments"]
    assert deployment["received_chain_has_valid_order"]
    assert not deployment["verified_chain_has_sha1_signature"]
    assert any(each["was_validation_successful"] for each in deployment["path_validation_results"])
    assert deployment["ocsp_response"]["certificate_status"] == "GOOD"
    assert deployment["ocsp_response_is_trusted"]


def test_sslyze_sees_what_is_allowed(tmp_path: Path, pki: Pki) -> None:
    with BrokerProcess.with_files(tmp_path / "b", pki, "--allow-tls12") as broker:
        asked = ("tlsv1_1", "tlsv1_2")
        said = judged(tmp_path, doors_of(broker), broker.dir / "anchors.pem", asked, device_of=pki)["mqtts"]
    check_tls_1_2_is_strong(said)
    assert not accepted(said["tls_1_1_cipher_suites"])


async def test_sslyze_finds_no_weak_cipher_at_the_door_of_provisioning(
    tmp_path: Path, service: ProvisioningService
) -> None:
    doors, asked = {service.port: "https"}, (*OLD, "elliptic_curves", "certinfo")
    said = (await asyncio.to_thread(judged, tmp_path, doors, service.bundle, asked, device_of=None))["https"]
    check_tls_1_2_is_strong(said)
    offered = {name: accepted(each) for name, each in said.items() if name.endswith("_cipher_suites")}
    assert {name for name, suites in offered.items() if suites} == {"tls_1_2_cipher_suites"}
    check_curves(said)
    check_certificate(said)


def check_tls_1_2_is_strong(said: dict[str, Any]) -> None:
    suites = accepted(said["tls_1_2_cipher_suites"])
    assert suites
    assert {name for name in suites if not name.startswith("TLS_ECDHE_") or "_CBC_" in name} == set()


def check_curves(said: dict[str, Any]) -> None:
    curves = {each["name"] for each in said["elliptic_curves"]["supported_curves"]}
    assert curves <= {"X25519", "X448", "secp256r1", "secp384r1", "secp521r1"}


def accepted(said: dict[str, Any]) -> set[str]:
    return {each["cipher_suite"]["name"] for each in said["accepted_cipher_suites"]}
