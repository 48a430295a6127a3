"""A broker in memory whose trust anchors are a file of the test, and its connected clients."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from broker.credentials.own_certificate import OwnCertificate
from broker.reload.parts import ProposedAnchors, digest
from broker.reload.trust_change import NewTrust, ReloadedTrust
from broker.settings.config import BrokerConfig
from broker.sources.anchor_urls import AnchorUrls
from broker.sources.revocation_lists import RevocationLists
from broker.sources.staple import Staple
from broker.sources.trust_files import anchor_files
from provisioning.pki.tls import ClientCertificate, CredentialPem, server_context
from tests.support.pki import Held, pem_of, shared_pki
from tests.support.wire import MemoryBroker, WireClient

PKI = shared_pki()
OTHER = PKI.authority("Other Root CA")
BELOW = PKI.authority("Other Issuing CA", OTHER)


def path(held: Held, *above: Held) -> Sequence[bytes]:
    """Return the path from *held* over the CAs *above*, as a handshake has verified it."""
    return [each.certificate.public_bytes(Encoding.DER) for each in (held, *above)]


def connected(broker: MemoryBroker, held: Held, verified: Sequence[bytes] = ()) -> WireClient:
    """Connect *held* as a client of *broker*; without a *verified* path it resumed its TLS session."""
    client = broker.open(held, path=verified)
    client.connect(client_id="meter-1")
    return client


class Scene:
    """The trust of a broker without sockets whose anchors are files of the test."""

    def __init__(self, directory: Path, broker: MemoryBroker, **settings: Any) -> None:
        self.broker = broker
        self.anchors = directory / "anchors.pem"
        self.believe(PKI.root, OTHER)
        own = PKI.broker().write(directory)
        self.config = BrokerConfig(
            cafile=self.anchors,
            certfile=own.certificate,
            keyfile=own.key,
            **({"unsafe_no_revocation": True} | settings),
        )
        clock = asyncio.get_running_loop().time
        self.trust = ReloadedTrust(
            broker.engine,
            self.config,
            pem_of(PKI.root.certificate, OTHER.certificate).decode(),
            digest(anchor_files(self.config)),
            lambda anchors: server_context(own, anchors, client_certificate=ClientCertificate.REQUIRED),
            [],
            RevocationLists(broker.engine, self.config, clock),
            AnchorUrls(self.config),
            Staple(self.config, OwnCertificate(own, CredentialPem.of(own)), broker.engine, clock),
            lambda: broker.now,
        )

    def believe(self, *authorities: Held) -> None:
        """Write only these *authorities* into the file."""
        self.anchors.write_bytes(pem_of(*(each.certificate for each in authorities)))

    def load(self, proposed: ProposedAnchors | None = None) -> NewTrust:
        """Return what the settings and the file say now, which is not yet in force."""
        loaded = self.trust.load(self.config, proposed)
        assert isinstance(loaded, NewTrust)
        return loaded
