"""What happens in each round of a soak, beside what its devices do by themselves; and what must be true at its end.

Theory
------
Each round has passing devices (a session and a will that are kept for seconds, retained messages that expire), devices
that are revoked, suspended, resumed, decommissioned, and new ones in their place; tokens and claims that nobody uses; a
manufacturer's new list and a device of his; a plant's new list, and now and then another CA in its bundle; OCSP,
complete and delta CRLs. Every few rounds an issuing CA is announced and activated; the one before it is retired as
soon as its certificates have ended, which are minutes. Two are not retired: the first, because the operator's
certificate of a year is of it, and the one in charge while the service's clock was an hour ahead.

Rules
-----
1. Administrative work that fails in bad weather is excused, in good weather it is a failure.
2. A round ends in good weather, with every rightful device connected, and everything acknowledged delivered. What the
   broker waits for a processor meanwhile does not count.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

import httpx
from ca_running import OCSP_REQUEST, ocsp_request
from cryptography import x509
from cryptography.x509 import ocsp
from soak_fleet import GROUP, Backend, Held, Member, Surroundings, attempt, enrol, passing_terms, renew
from soak_foreign_ca import ForeignCa, named, numbered, put
from soak_judge import had_its_time
from soak_stand import CommandFailed

from device_sim.link.closure import Closure
from device_sim.link.light_client import LightConnection
from device_sim.link.link import NotConnected
from device_sim.link.tls_dial import NotAdmitted
from provisioning.client.est import EnrolmentRefused, EnrolmentUnavailable
from provisioning.client.operator import RequestRefused, ServiceUnavailable
from provisioning.pki.revocation_reason import RevocationReason

MAKER, MAKERS_GROUP, CLAIMS_GROUP = "acme", "acme-devices", "line-7"
_UNAVAILABLE = (
    *(RequestRefused, ServiceUnavailable, EnrolmentRefused, EnrolmentUnavailable, NotAdmitted, NotConnected),
    *(CommandFailed, httpx.HTTPError, ssl.SSLError, OSError, TimeoutError),
)
_LIST_LIFE: Final = timedelta(minutes=10)
"""Longer than a round takes on a busy machine: that a list lapses which none has replaced is a finding."""
_ROLLOVER_ROUNDS: Final = 8
_IN_USE: Final = ("are good until", "can still be renewed until")
"""Why a CA is not retired yet."""
_BUNDLE_ROUNDS: Final = 5
_LISTED: Final = 6
"""So many are on a foreign CA's list, after as many rounds: its length is no growth."""
_TAKES_EFFECT: Final = 10.0
_RESUMED: Final = 4.0
"""The feed says at once who is resumed; whom OCSP was asked about in between, it is asked about again in a second."""
_AT_ONCE: Final = 8.0
_GUESTS: Final = 2
"""So many come in a round."""
_PAUSE: Final = 0.2
_RETURN_SECONDS: Final = 25.0
PROMISED: Final = (
    *("publish", "enrol", "renew", "refused", "passing device", "decommission", "revoke", "suspend and resume"),
    *("tokens", "claim", "manufacturer", "plant", "relying party", "banned", "CA activated", "CA retired"),
)
"""Operations that a run of a quarter of an hour has."""
_CONFIRMED: Final = frozenset({0x87, 0x8A, 0x98})
"""Not authorized, banned, administrative action."""


class Work:
    """The fleet, its operator, and the other CAs."""

    def __init__(self, here: Surroundings, size: int) -> None:
        self.here = here
        self._numbers = itertools.count(1)
        self.backends = [Backend(here, "backend"), *(Backend(here, f"worker-{n}", "pool") for n in (1, 2))]
        self.members = [self._new_member() for _ in range(size)]
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._banned: deque[tuple[str, Held, str]] = deque()
        self._maker = ForeignCa("Acme devices", timedelta(hours=3))
        self._plant = ForeignCa("Plant CA 1", timedelta(hours=3))
        self._old_plant: tuple[str, Held] | None = None
        self._guests: deque[tuple[str, Held]] = deque()
        self._wills: list[tuple[str, float]] = []

    def _new_member(self) -> Member:
        return Member(self.here, f"meter-{next(self._numbers):05}")

    # ---- the beginning and the end

    async def prepare_plant(self) -> None:
        """Write what the broker needs to start."""
        place = self.here.stand.plant
        put(place / "anchors" / "plant.pem", self._plant.pem)
        put(place / "lists" / "plant.crl", self._plant.list(_LIST_LIFE))

    async def begin(self) -> None:
        """Make the groups and the manufacturer, and let everybody live."""
        operator = self.here.stand.operator
        lasting = {"renewal_grace_seconds": 60, "new_key": "replace"}
        await operator.create_group(GROUP, {"ways": ["token"], **lasting})
        await operator.create_group(MAKERS_GROUP, {"ways": ["manufacturer"], **lasting})
        await operator.create_group(CLAIMS_GROUP, {"ways": ["claim"], **lasting})
        await operator.add_manufacturer(
            MAKER, group=MAKERS_GROUP, certificate=self._maker.pem.decode(), name_prefix="acme-"
        )
        for backend in self.backends:
            self._let_live(backend)
        while any(backend.outside_since is not None for backend in self.backends):
            self.check_alive()
            await asyncio.sleep(_PAUSE)
        for member in self.members:  # What they publish has somebody to go to.
            self._let_live(member)

    def _let_live(self, party: Member | Backend) -> None:
        self._tasks[party.name] = asyncio.create_task(party.run(), name=party.name)

    async def end(self) -> None:
        """Let everybody leave."""
        for each in (*self.members, *self.backends):
            each.leave()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def check_alive(self) -> None:
        """Raise what has ended one of them, which is a fault of the soak."""
        for task in self._tasks.values():
            if task.done() and not task.cancelled():
                task.result()

    # ---- a round

    async def round(self, number: int) -> None:
        """Do what a round has to do."""
        deeds: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            ("passing device", lambda: self._passing(number)),
            ("passing device", lambda: self._passing(number)),
            ("decommission", self._decommission),
            ("revoke", self._revoke),
            ("suspend and resume", self._suspend_and_resume),
            ("tokens", self._tokens),
            ("claim", lambda: self._claim(number)),
            ("manufacturer", self._manufacturer),
            ("plant", lambda: self._plant_round(number)),
            ("relying party", self._relying_party),
            ("banned", self._banned_stay_out),
        ]
        if number % 2:  # Those without a fault.
            deeds.append(("rollover", lambda: self._rollover(number)))
        for name, deed in deeds:
            await self._do(name, deed)

    async def _do(self, name: str, deed: Callable[[], Awaitable[None]]) -> None:
        good = self.here.weather.is_good
        try:
            await deed()
        except _UNAVAILABLE as error:
            self.here.note(name, f"{type(error).__name__}: {error}", good)
        else:
            self.here.ledger.operations[name] += 1

    async def verify(self) -> None:
        """Wait for good weather, and check that everybody has what is his (rule 2)."""
        ledger, weather = self.here.ledger, self.here.weather
        await weather.clears_up()
        broker = self.here.stand.broker
        began, starved = time.monotonic(), broker.starved
        while not had_its_time(_RETURN_SECONDS, time.monotonic() - began, broker.starved - starved):
            outside = [each for each in (*self.backends, *self.members) if each.is_rightful and not each.connected]
            missing = {name: gone for name, gone in ledger.missing().items() if gone}
            wills = [topic for topic, _ in self._wills if topic not in self.backends[0].states]
            if not outside and not missing and not wills:
                break
            await asyncio.sleep(_PAUSE)
        else:
            for each in outside:
                ledger.refused_wrongly.append(
                    f"{each.name} is not connected {_RETURN_SECONDS:.0f} s after {weather.last}"
                )
            for name, gone in missing.items():
                ledger.lost.append(f"{len(gone)} for {name} after {weather.last}: {min(gone).decode()} …")
            ledger.lost.extend(f"the will {topic} after {weather.last}" for topic in wills)
        self._wills.clear()
        self.backends[0].states.clear()
        ledger.settle()
        self.check_alive()

    # ---- devices

    async def _passing(self, number: int) -> None:
        """One comes, subscribes, is gone; its session and its will expire, its name is never used again."""
        here, name = self.here, f"guest-{next(self._numbers):05}"
        held = await enrol(here, name)
        terms = passing_terms(name, number)
        link = await LightConnection.open(
            here.endpoint, here.context.of(held.pem), name, keep_alive=here.keep_alive, credential=held.pem, terms=terms
        )
        here.ledger.operations["connect"] += 1
        try:
            await link.subscribe(f"fleet/{GROUP}/{name}/cmd/#", 1)
        finally:
            link.abort()
        assert terms.will is not None  # noqa: S101 - It was made with one.
        if here.weather.is_good:
            self._wills.append((terms.will.topic, time.monotonic()))
        for text in (b"1", b"2"):
            self.backends[0].command(name, text)
        self._guests.append((name, held))

    async def _decommission(self) -> None:
        """Decommission a guest whose will has come: of who is revoked it is discarded."""
        if len(self._guests) <= _GUESTS:
            return
        name, held = self._guests.popleft()
        self._guests.clear()
        await self.here.stand.operator.decommission(name)
        await self._ban(name, held, "decommissioned")

    async def _revoke(self) -> None:
        """Revoke a member; another takes its place."""
        member = self.members.pop(0)
        held = member.held
        member.is_rightful = False
        try:
            if held is not None and held.is_valid:
                await self.here.stand.operator.revoke(device=member.name, reason=RevocationReason.KEY_COMPROMISE)
                await self._ban(member.name, held, "revoked", member)
        finally:
            member.leave()
            self._tasks.pop(member.name).cancel()
            successor = self._new_member()
            self.members.append(successor)
            self._let_live(successor)

    async def _suspend_and_resume(self) -> None:
        member, operator = self.members[len(self.members) // 2], self.here.stand.operator
        if member.held is None or not member.connected:
            return
        member.is_rightful = False
        try:
            await operator.suspend(device=member.name)
            await self._until_refused(member.name, member.held, "suspended", member)
        finally:
            await self._resume(member)

    async def _resume(self, member: Member) -> None:
        """Resume it, however long that takes: else it is no rightful device."""
        deadline = time.monotonic() + _RETURN_SECONDS * 2
        while True:
            try:
                await self.here.stand.operator.resume(device=member.name)
            except (RequestRefused, ServiceUnavailable) as error:
                if time.monotonic() > deadline:
                    raise
                if isinstance(error, RequestRefused) and error.status == 409:
                    break
                await asyncio.sleep(1)
            else:
                break
        for _ in range(round(_RESUMED / _PAUSE)):
            if member.connected:
                break
            await asyncio.sleep(_PAUSE)
        member.is_rightful = True

    async def _ban(self, name: str, held: Held, why: str, member: Member | None = None) -> None:
        if await self._until_refused(name, held, why, member):
            self._banned.append((name, held, why))

    async def _until_refused(self, name: str, held: Held, why: str, member: Member | None) -> bool:
        """Return whether the broker knows it in time; in good weather it must."""
        here = self.here
        deadline = time.monotonic() + _AT_ONCE
        while held.left > 0:
            good = here.weather.is_good
            closure = member.link.closed.result() if member and member.link and member.link.closed.done() else None
            if closure is None or closure.number not in _CONFIRMED:
                closure = await attempt(here, name, held)
            if closure is not None and closure.number in _CONFIRMED:
                return True
            if not here.weather.is_good:
                deadline = time.monotonic() + _AT_ONCE
            elif time.monotonic() > deadline and good:
                here.ledger.admitted_wrongly.append(f"{name}, {why} {_AT_ONCE:.0f} s ago: {closure or 'admitted'}")
                return False
            await asyncio.sleep(_PAUSE)
        return False

    async def _banned_stay_out(self) -> None:
        """Try everybody whose ban the broker has confirmed (rule 3 of `soak_fleet`)."""
        for name, held, why in list(self._banned):
            if held.left < 0:
                self._banned.popleft()
                continue
            closure = await attempt(self.here, name, held)
            if closure is None:
                self.here.ledger.admitted_wrongly.append(f"{name}, {why}, after {self.here.weather.last}")
        if self._banned:
            name, held, why = self._banned[-1]
            try:
                await renew(self.here, name, held)
            except (EnrolmentRefused, EnrolmentUnavailable):
                pass
            else:
                self.here.ledger.admitted_wrongly.append(f"{name}, {why}: its certificate was renewed")

    # ---- the operator

    async def _tokens(self) -> None:
        await self.here.stand.operator.create_tokens(group=GROUP, count=5, ttl_seconds=60)

    async def _claim(self, number: int) -> None:
        """Make a claim that admits one device and expires; every third time the device comes."""
        operator = self.here.stand.operator
        claim = await operator.create_claim(
            f"batch-{next(self._numbers):05}", group=CLAIMS_GROUP, maximum_devices=2, life_seconds=120,
            activation_seconds=300,
        )  # fmt: skip
        if number % 3 == 0:
            credential = Held(x509.load_pem_x509_certificate(claim.certificate.encode()), claim.private_key.encode())
            await enrol(self.here, f"claimed-{next(self._numbers):05}", credential=credential.pem, label=CLAIMS_GROUP)

    async def _manufacturer(self) -> None:
        """Replace its list; one device is on it, another is not."""
        good, bad = (str(next(self._numbers)) for _ in range(2))
        rightful, banned = self._maker.issue(numbered(good)), self._maker.issue(numbered(bad))
        self._maker.revoked = [*self._maker.revoked[1 - _LISTED :], banned.certificate.serial_number]
        await self.here.stand.operator.take_list(MAKER, self._maker.list(_LIST_LIFE), fewer=True)
        await enrol(self.here, f"acme-{good}", credential=rightful.pem, label=MAKERS_GROUP)
        try:
            await enrol(self.here, f"acme-{bad}", credential=banned.pem, label=MAKERS_GROUP)
        except EnrolmentRefused:
            pass
        else:
            self.here.ledger.admitted_wrongly.append(f"acme-{bad}, on its manufacturer's list: enrolled")

    async def _rollover(self, number: int) -> None:
        """Announce an issuing CA, activate it in the next round, and retire what may be retired."""
        stand = self.here.stand
        states = {
            each["name"]: each["state"]
            for each in json.loads(await stand.command("ca", "list", "--json"))
            if each["kind"] == "issuing"
        }
        step = number % _ROLLOVER_ROUNDS
        if step == 1 and "announced" not in states.values():
            await stand.command("ca", "rollover", "begin")
        elif step == 3 and "announced" in states.values():
            await stand.command("ca", "rollover", "activate", "--without-waiting")
            self.here.ledger.operations["CA activated"] += 1
        for name, state in states.items():
            if state == "retiring":
                try:
                    await stand.command("ca", "rollover", "retire", name)
                except CommandFailed as error:
                    if not any(each in str(error) for each in _IN_USE):
                        raise
                else:
                    self.here.ledger.operations["CA retired"] += 1

    # ---- other CAs, and relying parties

    async def _plant_round(self, number: int) -> None:
        """Replace the plant's list, and now and then its CA: who is below the new one comes in, others do not."""
        place, here = self.here.stand.plant, self.here
        if number % _BUNDLE_ROUNDS == 0:
            self._old_plant = self._plant_client()
            self._plant = ForeignCa(f"Plant CA {number}", timedelta(hours=3))
            put(place / "lists" / "plant.crl", self._plant.list(_LIST_LIFE))
            put(place / "anchors" / "plant.pem", self._plant.pem)
        name, held = self._plant_client()
        banned_name, banned = self._plant_client()
        self._plant.revoked = [*self._plant.revoked[1 - _LISTED :], banned.certificate.serial_number]
        put(place / "lists" / "plant.crl", self._plant.list(_LIST_LIFE))
        await self._until("let in", lambda closure: closure is None, name, held)
        await self._until("kept out", lambda closure: closure is not None, banned_name, banned)
        if self._old_plant is not None and await attempt(here, *self._old_plant) is None:
            here.ledger.admitted_wrongly.append(f"{self._old_plant[0]}, of a CA that is not in the bundle any more")

    def _plant_client(self) -> tuple[str, Held]:
        name = f"machine-{next(self._numbers):05}"
        return name, self._plant.issue(named(name))

    async def _until(self, what: str, so: Callable[[Closure | None], bool], name: str, held: Held) -> None:
        """Wait until the broker has read the new files."""
        deadline = time.monotonic() + _TAKES_EFFECT
        while not so(closure := await attempt(self.here, name, held)):
            if time.monotonic() > deadline:
                if closure is None and self.here.weather.is_good:
                    self.here.ledger.admitted_wrongly.append(f"{name}, on its CA's list for {_TAKES_EFFECT:.0f} s")
                raise TimeoutError(f"{name} is not {what} within {_TAKES_EFFECT:.0f} s: {closure or 'admitted'}")
            await asyncio.sleep(0.3)

    async def _relying_party(self) -> None:
        """Ask OCSP about a good and about a revoked certificate, and read the lists."""
        stand = self.here.stand
        authorities = x509.load_pem_x509_certificates(stand.anchors.read_bytes())
        chosen: list[tuple[Held, ocsp.OCSPCertStatus]] = []
        member = self.members[-1]
        if member.held is not None and member.is_rightful and member.held.is_valid:
            chosen.append((member.held, ocsp.OCSPCertStatus.GOOD))
        if self._banned and self._banned[-1][1].is_valid:
            chosen.append((self._banned[-1][1], ocsp.OCSPCertStatus.REVOKED))
        async with httpx.AsyncClient(timeout=10, trust_env=False) as client:
            for held, status in chosen:
                issuer = _issuer_of(held.certificate, authorities)
                asked = ocsp_request(held.certificate.serial_number, issuer)
                answer = await client.post(
                    f"{stand.http_url}/ocsp", content=asked, headers={"Content-Type": OCSP_REQUEST}
                )
                answer.raise_for_status()
                response = ocsp.load_der_ocsp_response(answer.content)
                if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
                    raise TimeoutError(f"OCSP answers {response.response_status.name}")
                said = response.certificate_status
                if said is not status:
                    self.here.note("OCSP", f"says {said} where {status} is due", since_good=True)
                await self._read_lists(client, held, listed=status is ocsp.OCSPCertStatus.REVOKED)

    async def _read_lists(self, client: httpx.AsyncClient, held: Held, *, listed: bool) -> None:
        points = held.certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
        url = str(next(name.value for point in points for name in point.full_name or ()))
        answer = await client.get(url)
        answer.raise_for_status()
        complete = x509.load_der_x509_crl(answer.content)
        found = complete.get_revoked_certificate_by_serial_number(held.certificate.serial_number) is not None
        delta_url = url.removesuffix(".crl") + ".delta.crl"
        answer = await client.get(delta_url)
        if answer.status_code != 404:
            answer.raise_for_status()
            delta = x509.load_der_x509_crl(answer.content)
            found |= delta.get_revoked_certificate_by_serial_number(held.certificate.serial_number) is not None
            self.here.ledger.operations["delta CRL"] += 1
        if found is not listed:
            self.here.note(
                "CRL", f"{held.certificate.serial_number:x} is {'' if found else 'not '}listed", since_good=True
            )


def _issuer_of(certificate: x509.Certificate, authorities: list[x509.Certificate]) -> x509.Certificate:
    wanted = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    for each in authorities:
        if each.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest == wanted:
            return each
    raise TimeoutError("the bundle does not have the issuer")
