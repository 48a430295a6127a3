"""Debian's mosquitto as a target, configured as well as it can be: mutual TLS, a CRL, an ACL by the certificate's name.

mosquitto reads the CRL and the ACL again on SIGHUP; a session that is connected it leaves alone. What it does
not claim is not in its `CAPABILITIES`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from device_sim.attack.capabilities import Capabilities, CrlFile, Feature, TimeLimits
from device_sim.attack.issuer import SERVER_AUTH, Issuer, common_name
from device_sim.attack.target import SigningRegistrar, Target
from device_sim.processes import ChildFailed
from device_sim.tls_dial import Endpoint
from provisioning.pki.identity import Identity, Role
from provisioning.pki.keys import key_to_pem, write_private

CAPABILITIES = Capabilities(
    name="mosquitto",
    # Not claimed: the client id is free (client_id_binding); a subscription that may deliver nothing is granted, and
    # the ACL acts at delivery (subscription_policy).
    supports=frozenset({Feature.MQTT5, Feature.QOS2, Feature.TOPIC_POLICY, Feature.REVOCATION}),
    limits=TimeLimits(handshake=15.0, connect=15.0, keep_alive=8.0, revocation=3.0),
    expected={"5-revoked": ("tls certificate_revoked",)},
)
_DOMAIN = "fleet.internal"
_START = 10.0
_LOOPBACK = "127.0.0.1"
_CONFIG = """\
per_listener_settings false
allow_anonymous false
acl_file {directory}/acl
listener {port} 127.0.0.1
cafile {directory}/anchors.pem
certfile {directory}/broker.crt
keyfile {directory}/broker.key
crlfile {directory}/crl.pem
require_certificate true
use_identity_as_username true
tls_version {tls}
max_queued_bytes 1048576
max_packet_size 1048576
"""
# %u is the Common Name. Services are named, since mosquitto knows no roles.
_ACL = """\
pattern write fleet/meters/%u/telemetry
pattern write fleet/meters/%u/flood
pattern write fleet/meters/%u/state
pattern read fleet/meters/%u/cmd/#
"""
_SERVICE_ACL = """
user {name}
topic read fleet/#
topic write fleet/+/+/cmd/#
"""
_MOST_SERVICES = 200


class MosquittoMissing(Exception):
    """There is no mosquitto on this machine."""


class _Registrar(SigningRegistrar):
    """Signs; revokes by the CRL file and SIGHUP."""

    def __init__(self, issuer: Issuer, crl_file: Path, pid: int, other_crls: bytes) -> None:
        super().__init__(issuer, CrlFile(crl_file=crl_file, reload=("kill", "-HUP", str(pid))), other_crls=other_crls)


@asynccontextmanager
async def mosquitto(directory: Path, *, tls12: bool = False) -> AsyncIterator[Target]:
    """Start mosquitto in *directory* and yield it; stop it on leaving."""
    program = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if program is None:
        raise MosquittoMissing("mosquitto is not installed: apt-get install mosquitto")
    issuer, other = Issuer.founded(common_name("Fleet issuing CA")), Issuer.founded(common_name("Second CA"))
    broker = issuer.issue(Identity(_DOMAIN, Role.BROKER, "broker-1"), usages=SERVER_AUTH, dns_names=["localhost"])
    (directory / "ca.pem").write_bytes(issuer.pem)
    (directory / "anchors.pem").write_bytes(issuer.pem + other.pem)
    (directory / "crl.pem").write_bytes(issuer.crl(()) + other.crl(()))
    (directory / "broker.crt").write_bytes(broker.pem.pem)
    write_private(directory / "broker.key", key_to_pem(broker.key))
    services = "".join(
        _SERVICE_ACL.format(name=f"{stem}-{number:03d}")
        for stem in ("watcher", "sender")
        for number in range(1, _MOST_SERVICES)
    )
    (directory / "acl").write_text(_ACL + services)
    with socket.create_server((_LOOPBACK, 0)) as free:  # It cannot choose its own port.
        port: int = free.getsockname()[1]
    config = _CONFIG.format(directory=directory, port=port, tls="tlsv1.2" if tls12 else "tlsv1.3")
    if os.geteuid() == 0:
        config += "user root\n"
    (directory / "mosquitto.conf").write_text(config)
    process = await asyncio.create_subprocess_exec(
        program,
        "-v",
        "-c",
        str(directory / "mosquitto.conf"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    drain: asyncio.Task[None] | None = None
    try:
        await _until_running(process)
        drain = asyncio.create_task(_drain(process), name="drain mosquitto")
        capabilities = CAPABILITIES
        if tls12:
            capabilities = capabilities.model_copy(update={"supports": capabilities.supports | {Feature.TLS12}})
        yield Target(
            capabilities,
            Endpoint(_LOOPBACK, port, "localhost"),
            directory / "ca.pem",
            issuer,
            _Registrar(issuer, directory / "crl.pem", process.pid, other.crl(())),
            broker_pid=process.pid,
            other_issuer=other,
        )
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        await process.wait()
        if drain is not None:
            await drain


async def _until_running(process: asyncio.subprocess.Process) -> None:
    if process.stderr is None:
        raise RuntimeError("mosquitto was started without a pipe for its log")
    said = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_START):
            async for text in process.stderr:
                said += text
                if b"running" in text:
                    return
    raise ChildFailed(f"mosquitto did not start:\n{said.decode(errors='replace')}")


async def _drain(process: asyncio.subprocess.Process) -> None:
    while process.stderr is not None and await process.stderr.read(65536):
        pass
