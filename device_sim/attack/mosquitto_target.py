"""Debian's mosquitto as a target, configured as strictly as possible: mutual TLS, a CRL, an ACL by certificate name.

mosquitto rereads the CRL and the ACL on SIGHUP, but leaves connected sessions alone. What it does not claim is missing
from its `CAPABILITIES`. Without `allow_duplicate_messages`, whose default differs from its manual, it sends a message
that matches two subscriptions once, at the QoS of either.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from device_sim.attack.capabilities import Capabilities, CrlFile, Feature, TimeLimits
from device_sim.attack.foreign_server import Papers, expected_names
from device_sim.attack.target import Crls, Publish, SigningRegistrar, Target
from device_sim.link.tls_dial import Endpoint
from device_sim.stage.foreign_process import free_port, program, serving, version_in

CAPABILITIES = Capabilities(
    name="mosquitto",
    # Not claimed: the client id is free (client_id_binding); a subscription that may deliver nothing is granted, and
    # the ACL acts at delivery (subscription_policy).
    supports=frozenset(
        {Feature.MQTT5, Feature.QOS2, Feature.TOPIC_POLICY, Feature.REVOCATION, Feature.CERTIFICATE_REVOCATION}
    ),
    limits=TimeLimits(handshake=15.0, connect=15.0, keep_alive=8.0, revocation=3.0),
    expected={"5-revoked": ("tls certificate_revoked",)},
)  # fmt: skip
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
"""
LIMITS = """\
max_queued_bytes 1048576
allow_duplicate_messages true
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


@asynccontextmanager
async def mosquitto(directory: Path, *, tls12: bool = False) -> AsyncIterator[Target]:
    """Start mosquitto in *directory* and yield it; stop it on leaving."""
    found = program("mosquitto", "mosquitto")
    papers = Papers(directory)
    services = "".join(_SERVICE_ACL.format(name=name) for name in expected_names("watcher", "sender"))
    (directory / "acl").write_text(_ACL + services)
    port = free_port()
    config = (_CONFIG + LIMITS).format(directory=directory, port=port, tls="tlsv1.2" if tls12 else "tlsv1.3")
    if os.geteuid() == 0:
        config += "user root\n"
    (directory / "mosquitto.conf").write_text(config)
    arguments = [found, "-v", "-c", str(directory / "mosquitto.conf")]
    log = directory / "mosquitto.log"
    async with serving("mosquitto", arguments, log=log, ready="running") as process:
        reload = CrlFile(crl_file=papers.crl, reload=("kill", "-HUP", str(process.pid)))
        registrar = SigningRegistrar(papers.issuer, reload, other_crls=papers.other.crl(()))
        target = papers.target(CAPABILITIES, port, registrar, process, version_in(log, "version"), tls12=tls12)

        @asynccontextmanager
        async def crls(first: Crls) -> AsyncIterator[tuple[Endpoint, Publish]]:
            await registrar.publish_others(first)
            yield target.endpoint, registrar.publish_others

        target.crls = crls
        yield target
