"""A device whose clock begins in 1970 learns from its fleet's CA what time it is, and enrols then."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from tests.support.faketime import FakeClock
from tests.support.openssl import openssl
from tests.support.provisioning import REPOSITORY, ProvisioningService

OCSP = "application/ocsp-request"
PROGRAM = """
import asyncio, sys, time
from datetime import UTC, datetime

from provisioning.client.csr import build_csr
from provisioning.client.est import EnrolmentUnavailable, EstClient
from provisioning.client.service_time import service_time
from provisioning.pki.keys import generate_key

url, responder, anchors, name, token, clock = sys.argv[1:]
content = open(anchors).read()


async def enrol():
    async with EstClient(url, content) as est:
        return await est.enrol(build_csr(generate_key(), name), user=name, token=token)


async def run():
    print(time.gmtime().tm_year)
    try:
        await enrol()
    except EnrolmentUnavailable as error:
        print(error)
    now = await service_time(url, content, responder=responder)
    print(now.isoformat())
    ahead = now.timestamp() - time.time() + float(open(clock).read())
    open(clock, "w").write(f"{ahead:+.0f}")  # As a device sets its clock.
    print((await enrol()).not_valid_before_utc.isoformat())


asyncio.run(run())
"""


def test_a_device_without_a_clock_sets_it_and_enrols(
    tmp_path: Path, service: ProvisioningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = service.token(device="clockless", group="meters")
    clock = FakeClock.new(tmp_path)
    clock.set(datetime(1970, 1, 2, tzinfo=UTC) - datetime.now(UTC))
    with monkeypatch.context() as theirs:
        clock.enter(theirs)
        ran = subprocess.run(
            [
                sys.executable,
                "-c",
                PROGRAM,
                service.https,
                f"{service.http}/ocsp",
                str(service.bundle),
                "clockless",
                token,
                str(clock.file),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert ran.returncode == 0, ran.stderr
    year, refused, said, begins = ran.stdout.splitlines()
    assert year == "1970"
    assert "certificate is not yet valid" in refused
    for moment in (said, begins):
        assert abs(datetime.now(UTC) - datetime.fromisoformat(moment)) < timedelta(minutes=5)


@contextmanager
def replaying(recorded: bytes) -> Iterator[str]:
    """Be a responder that gives everybody the same answer; yield its URL."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/ocsp-response")
            self.send_header("Content-Length", str(len(recorded)))
            self.end_headers()
            self.wfile.write(recorded)

        def log_message(self, *_arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        answering = threading.Thread(target=server.serve_forever)
        answering.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/ocsp"
        finally:
            server.shutdown()
            answering.join()


def test_a_device_with_openssl_and_a_shell_learns_the_time_or_nothing(
    tmp_path: Path, service: ProvisioningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (REPOSITORY / "docs" / "device-agent.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^(service_time\(\) \(.*?^\))$", page, re.MULTILINE | re.DOTALL)
    anchors = tmp_path / "ca-bundle.crt"
    shutil.copy(service.bundle, anchors)
    clock = FakeClock.new(tmp_path)

    def said(*arguments: str, shell: str = "sh") -> tuple[int, str]:
        with monkeypatch.context() as theirs:
            clock.enter(theirs)
            ran = subprocess.run(
                # In a condition, where `set -e` would be ignored.
                [shell, "-c", f'{block}\nif service_time "$@"; then exit 0; else exit 3; fi', "-", *arguments],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
        return ran.returncode, ran.stdout

    here = ("localhost", service.https.rpartition(":")[2], f"{service.http}/ocsp")
    for year, shell in ((1971, "sh"), (2071, "bash")):
        clock.set(datetime(year, 1, 2, tzinfo=UTC) - datetime.now(UTC))
        code, now = said(*here, shell=shell)
        assert code == 0
        assert abs(datetime.now(UTC) - datetime.fromtimestamp(int(now), UTC)) < timedelta(minutes=5)
    (tmp_path / "answer.der").rename(tmp_path / "recorded.der")
    assert said("another.localhost", *here[1:]) == (3, "")  # Not the service's name.
    assert said(*here[:2], f"{service.http}/crl/root-ca.crl") == (3, "")  # No responder.
    asked = tmp_path / "asked.der"
    served = ("-issuer", tmp_path / "served2.pem", "-cert", tmp_path / "served1.pem")
    openssl("ocsp", *served, "-no_nonce", "-reqout", asked)
    without_nonce = httpx.post(here[2], content=asked.read_bytes(), headers={"Content-Type": OCSP}).content
    for recorded in ((tmp_path / "recorded.der").read_bytes(), without_nonce):
        with replaying(recorded) as responder:
            assert said(*here[:2], responder) == (3, "")
    anchors.write_bytes((tmp_path / "served1.pem").read_bytes())  # Not the fleet's anchors.
    assert said(*here) == (3, "")
