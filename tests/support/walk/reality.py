"""The real service, the real broker, the line between them, and how both are asked.

Handles: processes, addresses, calls. Does not handle: what should be answered, which is the oracle's.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import signal
import ssl
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Self

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from broker.admin.client import AdminClient
from broker.admission.policy_file import DEFAULT_POLICY_FILE
from broker.mqtt.codes import ProtocolVersion
from provisioning.client.csr import build_csr
from provisioning.client.est import EnrolmentPending, EnrolmentRefused, EstClient, WrongCertificate
from provisioning.pki.keys import key_to_pem
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.tls import Credential, CredentialPem
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.enrolled import enrol
from tests.support.faketime import FakeClock
from tests.support.ocsp import request_der
from tests.support.postgresql import PostgresqlServer
from tests.support.provisioning import ProvisioningService
from tests.support.tls_client import TlsClient
from tests.support.walk.fleet_oracle import BRIEF, WAITS, Certificate, Key, Token, life_of
from tests.support.walk.line_to_service import Line
from tests.support.walk.session_oracle import Message
from tests.support.walk.walking_client import WalkingClient
from tests.support.webhook import WebhookServer
from tests.support.workers import ends_of, workers_of

FAST: Final = {"crl_debounce_seconds": 0.05, "feed_heartbeat_seconds": 1, "metrics": "loopback"}
BACKEND: Final = "backend"
EVERYTHING: Final = "fleet/#"
_REASONS: Final = {each.value: each for each in RevocationReason}
_UNNOTICED: Final = timedelta(seconds=5)
"""By how much a clock may be set without the broker saying so."""


@dataclass
class Ticket:
    """A TLS session that a device may resume."""

    certificate: Certificate
    context: ssl.SSLContext
    session: ssl.SSLSession


@dataclass(frozen=True)
class Ground:
    """What the service stands on: SQLite, or a database of *server* with so many processes."""

    server: PostgresqlServer | None = None
    workers: int = 1
    has_clock: bool = False
    """The broker has a clock of its own, which can be set: each of its starts takes an interpreter of its own."""


class Reality:
    """All that runs."""

    def __init__(self, directory: Path, ground: Ground) -> None:
        self._stack = contextlib.ExitStack()
        self.workers = ground.workers
        self.server = ground.server
        self.clock: FakeClock | None = None
        self._has_clock = ground.has_clock
        directory.mkdir(exist_ok=True)
        if ground.server is None:
            self.service = ProvisioningService.copied(directory / "fleet", FAST)
        else:
            settings = FAST | {"workers": ground.workers}
            lent = ProvisioningService.copied_on(ground.server, directory / "fleet", settings)
            self.service = self._stack.enter_context(lent)
        self.clients: dict[str, WalkingClient] = {}
        self.tickets: dict[str, Ticket] = {}
        self.unfinished: dict[str, set[int]] = {}
        self._issuers: dict[x509.Name, tuple[str, x509.Certificate]] = {}
        self._numbers: dict[str, int] = {}
        self._port = 0
        self._read: list[Message] = []
        self._directory = directory

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.push(self._stack)
            stack.enter_context(self.service)
            self.webhook = stack.enter_context(WebhookServer())
            self.line = stack.enter_context(Line(lambda: self.service.port))
            self.broker = BrokerProcess.enrolled(self._directory / "broker", self.service)
            self.broker.follow(self.line)
            if self._has_clock:
                self.clock = FakeClock.new(self._directory)
                self.broker.environment |= self.clock.environment
            self._policy = self._directory / "policy.toml"
            self.change_policy(DEFAULT_POLICY_FILE.read_text(encoding="utf-8"))
            self.broker.arguments += ["--policy-file", str(self._policy)]
            (backend,) = enrol(self.service, BACKEND, role="service")
            self._backend_credential = backend.credential
            self.add_issuer("issuing-ca")
            stack.enter_context(self.broker)
            self._stack = stack.pop_all()
        self._ask()
        self._reach()
        self._watch(first=True)
        return self

    def __exit__(self, *error: object) -> None:
        for each in [*self.clients.values(), self.backend]:
            each.close()
        self._api.close()
        self._plain.close()
        self._admin.close()
        self._stack.__exit__(None, None, None)

    def _ask(self) -> None:
        """Have clients for the service: with several processes, any of them answers the next request."""
        self._api = self.service.api()
        self._plain = httpx.Client(base_url=self.service.http, timeout=30, trust_env=False)
        if self.workers > 1:
            for each in (self._api, self._plain):
                each.headers["Connection"] = "close"

    def _reach(self) -> None:
        """Have a client of the broker's operator."""
        self._admin = contextlib.ExitStack()
        self.admin = self._admin.enter_context(AdminClient.at_socket(self.broker.dir / "state" / "admin.sock"))

    def _watch(self, *, first: bool = False) -> None:
        """Connect the backend, which has a session of its own, and reads everything."""
        tls = TlsClient(self.broker.port, self.service.bundle, self._backend_credential)
        self.backend = WalkingClient(tls, self.unfinished.setdefault(BACKEND, set()))
        answer = self.backend.connect(client_id=BACKEND, clean_start=False, session_expiry_interval=3600)
        self.backend.got, self._read = self._read, []
        assert answer.session_present is not first, f"the backend's session is {'there' if first else 'gone'}"
        if first:
            assert self.backend.subscribe(EVERYTHING, 2) == 2

    # Processes

    def restart_service(self, number: signal.Signals) -> None:
        self.end_service(number)
        self.start_service()

    def end_service(self, number: signal.Signals) -> None:
        self._port = self.service.port
        self._api.close()
        self._plain.close()
        with ends_of(workers_of(self.service.pid) if self.workers > 1 else []) as wait:
            code = self.service.stop(number)
            wait()
        assert code == (0 if number is signal.SIGTERM else -number), self.service.log[-2000:]

    def start_service(self) -> None:
        self.service.start(port=self._port)
        self._ask()

    def kill_worker(self, place: int) -> None:
        """End one of the service's processes as a power failure would, and wait until another has taken its place."""
        before = workers_of(self.service.pid)
        with ends_of([before[place]]) as wait:
            os.kill(before[place], signal.SIGKILL)
            wait()

        def replaced() -> bool:
            try:
                return self.samples("fleet_provisioning_worker_up") == [1.0] * self.workers
            except httpx.HTTPError:  # It was connected to the one that has ended.
                return False

        wait_until(replaced, "another process takes its place", pause=0.1)

    def end_broker(self, number: signal.Signals) -> None:
        """End the broker's process; all connections end with it."""
        self._admin.close()
        code = self.broker.stop(number)
        assert code == (0 if number is signal.SIGTERM else -number), self.broker.log[-2000:]
        for each in self.clients.values():
            each.vanish()
        self.clients.clear()
        self._read = self.backend.rest()

    def start_broker(self) -> None:
        """Start it again, and have the backend back."""
        self.broker.start()
        self._reach()
        self._watch()

    def start_deaf_broker(self) -> None:
        """Start it again when it cannot reach its feed: the backend has to wait."""
        self.broker.start()
        self._reach()

    def watch_again(self) -> None:
        """Have the backend back as soon as the broker has read its feed."""
        wait_until(lambda: self.admin.get("/v1/status")["newcomers_admitted"], "the broker admits somebody", pause=0.1)
        self._watch()

    def reload(self) -> None:
        """Have both read their settings again."""
        before = self._reloads()
        self.broker.send_signal(signal.SIGHUP)
        assert self.service._process is not None
        self.service._process.send_signal(signal.SIGHUP)
        wait_until(lambda: self._reloads() > before, "a reload")

    def _reloads(self) -> int:
        return sum(len(self.broker.events(code)) for code in ("RELOADED", "RELOAD_UNCHANGED"))

    def another_broker(self, name: str) -> BrokerProcess:
        """Start another broker, which hears of revocations from the service itself."""
        return self._stack.enter_context(BrokerProcess.enrolled(self._directory / name, self.service))

    def change_policy(self, text: str) -> None:
        """Give the broker another topic policy, from its next reload or start on."""
        draft = self._policy.with_suffix(".new")
        draft.write_text(text, encoding="utf-8")
        draft.replace(self._policy)

    def reload_policy(self) -> None:
        """Return when the broker has judged all sessions by its policy."""
        self.admin.post("/v1/reload", {"parts": ["policy"]})

    @property
    def ahead(self) -> float:
        """How many seconds the broker's clock is ahead."""
        return 0.0 if self.clock is None else self.clock.ahead.total_seconds()

    def set_clock(self, ahead: timedelta) -> None:
        """Set the broker's clock, and wait until it has noticed, and admits newcomers."""
        assert self.clock is not None
        before, noticed = self.clock.ahead, len(self.broker.events("CLOCK_SET"))
        self.clock.set(ahead)
        if abs(ahead - before) > _UNNOTICED:
            wait_until(lambda: len(self.broker.events("CLOCK_SET")) > noticed, "the broker has noticed", pause=0.1)
        wait_until(lambda: self.admin.get("/v1/status")["newcomers_admitted"], "the broker admits somebody", pause=0.1)

    # The service

    def operate(self, path: str, **request: Any) -> tuple[str, dict[str, Any]]:
        """Return the code of a refusal, or an empty one, and the answer."""
        answer = self._api.post(path, json=request)
        document: dict[str, Any] = answer.json()
        return ("" if answer.is_success else document["code"]), document

    def look(self, path: str, **query: str) -> dict[str, Any]:
        answer = self._api.get(path, params=query)
        assert answer.is_success, answer.text
        document: dict[str, Any] = answer.json()
        return document

    def look_code(self, path: str) -> str:
        """Return the code of a refusal, or an empty one."""
        answer = self._api.get(path)
        return "" if answer.is_success else str(answer.json()["code"])

    def enrol(
        self, name: str, key: Key, token: Token | None, credential: Credential | None = None, label: str | None = None
    ) -> x509.Certificate | str:
        """Return the certificate, or the code of the refusal."""

        async def ask() -> x509.Certificate:
            async with EstClient(self.service.https, self.service.bundle, credential) as client:
                secret = None if token is None else token.secret
                return await client.enrol(build_csr(key.private, name), user=name, token=secret, label=label)

        return answer_of(ask())

    def renew(self, presented: Certificate, key: Key) -> x509.Certificate | str:
        """Return the successor, or the code of the refusal."""

        async def ask() -> x509.Certificate:
            csr = build_csr(key.private, presented.device.name, like=presented.x509)
            async with EstClient(self.service.https, self.service.bundle, CredentialPem(presented.pem)) as client:
                return await client.reenrol(csr)

        return answer_of(ask())

    def pem_of(self, key: Key, certificate: x509.Certificate) -> bytes:
        return key_to_pem(key.private) + self.path_of(certificate)

    def path_of(self, certificate: x509.Certificate) -> bytes:
        """Return a certificate, and that of its CA."""
        path = (certificate, self._issuers[certificate.issuer][1])
        return b"".join(each.public_bytes(Encoding.PEM) for each in path)

    def add_issuer(self, name: str) -> None:
        certificate = x509.load_pem_x509_certificate((self.service.dir / f"{name}.crt").read_bytes())
        self._issuers[certificate.subject] = name, certificate

    def issuer_name(self, certificate: x509.Certificate) -> str:
        return self._issuers[certificate.issuer][0]

    def change(self, path: str, **rules: str) -> None:
        answer = self._api.patch(path, json=rules)
        assert answer.is_success, answer.text

    def post_bytes(self, path: str, body: bytes) -> str:
        """Return the code of a refusal, or an empty one."""
        answer = self._api.post(path, content=body)
        return "" if answer.is_success else str(answer.json()["code"])

    def remove(self, path: str) -> str:
        """Return the code of a refusal, or an empty one."""
        answer = self._api.delete(path)
        return "" if answer.is_success else str(answer.json()["code"])

    def ocsp_reason(self, certificate: Certificate, *, by_get: bool) -> RevocationReason | None:
        """Return why OCSP says that *certificate* is revoked; None: it is good."""
        request = request_der(certificate.x509, self._issuers[certificate.x509.issuer][1])
        if by_get:
            answer = self._plain.get(f"/ocsp/{_in_url(request)}")
        else:
            answer = self._plain.post("/ocsp", content=request, headers={"Content-Type": "application/ocsp-request"})
        response = ocsp.load_der_ocsp_response(answer.content)
        assert response.response_status is ocsp.OCSPResponseStatus.SUCCESSFUL
        if response.certificate_status is ocsp.OCSPCertStatus.GOOD:
            return None
        assert response.certificate_status is ocsp.OCSPCertStatus.REVOKED
        flag = response.revocation_reason
        return RevocationReason.UNSPECIFIED if flag is None else _REASONS[flag.value]

    def listed(self) -> dict[str, RevocationReason]:
        """Return what the CAs' CRLs list; the number of none falls.

        With several processes one may have made a list that another has still to read.
        """
        found: dict[str, RevocationReason] = {}
        for name, _ in self._issuers.values():
            before = self._numbers.get(name, 0)
            number, reasons = self._list_of(name)
            if number < before and self.workers > 1:
                number, reasons = wait_until(lambda: self._newer_list_of(name), f"{name}: the list of {before}")
            assert number >= before, f"{name}: after list {before}, list {number}"
            self._numbers[name] = number
            found |= reasons
        return found

    def _newer_list_of(self, name: str) -> tuple[int, dict[str, RevocationReason]] | None:
        found = self._list_of(name)
        return found if found[0] >= self._numbers.get(name, 0) else None

    def _list_of(self, name: str) -> tuple[int, dict[str, RevocationReason]]:
        answer = self._plain.get(f"/crl/{name}.crl")
        if self.workers > 1 and answer.status_code == httpx.codes.NOT_FOUND:
            return -1, {}  # This process has still to hear of the CA.
        assert answer.status_code == httpx.codes.OK, f"{name}: {answer.status_code} {answer.text}"
        crl = x509.load_der_x509_crl(answer.content)
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        return number, {f"{each.serial_number:x}": _reason_of(each) for each in crl}

    def stored_sequence(self) -> int:
        """Return the number of the last change, as the store has it: a metric hears of it a moment later."""
        ((newest,),) = self.service.stored("SELECT coalesce(max(sequence), 0) FROM revocation_events")
        return int(newest)

    def fed_sequences(self) -> set[float]:
        """Return the number of the last change that the service's processes feed to brokers."""
        return set(self.samples("fleet_provisioning_feed_sequence"))

    def samples(self, name: str) -> list[float]:
        """Return a metric of the service that has no labels of its own: one of each process."""
        lines = self._plain.get("/metrics").text.splitlines()
        return [float(line.split()[-1]) for line in lines if line.startswith((f"{name} ", f'{name}{{worker="'))]

    # The broker

    def dial(self, certificate: Certificate, version: ProtocolVersion, ticket: Ticket | None) -> TlsClient:
        """Return a connection whose TLS is up, as far as this side can tell. Raises `OSError`."""
        if ticket is not None:
            how: dict[str, Any] = {"context": ticket.context, "session": ticket.session}
            return TlsClient(self.broker.port, self.service.bundle, version=version, **how)
        return TlsClient(self.broker.port, self.service.bundle, CredentialPem(certificate.pem), version=version)

    def verdict(self, certificate: Certificate) -> tuple[bool, str]:
        """Return whether the broker would admit *certificate*, and what it says about it."""
        said = self.admin.post_pem("/v1/check", certificate.pem[certificate.pem.index(b"-----BEGIN CERT") :])
        return said["admitted"], said["detail"]

    def connected(self) -> set[str]:
        sessions = self.admin.get("/v1/sessions", connected="true")["sessions"]
        return {each["client_id"] for each in sessions} - {BACKEND}

    def sessions_of(self, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.admin.get("/v1/sessions", client=name)["sessions"]
        return found

    def took(self, count: int) -> list[Message]:
        return self.backend.await_messages(count)


def answer_of(asking: Coroutine[Any, Any, x509.Certificate]) -> x509.Certificate | str:
    """Return the certificate, even if it is brief and over already: the machine may be busy; or the refusal's code."""
    try:
        found: x509.Certificate = asyncio.run(asking)
    except EnrolmentRefused as refusal:
        return refusal.code
    except EnrolmentPending:
        return WAITS
    except WrongCertificate as wrong:
        found = wrong.certificate
        if life_of(found) >= BRIEF or "it has ended on" not in str(wrong):
            raise
    return found


def _in_url(request: bytes) -> str:
    encoded = base64.b64encode(request).decode()
    return encoded.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")


def _reason_of(entry: x509.RevokedCertificate) -> RevocationReason:
    try:
        return _REASONS[entry.extensions.get_extension_for_class(x509.CRLReason).value.reason.value]
    except x509.ExtensionNotFound:
        return RevocationReason.UNSPECIFIED


def serials(certificates: Iterable[Certificate]) -> list[str]:
    return sorted(each.serial for each in certificates)
