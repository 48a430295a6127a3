"""Several that begin at once, each in a thread, and how it has ended for each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final

import httpx
from cryptography import x509

from provisioning.client.est import EnrolmentUnavailable
from provisioning.pki.keys import generate_key, spki_of
from provisioning.pki.revocation_reason import RevocationReason
from tests.support.walk.fleet_oracle import Certificate, Device, Key, State
from tests.support.walk.walk import World

PATIENCE: Final = 120.0
CUT: Final = "cut off"


class Race:
    """Racers, which begin together."""

    def __init__(self) -> None:
        self._racers: dict[str, Callable[[], Any]] = {}
        self._ends: dict[str, Any] = {}

    def add(self, name: str, racer: Callable[[], Any]) -> None:
        self._racers[name] = racer

    def run(self) -> dict[str, Any]:
        """Return how it has ended for each."""
        start = threading.Barrier(len(self._racers))

        def one(name: str, racer: Callable[[], Any]) -> None:
            try:
                start.wait(PATIENCE)
                self._ends[name] = racer()
            except Exception as error:  # noqa: BLE001 - it is raised by the thread that judges
                self._ends[name] = error

        threads = [threading.Thread(target=one, args=each, daemon=True) for each in self._racers.items()]
        for each in threads:
            each.start()
        for each in threads:
            each.join(PATIENCE)
            assert not each.is_alive(), f"still at it: {set(self._racers) - set(self._ends)}"
        for end in self._ends.values():
            if isinstance(end, Exception):
                raise end
        return self._ends


def insist(world: World, path: str, **request: Any) -> str:
    """Ask as an operator until there is an answer, as one does whose service has just died; return a refusal's code."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            answer = world.reality.service.post(path, **request)
        except (httpx.HTTPError, OSError):
            assert time.monotonic() < until
            time.sleep(0.05)
        else:
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                return "" if answer.is_success else str(answer.json()["code"])


def obtained(ask: Callable[[], x509.Certificate | str]) -> x509.Certificate | str:
    """Return the answer, or that the service could not give one."""
    try:
        return ask()
    except (EnrolmentUnavailable, OSError):
        return CUT


def adopt(world: World, device: Device) -> None:
    """Take note of what the service has come to: its word about a device that raced is the oracle's from now on."""
    known = {each.serial: each for each in device.certificates}
    before = {each: each.reason for each in device.certificates}
    for item in world.reality.look("/v1/certificates", device=device.name, limit="100")["items"]:
        one = known.get(item["serial"])
        if one is None:
            pem = world.reality.look(f"/v1/certificates/{item['serial']}")["pem"]
            found = x509.load_pem_x509_certificate(pem.encode())
            # Several may be for one key, and end together where that is compromised.
            public = spki_of(found.public_key())
            key = next((each.key for each in device.certificates if spki_of(each.x509.public_key()) == public), None)
            one = Certificate(device, key or Key(generate_key()), found, world.reality.path_of(found), lost=True)
            device.certificates.append(one)
        one.reason = None if item["reason"] is None else RevocationReason(item["reason"])
    device.state = State(world.reality.look(f"/v1/devices/{device.name}")["state"])
    assert set(before) <= set(device.certificates)
    world.fleet.events = world.reality.stored_sequence()
