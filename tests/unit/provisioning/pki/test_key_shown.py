"""Until when a session is resumed whose ticket holds it: a day after its client has shown its certificate's key."""

from __future__ import annotations

import contextlib
import ssl
import time

import pytest

from provisioning.pki import key_shown
from provisioning.pki.key_shown import MOST_SECONDS
from provisioning.pki.openssl_library import frequent
from provisioning.pki.tls import ClientCertificate, client_context, server_context
from tests.support.pki import shared_device, shared_pki

PKI = shared_pki()
AN_HOUR = 3601

pytestmark = pytest.mark.skipif(not key_shown.CAN_NOTE, reason="OpenSSL cannot be asked")


class Service:
    """A server whose tickets contain their session, and a device that comes back to it, at a time that is said."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, version: ssl.TLSVersion) -> None:
        self.now = self.began = time.time()
        monkeypatch.setattr(time, "time", lambda: self.now)
        self.context = server_context(
            PKI.broker().credential, PKI.anchors, client_certificate=ClientCertificate.OPTIONAL, allow_tls12=True
        )
        self.device = client_context(PKI.anchors, shared_device("meter-1").credential, allow_tls12=True)
        self.device.maximum_version = version
        self.session: ssl.SSLSession | None = None

    def come(self) -> bool:
        """Let the device come with the newest ticket that it has; return whether its session was resumed."""
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = self.device.wrap_bio(to_client, to_server, server_hostname="localhost", session=self.session)
        server = self.context.wrap_bio(to_server, to_client, server_side=True)
        for _ in range(3):
            for each in (client, server):
                with contextlib.suppress(ssl.SSLWantReadError):
                    each.do_handshake()
        server.write(b"tickets come with it")
        assert client.read(100)
        assert server.getpeercert(binary_form=True) == shared_device("meter-1").der
        assert client.session_reused == server.session_reused
        self.session = client.session
        return bool(server.session_reused)


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def service(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Service:
    return Service(monkeypatch, request.param)


def test_who_comes_back_again_and_again_shows_his_key_once_a_day(service: Service) -> None:
    """Only the notes' clock is moved: by OpenSSL's, which ends each ticket after two hours, no time passes."""
    resumed = []
    for _ in range(60):
        resumed.append(service.come())
        service.now += AN_HOUR
    assert [hour for hour, each in enumerate(resumed) if not each] == [0, 24, 48]


def test_a_clock_that_was_ahead_gives_nobody_more(service: Service) -> None:
    service.now = service.began + 365 * MOST_SECONDS
    assert not service.come()
    assert service.come()
    service.now = service.began
    assert not service.come(), "the key was shown at a time that is still to come"
    assert service.come()


def test_a_ticket_that_says_nothing_of_a_key_is_no_return(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = frequent.SSL_SESSION_set1_ticket_appdata
    with monkeypatch.context() as before:
        before.setattr(frequent, "SSL_SESSION_set1_ticket_appdata", lambda *_: 1)
        assert not service.come()
    assert frequent.SSL_SESSION_set1_ticket_appdata is declared
    assert not service.come()
    assert service.come()


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_defect_costs_the_return_and_not_the_handshake(
    service: Service, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def fail() -> float:
        raise error

    assert not service.come()
    with monkeypatch.context() as defect:
        defect.setattr(time, "time", fail)
        assert not service.come()
    assert not service.come(), "that ticket has no note"
    assert service.come()


def test_a_ticket_of_another_context_is_none_and_no_failure(service: Service) -> None:
    assert not service.come()
    service.context = server_context(
        PKI.broker().credential, PKI.anchors, client_certificate=ClientCertificate.OPTIONAL, allow_tls12=True
    )
    assert not service.come()
    assert service.come()
