"""An operator whose certificate is revoked or ends is refused at the next request, however the connection began."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest

from provisioning.pki.tls import client_context
from tests.support.broker_process import PATIENCE, wait_until
from tests.support.enrolled import Enrolled, enrol
from tests.support.provisioning import ProvisioningService

ON_BOTH_STORES = True

REQUEST = b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Caller:
    """One connection, kept."""

    def __init__(self, service: ProvisioningService, context: ssl.SSLContext, session: ssl.SSLSession | None) -> None:
        raw = socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE)
        self.tls = context.wrap_socket(raw, server_hostname="localhost", session=session)
        self._answers = self.tls.makefile("rb")

    def close(self) -> None:
        self._answers.close()
        self.tls.close()

    def heard(self) -> str:
        """Ask, and return the code of the refusal; ``answered`` if there is none."""
        self.tls.sendall(REQUEST)
        status = self._answers.readline().split()[1]
        length = 0
        while line := self._answers.readline().strip():
            name, _, value = line.partition(b": ")
            length = int(value) if name.lower() == b"content-length" else length
        answer = json.loads(self._answers.read(length))
        return "answered" if status == b"200" else str(answer["code"])


Come = Callable[[ssl.SSLSession | None], Caller]


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["TLS 1.2", "TLS 1.3"])
def coming(service: ProvisioningService, request: pytest.FixtureRequest) -> Iterator[Callable[[Enrolled], Come]]:
    """Return who lets an operator come; each of his connections is closed at the end."""
    callers = list[Caller]()

    def of(operator: Enrolled) -> Come:
        context = client_context(service.bundle, operator.credential, allow_tls12=True)
        context.minimum_version = context.maximum_version = request.param

        def come(session: ssl.SSLSession | None = None) -> Caller:
            callers.append(Caller(service, context, session))
            return callers[-1]

        return come

    yield of
    for each in callers:
        each.close()


def test_who_is_revoked(service: ProvisioningService, coming: Callable[[Enrolled], Come]) -> None:
    (operator,) = enrol(service, f"ended-{uuid4()}", role="operator")
    come = coming(operator)
    kept = come(None)
    assert kept.heard() == "answered"
    session = kept.tls.session
    again = come(session)
    assert (again.heard(), again.tls.session_reused) == ("answered", False), "no session is resumed"
    service.revoke(device=operator.name)
    assert [kept.heard(), again.heard(), come(session).heard()] == ["CERTIFICATE_REVOKED"] * 3


def test_whose_certificate_ends(service: ProvisioningService, coming: Callable[[Enrolled], Come]) -> None:
    (operator,) = enrol(service, f"ended-{uuid4()}", role="operator", lifetime_seconds=2)
    come = coming(operator)
    kept = come(None)
    assert kept.heard() in {"answered", "CERTIFICATE_EXPIRED"}
    session = kept.tls.session
    wait_until(lambda: kept.heard() == "CERTIFICATE_EXPIRED", "it ends")
    assert [kept.heard(), come(session).heard(), come(None).heard()] == ["CERTIFICATE_EXPIRED"] * 3
