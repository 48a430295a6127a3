"""A ceremony whose output nobody reads to the end, as with head, is held to the end all the same.

It would stop between two of its steps: when the CA is revoked, say, and the first operator has no certificate any more.
Nor does another one begin on the same directory meanwhile.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from provisioning.directory.files import read_certificate
from provisioning.directory.one_ceremony import ceremony_on
from tests.support.ca_life import ca, ca_attempt, states
from tests.support.programs import REPOSITORY
from tests.support.provisioning import ProvisioningService


@pytest.mark.parametrize("as_json", [False, True])  # The lines go to standard output, or aside.
def test_who_reads_no_further_does_not_stop_a_ceremony(tmp_path: Path, as_json: bool) -> None:
    service = ProvisioningService.copied(tmp_path / "fleet")
    ca(service, "rollover", "begin")
    ca(service, "rollover", "activate", "--without-waiting")
    order = ["ca", "revoke", "issuing-ca", "--yes", "--dir", str(service.dir), *["--json"] * as_json]
    facts = tmp_path / "facts"
    with facts.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "provisioning", *order],
            env=os.environ | service.environment | {"PYTHONUNBUFFERED": "1"},
            cwd=REPOSITORY,
            stdout=file if as_json else subprocess.PIPE,
            stderr=subprocess.PIPE if as_json else subprocess.DEVNULL,
        )
        lines = process.stderr if as_json else process.stdout
        assert lines is not None
        assert lines.readline().startswith(b"Ceremony: ")
        while lines.readline().strip():  # Until its head is shown nothing is done.
            pass
        lines.close()
        assert process.wait(60) == 1
    assert (b'"state": "revoked"' in facts.read_bytes()) == as_json, "what was to be read is there"
    assert states(service)["issuing-ca"] == "revoked"
    assert service.stored("SELECT 1 FROM unfinished_authority_ends") == []
    operator = read_certificate(service.dir / "operator.crt")
    assert "issuing CA 2" in operator.issuer.rfc4514_string()
    (transcript,) = (service.dir / "ceremonies").glob("*-ca-revoke.txt")
    assert service.command("ca", "verify-transcript", str(transcript), "--dir", str(service.dir)).returncode == 0


def test_one_ceremony_at_a_time_works_on_a_directory(tmp_path: Path) -> None:
    service = ProvisioningService.copied(tmp_path / "fleet")
    with ceremony_on(service.dir):
        done = ca_attempt(service, "rollover", "begin")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"fleet-provisioning: another ceremony is held on {service.dir} at this moment: wait for its end; "
        f"fuser -v {service.dir / 'audit.key'} names its process\n"
    )
    assert not (service.dir / "issuing-2.key").exists()
