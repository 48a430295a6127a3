"""A foreign broker's process: known to be ready, ended with its children, and explained when it is missing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from cryptography import x509

from device_sim.attack.foreign_server import Papers
from device_sim.stage.foreign_process import ServerMissing, program, serving
from device_sim.stage.processes import ChildFailed

READY = "sleep 1000 & echo $! is ready; wait"


async def test_leaving_ends_the_server_and_what_it_has_started(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with serving("sh", ["sh", "-c", READY], log=log, ready="is ready") as process:
        codes = [process.returncode]
        child = int(log.read_text().split()[0])
    codes.append(process.returncode)
    assert [code is None for code in codes] == [True, False]
    async with asyncio.timeout(60):
        while lives(child):
            await asyncio.sleep(0.01)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_what_does_not_start_is_told_with_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match="theirs did not start:\nno such option"):
        async with serving("theirs", ["sh", "-c", "echo no such option; exit 3"], log=tmp_path / "log", ready="up"):
            pass


def test_a_missing_program_is_named_with_its_package() -> None:
    with pytest.raises(ServerMissing, match="no-such-broker is not installed: apt-get install no-such-package"):
        program("no-such-broker", "no-such-package")


def test_certificates_bear_their_name_as_dns_name_only_where_that_is_asked(tmp_path: Path) -> None:
    from provisioning.pki.identity import Identity
    from provisioning.pki.role import Role

    identity = Identity("fleet.internal", Role.DEVICE, "device-001", "meters")
    for asked in (False, True):
        directory = tmp_path / str(asked)
        directory.mkdir()
        paper = Papers(directory, dns_of_name=asked).issuer.issue(identity)
        names = paper.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == (["device-001"] if asked else [])
