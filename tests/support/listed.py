"""A broker whose revocations come from a changing CRL file, and its answers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from broker.mqtt.codes import ReasonCode
from broker.mqtt.connect import Connack
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.crl import crl
from tests.support.pki import Held, Pki
from tests.support.tls_client import TlsClient
from tests.support.wire import V5, connect_packet


def replace_file(path: Path, content: bytes) -> None:
    """Replace *path* by a rename, as publishers of lists should."""
    new = path.with_name(f".{path.name}.new")
    new.write_bytes(content)
    os.replace(new, path)  # noqa: PTH105 - one word for what it is


class ListedBroker:
    """A broker whose revocations come from one file, initially with an empty list of the issuing CA."""

    def __init__(self, directory: Path, pki: Pki, first: bytes | None = None, **settings: Any) -> None:
        self.pki = pki
        self.file = directory / "issuing.crl"
        self.number = 1
        self.file.write_bytes(crl(pki.issuing) if first is None else first)
        self.process = BrokerProcess.with_lists(directory, pki, crlfile=self.file, **settings)

    def publish(self, content: bytes) -> None:
        """Replace the file, and wait until the broker has read it."""
        before = len(self.looks)
        replace_file(self.file, content)
        wait_until(lambda: len(self.looks) > before, "the broker looks at the list")

    def revoke(self, *held: Held, **how: object) -> None:
        self.number += 1
        self.publish(crl(self.pki.issuing, held, number=self.number, **how))  # type: ignore[arg-type]

    @property
    def looks(self) -> list[object]:
        return [*self.process.events("CRL in use"), *self.process.events("CRL problem")]

    @property
    def problems(self) -> list[str]:
        return [event["code"] for event in self.process.events("CRL problem")]

    def client(self, held: Held, **options: object) -> TlsClient:
        return TlsClient(self.process.port, self.pki.anchors, held.credential, **options)  # type: ignore[arg-type]

    def answer(self, held: Held, client_id: str = "") -> tuple[ReasonCode, str]:
        """Connect; return the reason code of the CONNACK, and the stable code in its reason string."""
        return answer(self.process, self.pki.anchors, held, client_id)


def answer(broker: BrokerProcess, anchors: str | Path, held: Held, client_id: str = "") -> tuple[ReasonCode, str]:
    """Connect to *broker* as *held*; return the reason code of the CONNACK, and the code in its reason string."""
    with TlsClient(broker.port, anchors, held.credential) as client:
        client.send(connect_packet(V5, client_id=client_id))
        connack = client.expect(Connack)
    return connack.reason_code, (connack.properties.reason_string or "").partition(":")[0]
