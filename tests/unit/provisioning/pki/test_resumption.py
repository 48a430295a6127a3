"""What a server forgets of TLS sessions, whether it remembers them or its tickets contain them; and who has none."""

from __future__ import annotations

import contextlib
import ssl
import time
from typing import Any

import pytest

from provisioning.pki import openssl, resumed_exchange, resumption
from provisioning.pki.tls import ClientCertificate, client_context, server_context
from tests.support.pki import shared_device, shared_pki

PKI = shared_pki()


class Server:
    """A server, and a device that comes back with what it was given first."""

    def __init__(self, version: ssl.TLSVersion, *, remembers: bool) -> None:
        self._remembers = remembers
        self.context = self._another(resumes=True)
        self._device = client_context(PKI.anchors, shared_device("meter-1").credential, allow_tls12=True)
        self._device.maximum_version = version
        self.ticket: ssl.SSLSession | None = None

    def resume_no_more(self) -> None:
        """Serve with a context that resumes nothing, as a later process does."""
        self.context, self._remembers = self._another(resumes=False), False

    def _another(self, *, resumes: bool) -> ssl.SSLContext:
        return server_context(
            PKI.broker().credential,
            PKI.anchors,
            client_certificate=ClientCertificate.REQUIRED,
            allow_tls12=True,
            resumes=resumes,
            remembered_sessions=8 * self._remembers,
        )

    def come(self, *, admits: bool = True) -> Any:
        """Let the device come with its ticket; return the server's side."""
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = self._device.wrap_bio(to_client, to_server, server_hostname="localhost", session=self.ticket)
        server = self.context.wrap_bio(to_server, to_client, server_side=True)
        for _ in range(3):
            for each in (client, server):
                with contextlib.suppress(ssl.SSLWantReadError):
                    each.do_handshake()
        resumed_exchange.confirm(openssl.address_of(server))  # As a listener does.
        if admits and self._remembers:
            resumption.offer_ticket(openssl.address_of(server), resumed=bool(server.session_reused))
        server.write(b"a ticket comes with it")
        assert client.read(100)
        assert client.session_reused == server.session_reused
        resumption.stay_resumable(openssl.address_of(server))
        if admits:
            self.ticket = client.session
        return server


both_versions = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
both_kinds = pytest.mark.parametrize("remembers", [True, False], ids=["remembered", "in tickets"])


@both_versions
@both_kinds
def test_whose_session_is_forgotten_comes_with_a_whole_handshake_whatever_he_presents(
    version: ssl.TLSVersion, *, remembers: bool
) -> None:
    """He is told to; with a session that stays, an honest device would be refused until its ticket ends."""
    if remembers and not resumption.CAN_REMEMBER:
        pytest.skip("an OpenSSL that lets remembered sessions pile up")
    server = Server(version, remembers=remembers)
    assert not server.come().session_reused
    again = server.come(admits=False)
    assert again.session_reused, "otherwise there is nothing to forget"
    resumption.forget(again, at_any_price=False)
    again = server.come(admits=False)
    assert again.session_reused is not remembers, "for one, not all others lose what they have in tickets"
    resumption.forget(again, at_any_price=True)
    for _ in range(2):
        assert not server.come(admits=False).session_reused


@both_versions
@both_kinds
def test_who_comes_where_nothing_is_resumed_shakes_hands_in_full_whatever_he_has(
    version: ssl.TLSVersion, *, remembers: bool
) -> None:
    """A name that the server never gave is as good as a forged one, and a ticket of another key, too."""
    if remembers and not resumption.CAN_REMEMBER:
        pytest.skip("an OpenSSL that lets remembered sessions pile up")
    server = Server(version, remembers=remembers)
    assert not server.come().session_reused
    assert server.come().session_reused, "otherwise there is nothing to try"
    server.resume_no_more()
    for _ in range(2):  # With a session of before.
        assert not server.come(admits=False).session_reused
    for _ in range(2):  # With one of this context.
        came = server.come()
        assert not came.session_reused
        assert came.getpeercert(binary_form=True) == shared_device("meter-1").der
        assert server.ticket is not None
        assert not server.ticket.has_ticket
        assert server.ticket.id == b""
        assert server.context.session_stats()["number"] == 0


@pytest.mark.skipif(not resumed_exchange.CAN_LIMIT, reason="the life of remembered sessions cannot be limited here")
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_who_returns_while_nothing_tells_how_old_his_session_is_does_not_get_in(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """The callback that looks said go on, whatever it met: a session of any age was resumed."""

    def fail() -> float:
        raise error

    server = Server(ssl.TLSVersion.TLSv1_3, remembers=True)
    assert not server.come().session_reused
    with monkeypatch.context() as defect:
        defect.setattr(time, "time", fail)
        with pytest.raises(ssl.SSLError):
            server.come()
    assert server.come().session_reused, "the next time he does"
