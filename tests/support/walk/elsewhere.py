"""Another broker on the same feed, and who is connected to it: a device is put out everywhere, or gets in nowhere.

Its feed is never cut, so it acts on the truth. The two have nothing in common but the feed: a device may be connected
to both, and neither knows of what the other does.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterable
from dataclasses import dataclass

from broker.admin.client import AdminClient
from broker.mqtt.codes import ProtocolVersion, ReasonCode
from provisioning.pki.tls import CredentialPem
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.tls_client import Ended, TlsClient
from tests.support.walk.fleet_oracle import Certificate, Codes
from tests.support.walk.reality import Reality, Ticket
from tests.support.walk.session_oracle import ACCEPTED, ALERT, Message, refusal
from tests.support.walk.walking_client import WalkingClient
from tests.support.wire import V5


@dataclass(eq=False)
class Guest:
    """Who is connected."""

    certificate: Certificate
    version: ProtocolVersion
    client: WalkingClient


class Elsewhere:
    """The other broker, which runs from its creation to the end of *reality*."""

    def __init__(self, reality: Reality) -> None:
        self._reality = reality
        self._broker: BrokerProcess = reality.another_broker("elsewhere")
        self.guests: dict[str, Guest] = {}

    def await_truth(self, certificate: Certificate) -> None:
        """Wait until the broker has heard what is true of *certificate*."""
        said = ""

        def heard() -> bool:
            nonlocal said
            pem = certificate.pem[certificate.pem.index(b"-----BEGIN CERT") :]
            with AdminClient.at_socket(self._broker.dir / "state" / "admin.sock") as admin:
                verdict = admin.post_pem("/v1/check", pem)
            said = f"{verdict['admitted']}: {verdict['detail']}"
            reason = certificate.reason
            return bool(verdict["admitted"]) if reason is None else f"({reason})" in said and not verdict["admitted"]

        if not certificate.expired:
            wait_until(heard, f"the other broker hears that {certificate.serial} is {certificate.reason}")

    def connect(self, certificate: Certificate, version: ProtocolVersion, ticket: Ticket | None) -> str:
        """Connect somebody, perhaps with the TLS session that the first broker gave him; return what he is told."""
        name, expected = certificate.device.name, self._answers(certificate, version)
        self.await_truth(certificate)
        try:
            client = WalkingClient(self._dial(certificate, version, ticket), set())
            told = client.connect(client_id=name, clean_start=True).reason_code.name
        except (OSError, Ended):
            told = ALERT
        assert told in expected, f"{name} elsewhere: told {told}, expected {sorted(expected)}"
        if told == ACCEPTED:
            older = self.guests.pop(name, None)
            self.guests[name] = Guest(certificate, version, client)
            if older is not None:
                left = older.client.farewell()
                assert left is (ReasonCode.SESSION_TAKEN_OVER if older.version is V5 else None), f"{name}: {left}"
        elif told != ALERT:
            client.farewell()
        return told

    def _dial(self, certificate: Certificate, version: ProtocolVersion, ticket: Ticket | None) -> TlsClient:
        port, bundle = self._broker.port, self._reality.service.bundle
        if ticket is None:
            return TlsClient(port, bundle, CredentialPem(certificate.pem), version=version)
        tls = TlsClient(port, bundle, context=ticket.context, session=ticket.session, version=version)
        assert not tls.socket.session_reused, "a TLS session of another broker"
        return tls

    def _answers(self, certificate: Certificate, version: ProtocolVersion) -> Codes:
        if certificate.expired:
            return frozenset({ALERT, ReasonCode.NOT_AUTHORIZED.name})
        if certificate.reason is None:
            return frozenset({ACCEPTED})
        return frozenset({refusal(certificate.reason, version)})

    def publish(self, name: str, message: Message) -> None:
        """Publish, and complete the exchange."""
        told = self.guests[name].client.publish(message)
        assert told < ReasonCode.UNSPECIFIED_ERROR, f"{name} elsewhere: {told!r}"

    def hears(self, certificates: Iterable[Certificate]) -> None:
        """Check that whose certificate is withdrawn is put out, and that the others stay."""
        changed = set(certificates)
        for name, guest in list(self.guests.items()):
            if guest.certificate in changed and guest.certificate.reason is not None:
                told = self.guests.pop(name).client.farewell()
                expected = ReasonCode.ADMINISTRATIVE_ACTION if guest.version is V5 else None
                assert told is expected, f"{name} elsewhere: told {told}"

    def check_guests(self) -> None:
        """Check that all are connected."""
        for guest in self.guests.values():
            guest.client.ping()

    def restart(self, number: signal.Signals) -> None:
        """End it and start it again: all connections end."""
        assert self._broker.stop(number) == (0 if number is signal.SIGTERM else -number)
        for guest in self.guests.values():
            guest.client.vanish()
        self.guests.clear()
        self._broker.start()

    def leave(self, name: str) -> None:
        self.guests.pop(name).client.leave()

    def close(self) -> None:
        """Have everybody leave."""
        for name in list(self.guests):
            with contextlib.suppress(OSError):
                self.leave(name)
        assert "Traceback" not in self._broker.log
