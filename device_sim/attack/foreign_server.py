"""What every foreign broker is given before it is attacked: two CAs, their CRLs, a certificate of its own."""

from __future__ import annotations

from asyncio.subprocess import Process
from pathlib import Path

from device_sim.attack.capabilities import Capabilities, Feature
from device_sim.attack.issuer import SERVER_AUTH, Issuer, Paper
from device_sim.attack.target import Registrar, Target
from device_sim.credentials.certification import common_name
from device_sim.link.tls_dial import Endpoint
from device_sim.stage.foreign_process import LOOPBACK
from provisioning.pki.identity import Identity
from provisioning.pki.keys import key_to_pem, write_private
from provisioning.pki.role import Role

DOMAIN = "fleet.internal"
_MOST = 500


class Papers:
    """What a foreign broker is given: two CAs that it trusts, their CRLs, and its own certificate, as PEM files."""

    def __init__(self, directory: Path, *, dns_of_name: bool = False) -> None:
        self.issuer = Issuer.founded(common_name("Fleet issuing CA"), dns_of_name=dns_of_name)
        self.other = Issuer.founded(common_name("Second CA"), path_length=None, dns_of_name=dns_of_name)
        self.server: Paper = self.issuer.issue(
            Identity(DOMAIN, Role.BROKER, "broker-1"), usages=SERVER_AUTH, dns_names=["localhost"]
        )
        self.ca, self.anchors, self.crl = (directory / name for name in ("ca.pem", "anchors.pem", "crl.pem"))
        self.certificate, self.key = directory / "broker.crt", directory / "broker.key"
        self.ca.write_bytes(self.issuer.pem)
        self.anchors.write_bytes(self.issuer.pem + self.other.pem)
        self.crl.write_bytes(self.issuer.crl(()) + self.other.crl(()))
        self.certificate.write_bytes(self.server.pem.pem)
        write_private(self.key, key_to_pem(self.server.key))

    def target(
        self,
        capabilities: Capabilities,
        port: int,
        registrar: Registrar,
        process: Process,
        version: str,
        *,
        tls12: bool,
    ) -> Target:
        """Return the target: a server with these papers, on *port*; with *tls12* it accepts TLS 1.2 too."""
        if tls12:
            capabilities = capabilities.model_copy(update={"supports": capabilities.supports | {Feature.TLS12}})
        return Target(
            capabilities,
            Endpoint(LOOPBACK, port, "localhost"),
            self.ca,
            self.issuer,
            registrar,
            version=version,
            broker_pid=process.pid,
            other_issuer=self.other,
        )


def expected_names(*stems: str) -> list[str]:
    """Return the names that the cases give to parties of *stems*, for a broker that must know them in advance."""
    return [f"{stem}-{number:03d}" for stem in stems for number in range(1, _MOST)]
