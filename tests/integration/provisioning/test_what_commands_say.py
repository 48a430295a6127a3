"""What commands say at their end: also if nobody reads it, if they are interrupted, or if something is left to do."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from provisioning.authorities.authority_life import AuthorityLife
from provisioning.commands.ceremony_command import Ceremony, Facts
from tests.support.enrolled import enrol
from tests.support.programs import REPOSITORY
from tests.support.provisioning import ProvisioningService

MANY = 1500
"""More than one request imports."""


def test_an_import_is_done_to_the_end_whoever_reads_what_is_wrong_with_its_lines(
    service: ProvisioningService, tmp_path: Path
) -> None:
    where = ["--dir", str(service.dir), "--url", service.https]
    assert service.command("group", "create", "unsaid", "--way", "listed", *where).returncode == 0
    file = tmp_path / "devices.csv"
    file.write_text("name\nno name!\n" + "".join(f"unread-{number}\n" for number in range(MANY)))
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "provisioning", "listed", "import", "unsaid", "--file", str(file), *where],
            env=os.environ | service.environment,
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=full,
            check=False,
            timeout=60,
        )
    assert done.stdout == b"%d devices added to the list of unsaid, 0 replaced, 1 line wrong\n" % MANY
    assert done.returncode == 1


@pytest.mark.parametrize("order", [("suspend",), ("revoke", "--reason", "keyCompromise")], ids=["suspend", "revoke"])
def test_who_ends_a_certificate_is_told_what_is_left_to_its_device(
    service: ProvisioningService, order: tuple[str, ...]
) -> None:
    """By design they stay (docs/enrolment.md): the device may have another certificate."""
    name = f"tokens-{order[0]}"
    serials = [device.serial for _ in range(2) for device in enrol(service, name)]
    where = ["--dir", str(service.dir), "--url", service.https]
    done = service.command(*order, "--serial", serials[0], *where)
    assert (done.returncode, "open token" in done.stderr) == (0, False)
    left = f"{name} has 1 other valid certificate, which this does not {order[0]}: to end the device's access,"
    assert f"{left} {order[0]} --device {name}" in " ".join(done.stderr.split())
    service.token(device=name)
    done = service.command(*order, "--serial", serials[1], *where)
    assert done.returncode == 0
    told = " ".join(done.stderr.split())
    assert f"{name} has 1 open token, which this does not void: if it is not to come back, token void --device" in told
    assert "other valid certificate" not in told


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    service = ProvisioningService.copied(tmp_path / "fleet")
    for name, value in service.environment.items():
        monkeypatch.setenv(name, value)
    return service.dir


def test_an_interrupted_ceremony_says_what_to_look_at(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def work(life: AuthorityLife) -> Facts:
        life.transcript.say("One step is done.")
        signal.raise_signal(signal.SIGINT)
        await asyncio.Event().wait()
        raise AssertionError("it is interrupted")

    with pytest.raises(typer.Exit) as ended:
        Ceremony(directory).hold("ca test", work)
    said = capsys.readouterr()
    assert ended.value.exit_code == 130
    assert "One step is done." in said.out
    told = " ".join(said.err.split())
    assert "ca test was interrupted: what it has shown as done is in effect, and what follows may be." in told
    assert "Look with ca list and audit show before you run it again" in told


def test_a_ceremony_that_is_interrupted_before_it_begins_says_so(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    async def work(_life: AuthorityLife) -> Facts:
        raise AssertionError("it has not begun")

    monkeypatch.setattr("provisioning.directory.audit_key.read_audit_key", interrupted)
    with pytest.raises(typer.Exit) as ended:
        Ceremony(directory).hold("ca test", work)
    assert ended.value.exit_code == 130
    assert "ca test was stopped before it began" in capsys.readouterr().err
