"""Operations at once, on a device made for it: whatever comes first, the end must be one of those that may be.

Theory
------
What happens at the same moment has no order that an oracle could follow. So each race has its own device, which nothing
else of the walk concerns, and all that is compared is the end: who is revoked is out and stays out, whichever of his
other doors was open; who was answered has what he was told; and what was acknowledged has arrived.

Rules
-----
1. Whoever races says how it ended for him; only what may happen to him is caught.
2. Afterwards the device is decommissioned. The oracle takes note of what it has left in lists and in the feed.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from typing import Any, Final

from cryptography import x509

from broker.mqtt.codes import ReasonCode
from provisioning.pki.keys import generate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.tls import CredentialPem
from tests.support.broker_process import wait_until
from tests.support.tls_client import Ended, TlsClient
from tests.support.walk.comparison import await_broker, compare_backend
from tests.support.walk.fleet_operations import a_token, changes, issued
from tests.support.walk.fleet_oracle import COMPROMISED, Key, State, Token
from tests.support.walk.process_operations import be_on_disk
from tests.support.walk.race import CUT, Race, adopt, insist, obtained
from tests.support.walk.session_oracle import Message
from tests.support.walk.walk import PLAIN, World, operation
from tests.support.walk.walking_client import WalkingClient
from tests.support.wire import KEPT

_MANY: Final = 40


class Racer:
    """The device of a race, which may do several things at once."""

    def __init__(self, world: World, name: str) -> None:
        self._reality, self.name = world.reality, name
        token = a_token(world, name, PLAIN)
        key = Key(generate_key())
        answer = world.reality.enrol(name, key, token)
        assert isinstance(answer, x509.Certificate), answer
        self.certificate = token.bought = issued(world, name, PLAIN, key, answer)
        self.sent: list[Message] = []
        self.acknowledged: list[Message] = []
        self._payloads = world.payload
        self._open: list[WalkingClient] = []

    def connect(self) -> str:
        """Return what the broker answers."""
        try:
            tls = TlsClient(
                self._reality.broker.port, self._reality.service.bundle, CredentialPem(self.certificate.pem)
            )
            client = WalkingClient(tls, set())
            self._open.append(client)
            told: str = client.connect(client_id=self.name, **KEPT).reason_code.name
        except (OSError, Ended, AssertionError):  # A DISCONNECT in place of what was expected, too.
            return CUT
        return told

    def publish(self) -> str:
        """Publish on the first connection until that ends."""
        for _ in range(_MANY):
            message = Message(f"fleet/{PLAIN.group}/{self.name}/event", self._payloads(), 1)
            self.sent.append(message)
            try:
                if self._open[0].publish(message) is ReasonCode.SUCCESS:
                    self.acknowledged.append(message)
            except (OSError, Ended, AssertionError):
                return CUT
        return "all"

    def close(self) -> None:
        for each in self._open:
            each.close()


@operation(4)
def race(world: World, choices: random.Random) -> str | None:
    """Revoke a connected device while it connects, renews, enrols, publishes; and broker or service may die."""
    if not (world.sessions.hears and world.sessions.serves):
        return None
    reality, racer = world.reality, Racer(world, f"racer-{world.payload().decode()}")
    mine = racer.certificate
    told = racer.connect()
    assert told == "SUCCESS", told
    as_device, dies = choices.random() < 0.5, choices.choice(("nobody", "nobody", "broker", "service"))
    token = a_token(world, racer.name, PLAIN)
    named = {"device": racer.name} if as_device else {"serial": mine.serial}
    doing: dict[str, Callable[[], Any]] = {
        "connect": racer.connect,
        "connect too": racer.connect,
        "renew": lambda: obtained(lambda: reality.renew(mine, Key(generate_key()))),
        "enrol": lambda: obtained(lambda: reality.enrol(racer.name, Key(generate_key()), token)),
        "publish": racer.publish,
    }
    how = Race()
    how.add("revoke", lambda: insist(world, "/v1/revocations", **named, reason="keyCompromise"))
    for each in choices.sample(sorted(doing), 3):
        how.add(each, doing[each])
    if dies == "broker":
        be_on_disk(world)
        world.sessions.broker_ends(killed=True)
        world.repeats = True
        how.add("the end of the broker", lambda: _later(choices, lambda: reality.end_broker(signal.SIGKILL)))
    elif dies == "service":
        how.add("the end of the service", lambda: _later(choices, lambda: reality.restart_service(signal.SIGKILL)))
    ends = how.run()
    if dies == "broker":
        reality.start_broker()
    _compare(world, racer, token, ends, as_device=as_device)
    shown = {each: f"{end.serial_number:x}" if isinstance(end, x509.Certificate) else end for each, end in ends.items()}
    return f"{racer.name} {'as a whole' if as_device else 'one certificate'}, {dies} dies: {shown}"


def _later(choices: random.Random, act: Callable[[], None]) -> None:
    time.sleep(choices.uniform(0, 0.06))  # Not for luck: the moment is what is tried.
    act()


def _compare(world: World, racer: Racer, token: Token, ends: dict[str, Any], *, as_device: bool) -> None:
    """Compare the end with what it may be."""
    mine, fleet, sessions = racer.certificate, world.fleet, world.sessions
    device = mine.device
    for each, codes in (("renew", {"CERTIFICATE_REVOKED"}), ("enrol", {"TOKEN_VOID", "CERTIFICATE_REVOKED"})):
        end = ends.get(each)
        assert not isinstance(end, str) or end in codes | {CUT}, f"{each}: {end}"
    for each in ("connect", "connect too"):
        assert ends.get(each, CUT) in ("SUCCESS", "NOT_AUTHORIZED", CUT), f"{each}: {ends[each]}"
    adopt(world, device)
    fleet.tokens.remove(token)  # Spent, void or open: it is asked for nothing more.
    expected = dict.fromkeys(device.certificates, COMPROMISED if as_device else None) | {mine: COMPROMISED}
    found = {each: each.reason for each in device.certificates}
    assert found == expected, f"{ {each.serial: each.reason for each in found} }"
    issued_here = {each.x509 for each in device.certificates}
    assert all(end in issued_here for end in ends.values() if isinstance(end, x509.Certificate))
    assert device.state is (State.REVOKED if as_device else State.ACTIVE)
    sessions.heard(device.certificates)
    for certificate in device.certificates:
        await_broker(world, certificate)
    wait_until(lambda: racer.name not in world.reality.connected(), f"{racer.name} is out")
    assert racer.connect() == "NOT_AUTHORIZED"
    racer.close()
    got = compare_backend(world, apart=f"fleet/{PLAIN.group}/{racer.name}/", least=len(racer.acknowledged))
    assert [each for each in got if each in racer.acknowledged] == racer.acknowledged, "acknowledged, and lost"
    assert got == [each for each in racer.sent if each in got], "out of order, twice, or never sent"
    with changes(world):
        code, _ = world.reality.operate("/v1/decommissions", device=racer.name)
        assert not code
        fleet.revoke_device(device, RevocationReason.CESSATION_OF_OPERATION, State.DECOMMISSIONED)
    sessions.admitted = world.reality.admin.get("/v1/status")["admitted"] - 1
