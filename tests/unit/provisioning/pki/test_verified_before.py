"""What a server remembers of the paths that it has verified, how much, and until when."""

from __future__ import annotations

import gc
import ssl
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from provisioning.pki import openssl, resumption, verified_before
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from provisioning.pki.tls import ClientCertificate, server_context, verified_path
from provisioning.pki.verified_before import forget_paths, remembered
from tests.support.memory_handshake import shake_hands
from tests.support.pki import DOMAIN, Held, pem_of, shared_device, shared_pki

PKI = shared_pki()
METERS = [shared_device(f"meter-{number}") for number in (1, 2, 3)]
_OPENSSLS_CLOCK = 5
"""`CLOCK_REALTIME_COARSE`, which C's `time` reads, and Python has no name for."""
STRANGER = PKI.self_signed(Identity(DOMAIN, Role.DEVICE, "meter-1", "meters"))

pytestmark = pytest.mark.skipif(not verified_before.CAN_REMEMBER_PATHS, reason="OpenSSL cannot call back")


def server(
    most: int = 2, anchors: str = PKI.anchors, *, sessions: int = 0, caller_checks_dates: bool = False
) -> ssl.SSLContext:
    return server_context(
        PKI.broker().credential,
        anchors,
        client_certificate=ClientCertificate.REQUIRED,
        remembered_paths=most,
        remembered_sessions=sessions,
        caller_checks_dates=caller_checks_dates,
    )


class Verifications:
    """How often OpenSSL verifies a path."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._really = openssl.library.X509_verify_cert
        monkeypatch.setattr(openssl.library, "X509_verify_cert", self)

    def __call__(self, asked: int) -> int:
        self.count += 1
        verified: int = self._really(asked)
        return verified

    def of(self, context: ssl.SSLContext, held: Held) -> int:
        """Return how many it takes to let *held* in."""
        before = self.count
        outcome, _, _ = shake_hands(context, PKI.anchors, held.pem)
        assert outcome.path[0] == held.der
        return self.count - before


@pytest.fixture
def verifications(monkeypatch: pytest.MonkeyPatch) -> Verifications:
    return Verifications(monkeypatch)


def test_who_comes_again_is_not_verified_again(verifications: Verifications) -> None:
    context = server()
    assert [verifications.of(context, METERS[0]) for _ in range(3)] == [1, 0, 0]
    assert verifications.of(context, METERS[1]) == 1


def test_another_context_knows_nothing_of_it(verifications: Verifications) -> None:
    assert verifications.of(server(), METERS[0]) == 1
    assert verifications.of(server(), METERS[0]) == 1


def test_who_sends_other_certificates_with_his_own_is_verified_anew(verifications: Verifications) -> None:
    context = server()
    alone = Held(METERS[0].certificate, METERS[0].key)
    assert [verifications.of(context, each) for each in (METERS[0], alone, alone, METERS[0])] == [1, 1, 0, 0]


def test_the_least_recent_client_goes_first(verifications: Verifications) -> None:
    context = server(most=2)
    first, second, third = METERS
    assert [verifications.of(context, each) for each in (first, second, first, third)] == [1, 1, 0, 1]
    assert remembered(context) == 2
    assert [verifications.of(context, each) for each in (first, third, second)] == [0, 0, 1]


def test_strangers_displace_nobody(verifications: Verifications) -> None:
    context = server(most=1)
    assert verifications.of(context, METERS[0]) == 1
    for _ in range(3):
        assert shake_hands(context, PKI.anchors, STRANGER.pem)[0].refusal
    assert remembered(context) == 1
    assert verifications.of(context, METERS[0]) == 0


def test_paths_are_bounded_too(monkeypatch: pytest.MonkeyPatch, verifications: Verifications) -> None:
    """A CA may certify another one for each client."""
    monkeypatch.setattr(verified_before, "MOST_PATHS", 2)
    context = server(most=100, anchors=pem_of(PKI.root.certificate).decode())
    for number in range(5):
        authority = PKI.authority(f"CA {number}", PKI.root)
        identity = Identity(DOMAIN, Role.DEVICE, f"meter-{number}", "meters")
        held = PKI.certify(identity, issuer=authority)
        assert [verifications.of(context, held) for _ in range(2)] == [1, 0]
        assert 1 <= remembered(context) <= 2


@pytest.mark.parametrize("moved", [timedelta(days=-1), timedelta(days=1)], ids=["begins", "ends"])
def test_outside_of_the_certificates_dates_openssl_is_asked(
    moved: timedelta, monkeypatch: pytest.MonkeyPatch, verifications: Verifications
) -> None:
    """It has another clock here, by which the client is let in."""
    held = PKI.device("meter-1", not_before=PKI.now - timedelta(hours=12), not_after=PKI.now + timedelta(hours=12))
    context = server()
    assert [verifications.of(context, held) for _ in range(2)] == [1, 0]
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(time, "time", (datetime.now(UTC) + moved).timestamp)
        assert verifications.of(context, held) == 1
    assert verifications.of(context, held) == 0


@pytest.mark.parametrize("whose", ["client", "CA"])
def test_who_has_been_let_in_is_refused_once_the_path_has_ended(whose: str) -> None:
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=2)
    identity = Identity(DOMAIN, Role.DEVICE, "meter-1", "meters")
    issuer = PKI.authority("A CA that ends", PKI.root, not_after=end if whose == "CA" else None)
    held = PKI.certify(identity, issuer=issuer, not_after=end if whose == "client" else None)
    context = server()
    outcome, _, _ = shake_hands(context, PKI.anchors, held.pem)
    assert outcome.path[0] == held.der
    while time.clock_gettime(_OPENSSLS_CLOCK) < end.timestamp():
        time.sleep(0.01)
    assert shake_hands(context, PKI.anchors, held.pem)[0].refusal == "certificate has expired"


def test_an_error_while_looking_refuses(monkeypatch: pytest.MonkeyPatch, verifications: Verifications) -> None:
    context = server()
    assert verifications.of(context, METERS[0]) == 1

    def fail(*_: object) -> int:
        raise MemoryError

    with monkeypatch.context() as broken:
        broken.setattr(verified_before, "_say_again", fail)
        assert (
            shake_hands(context, PKI.anchors, METERS[0].pem)[0].refusal == "unspecified certificate verification error"
        )
    assert verifications.of(context, METERS[0]) == 0


def test_no_other_thread_frees_a_path_that_is_about_to_be_used(
    monkeypatch: pytest.MonkeyPatch, verifications: Verifications
) -> None:
    monkeypatch.setattr(verified_before, "MOST_PATHS", 1)
    context = server(most=100, anchors=pem_of(PKI.root.certificate).decode())
    other = PKI.certify(Identity(DOMAIN, Role.DEVICE, "meter-9", "meters"), issuer=PKI.authority("CA 9", PKI.root))
    displacing = threading.Thread(target=verifications.of, args=(context, other))
    really = verified_before._say_again

    def interrupted(*asked: Any) -> int:
        displacing.start()
        displacing.join(0.3)
        assert displacing.is_alive(), "it has displaced the only path"
        return really(*asked)

    assert verifications.of(context, METERS[0]) == 1
    with monkeypatch.context() as slow:
        slow.setattr(verified_before, "_say_again", interrupted)
        assert verifications.of(context, METERS[0]) == 0
    displacing.join()
    assert remembered(context) == 1, "its own comes in the end"


def test_what_is_remembered_goes_with_its_context() -> None:
    gc.collect()
    contexts = len(verified_before._answers)
    context = server()
    _, side, _ = shake_hands(context, PKI.anchors, METERS[0].pem)
    _, again, _ = shake_hands(context, PKI.anchors, METERS[0].pem)
    path = again.get_verified_chain() if hasattr(again, "get_verified_chain") else None
    assert len(verified_before._answers) == contexts + 1
    del context, side
    gc.collect()
    assert len(verified_before._answers) == contexts + 1, "the connection needs it still"
    del again
    gc.collect()
    assert len(verified_before._answers) == contexts
    assert path is None or path[1] == PKI.issuing.der, "the path is the connection's own"


def test_a_context_that_is_replaced_forgets_and_its_connections_stay(verifications: Verifications) -> None:
    context = server()
    assert [verifications.of(context, METERS[0]) for _ in range(2)] == [1, 0]
    _, side, client = shake_hands(context, PKI.anchors, METERS[0].pem)
    forget_paths(context)
    assert remembered(context) == 0
    side.write(b"on")
    assert client.read(2) == b"on"
    assert verified_path(side)[1] == PKI.issuing.der
    assert [verifications.of(context, METERS[0]) for _ in range(2)] == [1, 0], "of a handshake that was under way"


def test_where_openssl_cannot_call_back_it_verifies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified_before, "_VERIFY", None)
    context = server()
    for _ in range(2):
        assert len(shake_hands(context, PKI.anchors, METERS[0].pem)[0].path) == 2
    assert remembered(context) == 0


def test_whose_caller_checks_the_dates_remembers_nothing() -> None:
    context = server(caller_checks_dates=True)
    assert len(shake_hands(context, PKI.anchors, METERS[0].pem)[0].path) == 2
    assert remembered(context) == 0


def test_a_session_has_the_certificate_of_the_connection_that_it_came_from(verifications: Verifications) -> None:
    """Its memory is its own: after that connection has ended, and others have come and gone."""
    context = server(sessions=100)
    assert verifications.of(context, METERS[0]) == 1
    _, side, client = shake_hands(context, PKI.anchors, METERS[0].pem)
    assert verifications.count == 1
    resumption.stay_resumable(openssl.address_of(side))
    session = client.session
    del side, client
    for each in METERS * 10:
        shake_hands(context, PKI.anchors, each.pem)
    _, side, _ = shake_hands(context, PKI.anchors, METERS[0].pem, session)
    assert side.session_reused
    assert side.getpeercert(True) == METERS[0].der
