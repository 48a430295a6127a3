"""A fleet that keeps what its service has told it, whatever becomes of the service meanwhile.

    fleet = ToldFleet(services, seed)
    … fleet.enrol(1), fleet.decide(0), fleet.watch() in threads of their own, while services are killed …
    fleet.end()                       # they come to their end; whoever waits for an answer gets it first

Whoever gets no answer, or is told to come back, asks again: with the same key and token, as a device does.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from provisioning.client.csr import build_csr
from provisioning.client.est import EnrolmentRefused, EnrolmentUnavailable, EstClient
from provisioning.pki.keys import generate_key, key_to_pem
from provisioning.pki.tls import CredentialPem
from tests.support.provisioning import ProvisioningService

T = TypeVar("T")

OPERATORS: Final = 2
GROUP: Final = "crowd"
_PATIENCE: Final = 60.0
_PAUSE: Final = 0.05
_MANY: Final = 4
_COME_BACK: Final = (429, 503)
UNDECIDED: Final = "not answered yet"


class _ComeBack(Exception):
    """The service could not do it now."""


class ToldFleet:
    """Devices and operators of one fleet, which *services* serve together."""

    def __init__(self, services: Sequence[ProvisioningService], seed: int) -> None:
        self.certificates: dict[str, tuple[str, bytes]] = {}
        """By serial number: who was handed which certificate."""
        self.states: dict[str, str] = {}
        """By device: what an operator was last told that it is now, or `UNDECIDED`."""
        self.lists: dict[int, bytes] = {}
        """The CRLs, by their numbers."""
        self._services = services
        self._seed = seed
        self._ending = threading.Event()

    def found_group(self) -> None:
        self._said("/v1/groups", name=GROUP, ways=["token"], same_key_seconds=3600)

    def end(self) -> None:
        """Begin nothing new."""
        self._ending.set()

    def enrol(self, number: int) -> None:
        """Let devices enrol, one after the other; every other one renews its certificate at once."""
        count = 0
        while not self._ending.is_set():
            count += 1
            name, key = f"meter-{number}-{count}", generate_key()
            (made,) = self._said("/v1/tokens", device=name, group=GROUP)["tokens"]
            issued = self._est(name, build_csr(key, name), token=made["token"])
            if count % 2:
                chain = (self._any().dir / "issuing-ca.crt").read_bytes()
                pem = key_to_pem(key) + issued.public_bytes(Encoding.PEM) + chain
                try:
                    self._est(name, build_csr(generate_key(), name, like=issued), credential=CredentialPem(pem))
                except EnrolmentRefused:
                    assert name in self.states, "nobody has ended it"

    def decide(self, number: int) -> None:
        """Let operator *number* end and suspend devices, at random: those that are no other operator's."""
        choices = random.Random(self._seed + number)
        while not self._ending.is_set():
            names = {name for name, _ in list(self.certificates.values())} - set(self.states)
            mine = sorted(name for name in names if sum(map(ord, name)) % OPERATORS == number)
            if len(mine) < _MANY:
                time.sleep(_PAUSE)
                continue
            match choices.choice(["revoke", "revoke many", "decommission", "suspend", "suspend and resume"]):
                case "revoke":
                    self._decide("revoked", "/v1/revocations", mine[:1], reason="keyCompromise")
                case "revoke many":
                    self._decide("revoked", "/v1/revocations", mine[:_MANY])
                case "decommission":
                    self._decide("revoked", "/v1/decommissions", mine[:1])
                case "suspend":
                    self._decide("suspended", "/v1/suspensions", mine[:1])
                case _:
                    self._decide("suspended", "/v1/suspensions", mine[:_MANY])
                    self._decide("active", "/v1/resumptions", mine[:_MANY])

    def watch(self) -> None:
        """Take the newest list again and again."""
        while not self._ending.is_set():
            self._insist(lambda: self.take_list(self._any()))
            time.sleep(_PAUSE)

    def take_list(self, service: ProvisioningService) -> set[str]:
        """Return the serial numbers on the newest list of *service*."""
        answer = httpx.get(f"{service.http}/crl/issuing-ca.crl", trust_env=False)
        if answer.status_code in _COME_BACK:
            raise _ComeBack
        found = x509.load_der_x509_crl(answer.content)
        number = found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        assert self.lists.setdefault(number, answer.content) == answer.content, f"two lists have number {number}"
        return {f"{each.serial_number:x}" for each in found}

    def _any(self) -> ProvisioningService:
        return random.choice(self._services)

    def _est(self, name: str, csr: x509.CertificateSigningRequest, **how: Any) -> x509.Certificate:
        token, credential = how.get("token"), how.get("credential")

        async def once() -> x509.Certificate:
            service = self._any()
            async with EstClient(service.https, service.bundle, credential) as client:
                return await (client.reenrol(csr) if token is None else client.enrol(csr, user=name, token=token))

        issued = self._insist(lambda: asyncio.run(once()))
        self.certificates[f"{issued.serial_number:x}"] = name, issued.public_bytes(Encoding.DER)
        return issued

    def _decide(self, state: str, path: str, devices: list[str], **request: Any) -> None:
        self.states |= dict.fromkeys(devices, UNDECIDED)
        self._said(path, devices=devices, **request)
        self.states |= dict.fromkeys(devices, state)

    def _said(self, path: str, **request: Any) -> dict[str, Any]:
        """Send *request* as an operator until it is answered; return the answer."""

        def once() -> dict[str, Any]:
            answer = self._any().post(path, **request)
            if answer.status_code in _COME_BACK:
                raise _ComeBack
            assert answer.is_success, (path, request, answer.text)
            content: dict[str, Any] = answer.json()
            return content

        return self._insist(once)

    def _insist(self, work: Callable[[], T]) -> T:
        given_up_at = time.monotonic() + _PATIENCE
        while True:
            try:
                return work()
            except (_ComeBack, EnrolmentUnavailable, httpx.HTTPError, OSError):
                if time.monotonic() >= given_up_at:
                    raise
            time.sleep(_PAUSE)
