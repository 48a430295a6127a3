"""What testssl.sh, which judges public servers, makes of the broker's door for MQTT: nothing above informational.

That takes longer than any other test, and the door for WebSockets answers with the very same `SSLContext`: of both,
sslyze says that they do alike, in a tenth of the time (`test_judged_by_sslyze`).

Two of its checks are not asked, and are a third of its work, of provisioning's door three quarters: cipher lists (`-s`)
and forward secrecy (`-f`). Where nothing older than TLS 1.3 is offered, which `-p` says, no cipher is without
authentication or forward secrecy, no curve or group is a weak one (RFC 8446 §4.2.7), and no handshake is signed with
SHA-1 (§4.2.3). Which ciphers and curves there are, of TLS 1.2 as well, is asserted of what sslyze finds.

Some are asked only where sslyze cannot be had. Of provisioning's door what there is to say of certificate and staple
(`-S`), which is half of its work. Of the broker's Heartbleed and CCS (`-H`, `-I`), which sslyze tries; and what is
nothing without TLS 1.2: to fall back (`-Z`), a ticket in the ServerHello (`-T`), export groups and SSL 2 (`-J`, `-D`).

One thing it would say is not a fault here, and is said to it: it wants certificates to be valid for 60 days more. The
broker renews its own ten days before they end.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from provisioning.pki.tls import ClientCertificate, server_context
from tests.integration.broker.test_judged_by_sslyze import UNAVAILABLE
from tests.support.broker_process import BrokerProcess
from tests.support.enrolled import enrol
from tests.support.needed import needed
from tests.support.pki import Pki
from tests.support.provisioning import ProvisioningService

EVERYTHING = (
    "-p", "-S", "-R", "-C", "-O", "-W", "-A", "-L", "-F", "-4",
    *(["-H", "-I", "-T", "-Z", "-J", "-D"] if UNAVAILABLE.exists() else []),
)  # fmt: skip
"""Protocols, certificate, handshake, and each vulnerability but the one of HTTP: without those that sslyze tries, or
that are none where nothing older than TLS 1.3 is offered, unless sslyze cannot be had."""
OF_TLS_1_2 = ("-p", "-T", "-R", "-C", *(["-S"] if UNAVAILABLE.exists() else []))
"""Protocols; tickets, renegotiation, compression; certificate and staple, if sslyze cannot say what they are."""
UNPUBLISHED = {("HIGH", "cert_revocation", "Neither CRL nor OCSP URI provided")}
"""The tests' service has no `public_http_url`, at which it would publish."""
FINDINGS = {"LOW", "MEDIUM", "HIGH", "CRITICAL"}
TOOL = {"engine_problem"}  # Of testssl's own OpenSSL, not of the server.


async def judged(
    directory: Path, port: int, *checks: str, credential: Path | None = None, anchors: Path
) -> list[dict[str, str]]:
    """Return all that testssl.sh says about the server at *port*."""
    document = directory / f"{port}.json"
    own = ["--mtls", str(credential)] if credential is not None else []
    process = await asyncio.create_subprocess_exec(
        needed("testssl"), "--quiet", "--color", "0", "--warnings", "off", "--nodns", "none", "--add-ca", str(anchors),
        *own, "--jsonfile", str(document), *checks, f"localhost:{port}",
        env={**os.environ, "DAYS2WARN1": "10", "DAYS2WARN2": "5"}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    await process.wait()
    said: list[dict[str, str]] = json.loads(document.read_text())
    return said


def findings(said: list[dict[str, str]]) -> set[tuple[str, str, str]]:
    return {
        (each["severity"], each["id"], each["finding"])
        for each in said
        if each["severity"] in FINDINGS and each["id"] not in TOOL
    }


async def test_the_door_has_no_finding(tmp_path: Path, service: ProvisioningService) -> None:
    (device,) = await asyncio.to_thread(enrol, service, "meter-testssl")
    credential = device.write(tmp_path).certificate
    with BrokerProcess.enrolled(tmp_path / "judged", service) as broker:
        said = await judged(tmp_path, broker.port, *EVERYTHING, credential=credential, anchors=service.bundle)
    assert findings(said) == set()
    facts = {each["id"]: each["finding"] for each in said}
    assert facts["TLS1_2"] == "not offered"
    assert facts["TLS1_3"].startswith("offered")
    assert facts["cert_chain_of_trust"] == "passed."
    assert facts["OCSP_stapling"] == "offered"


async def test_the_door_of_provisioning_has_none_though_it_takes_tls_1_2(
    tmp_path: Path, service: ProvisioningService
) -> None:
    """Anybody may knock there. Of its ciphers none is old (`test_judged_by_sslyze`): attacks on those are not tried."""
    said = await judged(tmp_path, service.port, *OF_TLS_1_2, anchors=service.bundle)
    assert findings(said) <= UNPUBLISHED
    facts = {each["id"]: each["finding"] for each in said}
    assert (facts["TLS1_1"], facts["TLS1_2"]) == ("not offered", "offered")
    if "-S" in OF_TLS_1_2:
        assert facts["cert_chain_of_trust"] == "passed."
        assert facts["OCSP_stapling"].startswith("offered")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1 is deprecated:DeprecationWarning")
async def test_the_judge_sees_what_is_wrong(tmp_path: Path, pki: Pki) -> None:
    anchors = pki.write_anchors(tmp_path)
    context = server_context(
        pki.broker().credential, anchors, client_certificate=ClientCertificate.OPTIONAL, allow_tls12=True
    )
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1

    def serve(listening: socket.socket) -> None:
        while True:
            try:
                connected, _ = listening.accept()
            except OSError:
                return
            try:
                connected.settimeout(5)
                context.wrap_socket(connected, server_side=True).close()
            except OSError:
                connected.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = asyncio.create_task(asyncio.to_thread(serve, listening))
        said = await judged(tmp_path, listening.getsockname()[1], "-p", anchors=anchors)
        listening.shutdown(socket.SHUT_RDWR)
        await serving
    assert {"TLS1", "TLS1_1"} <= {name for _, name, _ in findings(said)}
