"""A root that signs where there is no store: without a transcript nothing tells of what it has signed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.ca_life import ca
from tests.support.programs import REPOSITORY
from tests.support.provisioning import ProvisioningService

FILE_OF_2048_BYTES = ["sh", "-c", 'ulimit -f 4; exec "$@"', "sh"]
"""The kernel refuses more, as a full disk would."""


def test_no_certificate_is_left_whose_transcript_cannot_be_written(tmp_path: Path) -> None:
    service = ProvisioningService.copied(tmp_path / "fleet")
    request, signed = tmp_path / "issuing.csr", tmp_path / "issuing.crt"
    ca(service, "export-csr", "--output", str(request))
    where = ["--dir", str(service.dir), "--output", str(signed)]
    order = [sys.executable, "-m", "provisioning", "ca", "root", "sign", str(request), *where]
    done = subprocess.run(
        [*FILE_OF_2048_BYTES, *order, "--witness", "A. Auditor" * 300],
        env={**service.environment, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert f"Written: {signed}" in done.stdout, "it was signed, and fitted"
    transcript = f"{signed}.transcript.txt"
    assert done.stderr == (
        f"fleet-provisioning: the transcript {transcript} cannot be written: File too large; the certificate {signed} "
        "was removed again: sign again when there is a place for both\n"
    )
    assert done.returncode == 1
    assert sorted(tmp_path.iterdir()) == [service.dir, request]
    ca(service, "root", "sign", str(request), "--output", str(signed))
    assert "BEGIN CERTIFICATE" in signed.read_text()
    assert Path(transcript).exists()
