"""openssl s_client and curl at the broker's two doors: what somebody with nothing but Debian's tools sees."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from broker.cli import app
from tests.support.broker_process import PATIENCE, BrokerProcess, wait_until
from tests.support.pki import Held, Pki
from tests.support.wire import V5, connect_packet

UPGRADE = (
    *("-H", "Connection: Upgrade", "-H", "Upgrade: websocket"),
    *("-H", "Sec-WebSocket-Version: 13", "-H", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
)
MQTT = ("-H", "Sec-WebSocket-Protocol: mqtt")
DAY = timedelta(days=1)
ACCEPTED = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
"""What RFC 6455 §1.3 answers to that key."""


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[BrokerProcess]:
    pages = ("--websocket-port", "0", "--websocket-origins", "https://dash.example")
    with BrokerProcess.with_files(tmp_path_factory.mktemp("tools"), pki, *pages) as running:
        yield running


def s_client(
    broker: BrokerProcess, held: Held | None, directory: Path, *options: str | Path, data: bytes = b""
) -> tuple[int, str]:
    """Run ``openssl s_client``, which sends *data* and reads until the broker closes; return exit code and output."""
    credential: list[str | Path] = []
    if held is not None:
        files = held.write(directory, "tool")
        credential = ["-cert", files.certificate, "-key", files.key, "-cert_chain", files.certificate]
    done = subprocess.run(
        [
            *("openssl", "s_client", "-connect", f"127.0.0.1:{broker.port}", "-servername", "localhost"),
            *("-CAfile", broker.dir / "anchors.pem", "-verify_return_error", "-ign_eof", *credential, *options),
        ],
        input=data,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


def mqtt(client_id: str) -> bytes:
    """CONNECT, then DISCONNECT: the broker closes."""
    return connect_packet(V5, client_id=client_id).encode() + b"\xe0\x00"


def test_s_client_gets_tls_13_and_is_admitted(doors: BrokerProcess, pki: Pki, tmp_path: Path, name: str) -> None:
    code, said = s_client(doors, pki.device(name), tmp_path, data=mqtt(name))
    assert code == 0
    assert "Verify return code: 0 (ok)" in said
    assert re.search(r"New, TLSv1\.3, Cipher is TLS_AES_128_GCM_SHA256", said)
    assert wait_until(lambda: doors.events("admitted", client=name), "it is logged")


@pytest.mark.parametrize(
    ("who", "alert", "code"),
    [
        ("nobody", "alert certificate required", "NO_CERTIFICATE"),
        ("expired", "alert certificate expired", "EXPIRED"),
        ("of another CA", "alert unknown ca", "UNTRUSTED_ISSUER"),
    ],
)
def test_s_client_is_told_by_the_alert_why_it_is_refused(
    doors: BrokerProcess, pki: Pki, tmp_path: Path, who: str, alert: str, code: str
) -> None:
    holders: dict[str, Callable[[], Held | None]] = {
        "nobody": lambda: None,
        "expired": lambda: pki.device("late", not_before=pki.now - 2 * DAY, not_after=pki.now - DAY),
        "of another CA": lambda: Pki().device("stranger"),
    }
    held = holders[who]()
    before = len(doors.events(code))
    exit_code, said = s_client(doors, held, tmp_path, data=mqtt("x"))
    assert exit_code != 0
    assert alert in said
    wait_until(lambda: len(doors.events(code)) > before, "it is logged")
    assert len(doors.events(code)) == before + 1


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_1", "-tls1"])
def test_s_client_does_not_get_an_older_tls(doors: BrokerProcess, pki: Pki, tmp_path: Path, version: str) -> None:
    options = (version, "-cipher", "ALL:@SECLEVEL=0")
    code, said = s_client(doors, pki.device("old"), tmp_path, *options, data=mqtt("old"))
    assert code != 0
    assert "alert protocol version" in said or "no protocols available" in said


def test_s_client_resumes_and_is_judged_again(doors: BrokerProcess, pki: Pki, tmp_path: Path, name: str) -> None:
    device, session = pki.device(name), tmp_path / "session.pem"
    assert s_client(doors, device, tmp_path, "-sess_out", session, data=mqtt(name))[0] == 0
    code, said = s_client(doors, device, tmp_path, "-sess_in", session, data=mqtt("another"))
    assert code == 0
    assert "Reused, TLSv1.3" in said
    serial = f"{device.certificate.serial_number:x}"
    assert wait_until(lambda: doors.events("CLIENT_ID_MISMATCH", serial=serial), "it is logged")


def curl(broker: BrokerProcess, held: Held | None, directory: Path, *options: str) -> tuple[int, str]:
    """Run curl at the WebSocket door; return exit code and output, the answer's head included."""
    port = broker.urls[1].rpartition(":")[2]
    credential: list[str | Path] = []
    if held is not None:
        files = held.write(directory, "tool")
        credential = ["--cert", files.certificate, "--key", files.key]
    done = subprocess.run(
        [
            *("curl", "-sS", "-i", "--http1.1", "--max-time", "60", "--cacert", broker.dir / "anchors.pem"),
            *(*credential, *options, f"https://localhost:{port}/mqtt"),
        ],
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


def test_curl_is_upgraded_to_websocket(doors: BrokerProcess, pki: Pki, tmp_path: Path) -> None:
    _, said = curl(doors, pki.device("tool"), tmp_path, *UPGRADE, *MQTT)
    head = said.lower()
    assert said.startswith("HTTP/1.1 101 ")
    assert f"sec-websocket-accept: {ACCEPTED.lower()}" in head
    assert "sec-websocket-protocol: mqtt" in head


@pytest.mark.parametrize(
    ("options", "status", "lacks"),
    [
        ((), "426", "'Upgrade: websocket'"),
        (UPGRADE, "400", "'Sec-WebSocket-Protocol: mqtt'"),
        ((*UPGRADE, "-H", "Sec-WebSocket-Protocol: chat"), "400", "'Sec-WebSocket-Protocol: mqtt'"),
        (("-d", "x"), "405", "GET"),
    ],
)
def test_curl_is_told_what_its_request_lacks(
    doors: BrokerProcess, pki: Pki, tmp_path: Path, options: tuple[str, ...], status: str, lacks: str
) -> None:
    code, said = curl(doors, pki.device("tool"), tmp_path, *options)
    assert code == 0, said
    assert said.startswith(f"HTTP/1.1 {status} ")
    assert lacks in said.rpartition("\r\n\r\n")[2]
    wait_until(
        lambda: any(lacks in event["detail"] for event in doors.events("NOT_WEBSOCKET")), "the log says the same"
    )


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://dash.example", "101"),
        ("https://localhost:{port}", "101"),
        ("https://evil.example", "403"),
        ("http://localhost:{port}", "403"),
        ("null", "403"),
    ],
)
def test_curl_as_a_page_is_let_in_if_its_origin_is_named(
    doors: BrokerProcess, pki: Pki, tmp_path: Path, name: str, origin: str, status: str
) -> None:
    origin = origin.format(port=doors.urls[1].rpartition(":")[2])
    _, said = curl(doors, pki.device(name), tmp_path, *UPGRADE, *MQTT, "-H", f"Origin: {origin}")
    assert said.startswith(f"HTTP/1.1 {status} ")
    if status == "101":
        return
    assert "websocket_origins" in said
    wait_until(lambda: doors.events("ORIGIN_NOT_ALLOWED"), "the log says the same")
    told = CliRunner().invoke(app, ["why", name, "--state-dir", str(doors.dir / "state")]).output
    assert "ORIGIN_NOT_ALLOWED" in told
    assert f"(Origin: {origin})" in told
    assert "what to do: if the page is yours, name its origin in websocket_origins" in " ".join(told.split())


def test_curl_without_a_certificate_sees_the_alert(doors: BrokerProcess, tmp_path: Path) -> None:
    code, said = curl(doors, None, tmp_path, *UPGRADE, *MQTT)
    assert code == 56  # curl(1): failure in receiving network data
    assert "certificate required" in said
