"""A device whose clock begins in 1970 learns from its fleet's CA what time it is, and enrols then."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.faketime import FakeClock
from tests.support.provisioning import ProvisioningService

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
