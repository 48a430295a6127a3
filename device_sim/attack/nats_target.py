"""Debian's nats-server as a target: its MQTT listener with mutual TLS, and a user with permissions for each name.

NATS speaks MQTT 3.1.1. It identifies a client by a name in its certificate, here the URI (``verify_and_map``), and
reads the users from its configuration, again on SIGHUP. It reads no CRL (it can ask an OCSP responder, which a test CA
lacks): to keep a client out, it is removed from the users, which also ends its connection. That revokes a device, not
one certificate.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from device_sim.attack.capabilities import Capabilities, Feature, TimeLimits
from device_sim.attack.foreign_server import DOMAIN, Papers, expected_names
from device_sim.attack.issuer import Issuer, Paper
from device_sim.attack.target import Target
from device_sim.stage.foreign_process import free_port, program, serving, version_in
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role

CAPABILITIES = Capabilities(
    name="nats-server",
    # Not claimed: the client id is free (client_id_binding); two certificates of one device are one user
    # (certificate_revocation).
    supports=frozenset({
        Feature.QOS2, Feature.URI_IDENTITY, Feature.TOPIC_POLICY, Feature.SUBSCRIPTION_POLICY, Feature.REVOCATION,
    }),
    limits=TimeLimits(handshake=15.0, connect=15.0, keep_alive=8.0, revocation=3.0),
)  # fmt: skip
_GROUP = "meters"
_CONFIG = """\
server_name: attacked
listen: "127.0.0.1:{port}"
jetstream {{ store_dir: "{directory}/jetstream" }}
max_payload: 1048576
max_pending: 1048576
include "users.conf"
mqtt {{
  listen: "127.0.0.1:{mqtt}"
  tls {{
    cert_file: "{papers.certificate}"
    key_file: "{papers.key}"
    ca_file: "{papers.anchors}"
    verify_and_map: true
    min_version: "{tls}"
  }}
}}
"""
# NATS's own subjects behind an MQTT subscription of QoS 1 and 2.
_PLUMBING = ["$MQTT.sub.>", "$MQTT.deliver.pubrel.>"]


class _Users:
    """Issues any certificate it is asked for; revokes by removing the user."""

    def __init__(self, directory: Path, issuer: Issuer) -> None:
        self._file = directory / "users.conf"
        self._issuer = issuer
        devices = (Identity(DOMAIN, Role.DEVICE, name, _GROUP) for name in expected_names("device", "victim"))
        services = (Identity(DOMAIN, Role.SERVICE, name) for name in expected_names("watcher", "sender"))
        self._users = {each.uri: _permissions(each) for each in (*devices, *services)}
        self.pid = 0
        self._write()

    async def certify(self, identity: Identity) -> Paper:
        """Return a certificate; the user already exists."""
        return self._issuer.issue(identity)

    async def revoke(self, paper: Paper) -> None:
        """Remove the user that *paper* maps to, and have the configuration reread."""
        uri = Identity(DOMAIN, Role.DEVICE, paper.name, _GROUP).uri
        self._users.pop(uri, None)
        self._write()
        os.kill(self.pid, signal.SIGHUP)

    def _write(self) -> None:
        users = [{"user": uri, "permissions": permissions} for uri, permissions in self._users.items()]
        self._file.write_text(f"authorization {{ users: {json.dumps(users)} }}\n")


def _permissions(identity: Identity) -> dict[str, dict[str, list[str]]]:
    # A topic is a subject with dots; an MQTT filter "x/#" is the two subjects "x" and "x.>".
    own = f"fleet.{_GROUP}.{identity.name}"
    if identity.role is Role.SERVICE:
        return {
            "publish": {"allow": ["fleet.*.*.cmd", "fleet.*.*.cmd.>"]},
            "subscribe": {"allow": ["fleet", "fleet.>", *_PLUMBING]},
        }
    return {
        "publish": {"allow": [f"{own}.telemetry", f"{own}.flood", f"{own}.state"]},
        "subscribe": {"allow": [f"{own}.cmd", f"{own}.cmd.>", *_PLUMBING]},
    }


@asynccontextmanager
async def nats_server(directory: Path, *, tls12: bool = False) -> AsyncIterator[Target]:
    """Start nats-server in *directory* and yield it; stop it on leaving."""
    found = program("nats-server", "nats-server")
    papers = Papers(directory)
    users = _Users(directory, papers.issuer)
    mqtt = free_port()
    config = directory / "nats.conf"
    tls = "1.2" if tls12 else "1.3"
    config.write_text(_CONFIG.format(port=free_port(), mqtt=mqtt, directory=directory, papers=papers, tls=tls))
    arguments = [found, "-c", str(config)]
    log = directory / "nats.log"
    async with serving("nats-server", arguments, log=log, ready="Server is ready") as process:
        users.pid = process.pid
        yield papers.target(CAPABILITIES, mqtt, users, process, version_in(log, "Version:"), tls12=tls12)
