"""What the service has answered, and what its commands have reported, outlives a power failure at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509

from tests.support.broker_process import wait_until
from tests.support.ca_life import ca, states
from tests.support.enrolled import enrol, spent
from tests.support.power_cuts import Disk, PowerCut, PowerCuts, quick_folder
from tests.support.provisioning import ProvisioningService
from tests.support.recorded_disk import RecordedDisk, listing

SETTINGS = {"crl_debounce_seconds": 0.05}
SEED = 20_261_129
_LIFE = ("announced", "active", "retiring", "retired")
_EVENTS = "SELECT sequence, serial FROM revocation_events e JOIN certificates c ON c.id = e.certificate_id"


@contextlib.contextmanager
def recorded(folder: Path, *, founded: bool) -> Iterator[tuple[RecordedDisk, PowerCuts, ProvisioningService]]:
    """A service whose disk is recorded; at the end all that it did must be in the record."""
    folder.mkdir()
    if founded:
        service = ProvisioningService.copied(folder / "fleet", SETTINGS)
    else:
        service = ProvisioningService(folder / "fleet", SETTINGS)
    disk = RecordedDisk(folder, folder.with_name("record"))
    cuts = PowerCuts(disk)
    service.set(**disk.environment)
    yield disk, cuts, service
    (everything,) = cuts.at([len(disk.records())], [Disk.ALL], SEED)
    found = {name: content for name, (_, content) in everything.tree.items() if not name.endswith(".log")}
    assert found == {name: content for name, content in listing(folder).items() if not name.endswith(".log")}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with quick_folder(tmp_path) as made:
        yield made


@pytest.fixture
def left(folder: Path) -> Path:
    """Where what a power failure has left is looked at."""
    return folder / "left"


def left_by(cut: PowerCut, left: Path) -> ProvisioningService:
    """Return a service on what *cut* has left."""
    cut.write(left)
    return ProvisioningService(left / "fleet", SETTINGS)


def check_audit(service: ProvisioningService, *more: str) -> str:
    """Verify the audit log; return what the command says."""
    done = service.command("audit", "verify", "--dir", str(service.dir), *more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_authority_that_was_founded_is_there(folder: Path, left: Path) -> None:
    with recorded(folder / "disk", founded=False) as (disk, cuts, founded):
        founded.command("init", "--dir", str(founded.dir), check=True)
        disk.mark("founded")
    positions = [each for each in cuts.interesting(4, SEED) if each > len(disk.records()) - 12 or not each % 7]
    for cut in cuts.at(positions, list(Disk), SEED):
        service = left_by(cut, left)
        if not cut.marks and not service.dir.exists():
            continue  # Somebody waits for the command, and does it again.
        with service:
            enrol(service, "meter-1")
        check_audit(service)


def test_what_was_answered_is_kept(folder: Path, left: Path) -> None:
    with recorded(folder / "disk", founded=True) as (disk, cuts, service):

        def know(**fact: object) -> None:
            disk.mark(json.dumps(fact))

        def head() -> str:
            return check_audit(looking).splitlines()[1].removeprefix("head ")

        looking = ProvisioningService(service.dir, SETTINGS)  # Its commands change nothing, and are not recorded.
        service.start()
        for name in ("meter-1", "meter-2", "meter-3"):
            token = service.token(device=name)
            know(token=token, device=name)
            assert asyncio.run(spent(service, name, token)) == "enrolled"
            (serial,) = service.stored("SELECT serial FROM certificates ORDER BY id DESC LIMIT 1")[0]
            know(spent=token, device=name, certificate=serial)
        for name in ("meter-1", "meter-2"):
            (event,) = service.revoke(device=name)
            know(revoked=event["serial"], sequence=event["sequence"])
            wait_until(lambda: event["serial"] in revoked_in(service), "the list has it")
            know(crl=crl_of(service).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number)
        know(head=head())
        file = service.dir.with_name("meter-4.token")
        service.command("token", "create", "--device", "meter-4", "--output", str(file), "--dir", str(service.dir),
                        check=True)  # fmt: skip
        know(file=file.name, content=file.read_text())
        ca(service, "rollover", "begin")
        know(states=states(looking))
        ca(service, "rollover", "activate", "--without-waiting")
        know(states=states(looking))
        know(head=head())
        service.kill()
    for cut in cuts.few(6, SEED):
        again = left_by(cut, left)
        with again:
            check_kept(again, [json.loads(each) for each in cut.marks])


def check_kept(service: ProvisioningService, known: list[dict[str, Any]]) -> None:
    """Check that *service* still knows what was *known*."""
    serials = {serial for (serial,) in service.stored("SELECT serial FROM certificates")}
    events = dict(service.stored(_EVENTS))
    spent_tokens = {each["spent"] for each in known if "spent" in each}
    revoked, now = revoked_in(service), dict(service.stored("SELECT name, state FROM authorities"))
    for each in known:
        match each:
            case {"token": token, "device": name} if token not in spent_tokens:
                assert asyncio.run(spent(service, name, token)) in {"enrolled", "TOKEN_USED"}  # Before the answer came.
            case {"spent": token, "device": name, "certificate": serial}:
                assert serial in serials
                assert asyncio.run(spent(service, name, token)) == "TOKEN_USED"
            case {"revoked": serial, "sequence": sequence}:
                assert events[sequence] == serial
                assert serial in revoked
            case {"crl": number}:
                assert crl_of(service).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number >= number
            case {"file": name, "content": content}:
                assert service.dir.with_name(name).read_text() == content
            case {"states": then}:
                assert all(_LIFE.index(now[name]) >= _LIFE.index(state) for name, state in then.items())
    heads = [each["head"] for each in known if "head" in each]
    check_audit(service, *(f"--head={each}" for each in heads[-1:]))
    (new,) = enrol(service, "meter-9")
    assert new.serial not in serials


def crl_of(service: ProvisioningService) -> x509.CertificateRevocationList:
    return x509.load_der_x509_crl(httpx.get(f"{service.http}/crl/issuing-ca.crl", trust_env=False).content)


def revoked_in(service: ProvisioningService) -> set[str]:
    return {f"{each.serial_number:x}" for each in crl_of(service)}


def test_what_is_answered_after_a_sync_that_failed_once_is_kept(folder: Path, left: Path) -> None:
    """The kernel reports a failed write once, and takes it for written: all of it must be written again."""
    with recorded(folder / "disk", founded=True) as (disk, cuts, service):
        service.start()
        refused = 0
        for number in range(9):
            if number in {2, 5}:
                disk.fail_a_sync()
            order = {"device": f"meter-{number}", "group": "meters"}
            answer = service.post("/v1/tokens", **order)
            if answer.status_code == 201:
                disk.mark(json.dumps({"token": answer.json()["tokens"][0]["token"], "device": order["device"]}))
            else:
                assert (answer.status_code, answer.json()["code"]) == (503, "UNAVAILABLE")
                refused += 1
        service.kill()
        assert [each.kind for each in disk.records()].count("X") == refused == 2
    for cut in cuts.few(4, SEED):
        with left_by(cut, left) as again:
            check_kept(again, [json.loads(each) for each in cut.marks])
