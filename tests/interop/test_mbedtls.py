"""A device with Mbed TLS, the TLS of ESP-IDF and Zephyr, at our broker: it gets in, resumes, or reads the alert."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from broker.mqtt.packets import Pingreq
from tests.support.broker_process import PATIENCE, BrokerProcess
from tests.support.pki import Held, Pki, pem_of, shared_pki
from tests.support.real_clients import DRIVERS
from tests.support.wire import V5, connect_packet, publication

CERTIFICATE_REQUIRED, HANDSHAKE_FAILURE, CERTIFICATE_EXPIRED, UNKNOWN_CA = 116, 40, 45, 48
VERSIONS = pytest.mark.parametrize("version", ["1.3", "1.2"])


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("mbedtls") / "client"
    source = DRIVERS / "mbedtls_client.c"
    libraries = ("-lmbedtls", "-lmbedx509", "-lmbedcrypto")
    done = subprocess.run(["gcc", "-o", built, source, *libraries], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"libmbedtls-dev is needed (make setup-tests): {done.stderr}"
    return built


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    directory = tmp_path_factory.mktemp("broker")
    with BrokerProcess.with_files(directory, shared_pki(), "--allow-tls12", metrics_port=0) as running:
        yield running


def resumed(broker: BrokerProcess, version: str) -> float:
    """Return how many TLS sessions of *version* were resumed."""
    url = next(url for url in broker.urls if url.startswith("http://"))
    found = re.search(
        rf'handshakes_total{{result="resumed",version="TLSv{version}"}} (\S+)', httpx.get(url, trust_env=False).text
    )
    return float(found[1]) if found else 0.0


def visit(
    client: Path, broker: BrokerProcess, held: Held | None, version: str, *, rounds: int = 1, fragment: int = 0
) -> list[str]:
    """Let *held* connect *rounds* times and publish 40 KB each time; return what the device printed."""
    credential = "-"
    if held is not None:
        written = broker.dir / f"{held.certificate.serial_number:x}.pem"
        written.write_bytes(held.pem)
        credential = str(written)
    packets = (
        connect_packet(V5, client_id="meter-1"),
        publication("fleet/meters/meter-1/state", bytes(40_000), 1, packet_id=1),
        Pingreq(),
    )
    anchors = broker.dir / "root.pem"
    anchors.write_bytes(pem_of(shared_pki().root.certificate))
    words: list[str | Path] = [client, str(broker.port), anchors, credential, version, str(rounds), str(fragment)]
    said = b"".join(packet.encode(V5) for packet in packets)
    done = subprocess.run(words, input=said, capture_output=True, timeout=PATIENCE, check=False)
    return done.stdout.decode().splitlines()


@VERSIONS
def test_a_device_connects_and_resumes_its_session(client: Path, broker: BrokerProcess, version: str) -> None:
    before = resumed(broker, version)
    answers = visit(client, broker, shared_pki().device("meter-1"), version, rounds=3)
    assert len(answers) == 3
    assert all(re.fullmatch(r"answer 20..00.*40..0001.*d000", each) for each in answers), answers
    assert resumed(broker, version) == before + 2


@pytest.mark.parametrize(("version", "fragment"), [("1.3", 512), ("1.2", 4096)])
def test_a_device_may_have_room_for_small_records_only(
    client: Path, broker: BrokerProcess, version: str, fragment: int
) -> None:
    """In TLS 1.2 its own certificates have to fit into one record: Mbed TLS does not split them."""
    (answer,) = visit(client, broker, shared_pki().device("meter-1"), version, fragment=fragment)
    assert answer.startswith("answer 20")


@VERSIONS
def test_who_is_refused_reads_the_alert_that_says_why(client: Path, broker: BrokerProcess, version: str) -> None:
    pki, none = shared_pki(), CERTIFICATE_REQUIRED if version == "1.3" else HANDSHAKE_FAILURE
    expired = pki.device("meter-1", not_after=pki.now - timedelta(seconds=1))
    for held, alert in ((None, none), (expired, CERTIFICATE_EXPIRED), (Pki().device("meter-1"), UNKNOWN_CA)):
        assert visit(client, broker, held, version) == [f"alert {alert}"]
