"""What commands say when there is nothing to do, when it was done before, and to who reads no further."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.openssl import OpensslDevice, openssl
from tests.support.programs import forking_python
from tests.support.provisioning import REPOSITORY, ProvisioningService


def how_buffered(unbuffered: bool) -> tuple[str, dict[str, str]]:
    """Return what to call as ``python``, and its environment: the interpreter itself reads how it is to write."""
    if unbuffered:
        return sys.executable, os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    return forking_python("provisioning"), os.environ | {"PYTHONPATH": str(REPOSITORY)}


def run(service: ProvisioningService, *arguments: str) -> subprocess.CompletedProcess[str]:
    return service.command(*arguments, "--dir", str(service.dir), "--url", service.https)


@pytest.mark.parametrize("unbuffered", [False, True])  # The pipe breaks when all is written, or at the first line.
@pytest.mark.parametrize("arguments", [("certificate", "export"), ("audit", "show", "--limit", "100000")])
def test_who_stops_reading_ends_the_command_without_a_word(
    service: ProvisioningService, arguments: tuple[str, ...], unbuffered: bool
) -> None:
    where = ["--dir", str(service.dir)] + (["--url", service.https] if arguments[0] == "certificate" else [])
    python, environment = how_buffered(unbuffered)
    process = subprocess.Popen(
        [python, "-m", "provisioning", *arguments, *where],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(60) == 1


@pytest.mark.parametrize(
    "unbuffered", [False, True]
)  # The disk is found full when all is written, or at the first line.
@pytest.mark.parametrize("arguments", [("version",), ("device", "list"), ("status", "--json")])
def test_output_that_cannot_be_written_is_said_in_one_line(
    service: ProvisioningService, arguments: tuple[str, ...], unbuffered: bool
) -> None:
    where = ["--dir", str(service.dir), "--url", service.https] if arguments != ("version",) else []
    python, environment = how_buffered(unbuffered)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [python, "-m", "provisioning", *arguments, *where],
            cwd=REPOSITORY,
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    said = "fleet-provisioning: the output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, said)


@pytest.mark.parametrize(
    ("command", "content", "said"),
    [
        (("revoke", "--devices-file"), b"meter-1\nm\xe4her\n", "is not UTF-8 text ('utf-8' codec can't decode"),
        (("revoke", "--devices-file"), "nobody\r\n".encode("utf-16"), "is not UTF-8 text ("),
        (
            ("revoke", "--devices-file"),
            b"\xef\xbb\xbfnobody\r\n",
            "no device is called 'nobody'; nothing of this request was revoked",
        ),
        (("listed", "import", "west", "--file"), b"name\nm\xe4her\n", "continuation byte: save it as UTF-8"),
        (("listed", "import", "west", "--file"), b'name\nmeter-1\n"meter-2\nmeter-3\n', "unexpected end of data"),
        (("listed", "import", "west", "--file"), b"name,name\nmeter-1,meter-2\n", "its first line is 'name,name'"),
    ],
)
def test_a_file_in_another_encoding_is_named_in_one_line(
    service: ProvisioningService, tmp_path: Path, command: tuple[str, ...], content: bytes, said: str
) -> None:
    names = tmp_path / "names"
    names.write_bytes(content)
    done = run(service, *command, str(names))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert said in done.stderr


def test_a_server_of_another_fleet_is_told_apart_from_none(service: ProvisioningService, tmp_path: Path) -> None:
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=Other root",
            "-keyout", tmp_path / "other.key", "-out", tmp_path / "other.crt")  # fmt: skip
    done = run(service, "device", "list", "--cafile", str(tmp_path / "other.crt"))
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{service.https} is not the provisioning service that the trust anchors vouch for (" in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_was_done_before_is_said(service: ProvisioningService, enrolled: OpensslDevice) -> None:
    device = ("--device", enrolled.name)
    nothing = run(service, "resume", *device)
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (
        0,
        "",
        "fleet-provisioning: no certificate was on hold for a suspension; the device is active\n",
    )
    first = run(service, "revoke", *device)
    assert (first.returncode, first.stderr) == (0, "")
    assert run(service, "revoke", *device).stderr == "", "the same again is no news"
    before = "fleet-provisioning: revoked before, with the reason and date shown: 1 of 1\n"
    for other in (("--reason", "superseded"), ("--invalidity-date", "2026-01-05T08:00:00")):
        again = run(service, "revoke", *device, *other)
        assert (again.stdout, again.stderr) == (first.stdout, before)
    changed = run(service, "revoke", *device, "--reason", "keyCompromise")
    assert ("keyCompromise" in changed.stdout, changed.stderr) == (True, "")
    again = run(service, "revoke", *device, "--reason", "superseded")
    assert (again.stdout, again.stderr) == (changed.stdout, before)


def test_every_moment_is_written_for_programs_in_one_way(
    service: ProvisioningService, enrolled: OpensslDevice, tmp_path: Path
) -> None:
    """`ca list`, `audit show` and the file of a batch had an offset and microseconds, all others Z and none."""
    directory = ("--dir", str(service.dir))
    batch = tmp_path / "tokens.csv"
    assert run(service, "token", "batch", "--group", "meters", "--count", "1", "--output", str(batch)).returncode == 0
    for text in (
        service.command("ca", "list", "--json", *directory, check=True).stdout,
        service.command("audit", "show", "--limit", "1", "--json", *directory, check=True).stdout,
        run(service, "device", "show", enrolled.name, "--json").stdout,
        batch.read_text(encoding="utf-8"),
    ):
        moments = re.findall(r"\d{4}-\d\d-\d\dT[^\s\",]*", text)
        assert moments
        assert [each for each in moments if not re.fullmatch(r"[-0-9]{10}T[:0-9]{8}(\.\d{3})?Z", each)] == []


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("stolen", "'stolen' is not one of unspecified, keyCompromise,"),
        ("cACompromise", "'cACompromise' is not one of"),
        ("certificateHold", "a hold is made by suspend"),
    ],
)
def test_a_reason_that_cannot_be_given_is_told_with_those_that_can(
    service: ProvisioningService, reason: str, words: str
) -> None:
    done = run(service, "revoke", "--device", "meter-1", "--reason", reason)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())
    assert "Value error" not in done.stderr
