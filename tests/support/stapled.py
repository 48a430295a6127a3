"""What a client that requests the staple gets: openssl s_client requests and decodes it."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from provisioning.pki.tls import CredentialFiles
from tests.support.broker_process import PATIENCE
from tests.support.wire import V5, connect_packet

_NONE = "OCSP response: no response sent", "OCSP responses: no responses sent"
"""What openssl says of no staple, to 3.5 and from 3.6 on."""


@dataclass(frozen=True)
class Stapled:
    """A staple; *status* is empty if there was none."""

    status: str
    serial: str
    this_update: str
    reused: bool
    """Whether the TLS session was resumed."""
    said: str
    """All of openssl's output."""


def stapled(port: int, anchors: Path, credential: CredentialFiles, *options: str | Path) -> Stapled:
    """Connect to *port* as an MQTT client that requests the staple, and disconnect again."""
    done = subprocess.run(
        [
            *("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", "localhost", "-status"),
            *("-CAfile", anchors, "-verify_return_error", "-ign_eof", *options),
            *("-cert", credential.certificate, "-key", credential.key, "-cert_chain", credential.certificate),
        ],
        input=connect_packet(V5, client_id="").encode() + b"\xe0\x00",
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    said = (done.stdout + done.stderr).decode(errors="replace")
    assert "Verify return code: 0 (ok)" in said, said
    reused = "\nReused, " in said
    if "OCSP Response Status" not in said:
        assert reused or any(none in said for none in _NONE), said
        return Stapled("", "", "", reused, said)
    assert "OCSP Response Status: successful" in said
    serial = _found(r"Serial Number: ([0-9A-F]+)", said).lower().lstrip("0")
    return Stapled(_found(r"Cert Status: (\w+)", said), serial, _found(r"This Update: (.+)", said), reused, said)


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found is not None, text
    return found[1]
