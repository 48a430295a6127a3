"""A device that is tested at the stand of `fleet-sim qualify`, packet by packet."""

from __future__ import annotations

from pathlib import Path

from broker.mqtt.codes import ProtocolVersion
from device_sim.attack.raw_client import RawClient
from device_sim.link.tls_dial import Endpoint
from device_sim.qualify.stand import Stand
from provisioning.pki.tls import CredentialFiles, client_context


async def dialled(stand: Stand, files: Path, version: ProtocolVersion = ProtocolVersion.V5) -> RawClient:
    """Connect to *stand* with the papers in *files*, and send nothing yet."""
    context = client_context(files / "ca.crt", CredentialFiles(files / "device.crt", files / "device.key"))
    return await RawClient.dial(Endpoint("127.0.0.1", stand.port, "localhost"), context, version=version)
