"""Why a client is not connected: from the history, and by asking admission about a certificate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

from cryptography import x509

from broker.admin.sessions import Selection, described, matching
from broker.admission.admission import Admission
from broker.admission.check import Verdict, ask, check
from broker.admission.peer import Peer
from broker.admission.refusal import Refused
from broker.admission.remedy import REMEDIES
from broker.engine.engine import Engine
from broker.engine.history import Event, Happened
from provisioning.pki.extension import UNREADABLE
from provisioning.pki.identity import SCHEME, Identity
from provisioning.pki.serial_number import normal_serial, serial_text
from provisioning.pki.shown_subject import shown_subject
from provisioning.pki.tls import certificates_in
from provisioning.program.host_and_port import unbracketed, without_port
from provisioning.program.moments import rfc3339_milliseconds
from provisioning.program.near_names import NearNames
from provisioning.program.printable import printable

_STRETCH = 200
_MOST_EVENTS = 100
_MOST_SESSIONS = 10
_MOST_CERTIFICATES = 10
_CERTIFICATE = (b"-----BEGIN CERTIFICATE-----", b"-----BEGIN X509 CERTIFICATE-----")
_OTHERS = {b"PRIVATE KEY-----": "a private key", b"CERTIFICATE REQUEST-----": "a request, which nobody has signed"}


class InvalidCertificateFile(ValueError):
    """The input to check is not a certificate; the text says why."""


async def why(engine: Engine, about: str) -> dict[str, Any]:
    """Return what is known about *about*: a client identifier, name, identity, serial number or address.

    ``nearby`` are refusals at the client's addresses, ``claimed`` those elsewhere of whoever asked for it as a client
    identifier: neither has proved who it is. ``near`` are similar names, if nothing at all is known.
    """
    serial = normal_serial(about) if len(about) > 1 else ""
    events: list[Event] = []
    async for of_one in _in_turns(engine.history.known()):
        events += [event for event in of_one if event.is_about(about, serial)]
    hosts = {event.host for event in events}
    bare = unbracketed(about)
    host = bare if engine.history.strangers(bare) else without_port(about)
    events += engine.history.strangers(host)
    nearby = [event for each in sorted(hosts - {host}) for event in engine.history.strangers(each)]
    claimed: list[Event] = []
    async for of_one in _in_turns(engine.history.unnamed()):
        if of_one[0].host not in hosts | {host}:
            claimed += [event for event in of_one if about in {event.client_id, printable(event.client_id)} - {""}]
    now, wall = asyncio.get_running_loop().time(), datetime.now(UTC)
    sessions: list[dict[str, Any]] = []
    async for found in matching(engine, Selection(anything=about)):
        sessions += [described(session, now, wall) for session in islice(found, _MOST_SESSIONS - len(sessions))]
    return {
        "about": about,
        "sessions": sessions,
        "events": _shown(events, now, wall),
        "nearby": _shown(nearby, now, wall),
        "claimed": _shown(claimed, now, wall),
        "near": [] if sessions or events or claimed else await near_names(engine, about),
        "remembered": len(engine.history),
    }


async def is_known(engine: Engine, about: str) -> bool:
    """Return whether an identity that was proved here is, or had, *about*: as `why` looks for it."""
    serial = normal_serial(about) if len(about) > 1 else ""
    async for of_one in _in_turns(engine.history.known()):
        if any(event.is_about(about, serial) for event in of_one):
            return True
    return False


async def near_names(engine: Engine, about: str, among: Selection | None = None) -> list[str]:
    """Return the names most like *about*: of the sessions in *among*; None: of all, and of proved identities before.

    If *about* has a trust domain before it, or is an identity, so have they. What strangers ask for is left out: they
    could suggest names of their own.
    """
    near = NearNames(about)

    def see(client_id: str, identity: Identity | str) -> None:
        uri = str(identity)
        name = uri.rpartition("/")[2]
        if about.startswith(SCHEME):
            near.see(uri)
            return
        domain = f"{uri.removeprefix(SCHEME).partition('/')[0]}/" if "/" in about else ""
        for each in {printable(client_id), name}:
            near.see(f"{domain}{each}" if each else "")

    async for found in matching(engine, among or Selection()):
        for session in found:
            see(session.client_id, session.owner)
    async for of_one in _in_turns(engine.history.known() if among is None else ()):
        for event in of_one:
            if event.identity is not None:
                see(event.client_id if event.what is not Happened.REFUSED else "", event.identity)
    return near.found


async def _in_turns(those: Iterable[list[Event]]) -> AsyncIterator[list[Event]]:
    """Yield each of *those*; devices are served after each stretch."""
    for number, of_one in enumerate(those):
        yield of_one
        if number % _STRETCH == 0:
            await asyncio.sleep(0)


def read_certificates(pem: bytes) -> list[x509.Certificate]:
    """Return the certificates in *pem* (or a single one in DER), the one to check first.

    Raises `InvalidCertificateFile`.
    """
    if b"-----BEGIN" in pem and not any(each in pem for each in _CERTIFICATE):
        what = next((what for begin, what in _OTHERS.items() if begin in pem), "something else")
        raise InvalidCertificateFile(f"it holds no PEM certificate but {what}")
    try:
        certificates = certificates_in(pem)
    except UNREADABLE as error:
        raise InvalidCertificateFile("it holds no certificate, neither PEM nor DER, or one that is cut off") from error
    if len(certificates) > _MOST_CERTIFICATES:
        raise InvalidCertificateFile(
            f"{len(certificates)} certificates: give only the client's certificate and its chain"
        )
    return certificates


async def checked(
    certificates: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate], admission: Admission, now: float
) -> dict[str, Any]:
    """Return admission's present verdict on the first of *certificates*, asking elsewhere as it would."""
    outcome = ask(certificates, anchors, admission, datetime.now(UTC))
    inquiry = outcome.inquiry if isinstance(outcome, Peer) else None
    if isinstance(outcome, Peer) and inquiry is not None:
        if not inquiry.done:
            done = asyncio.Event()
            inquiry.when_done(lambda _: done.set())
            await done.wait()  # The asker has its own time limit.
        if inquiry.refusal is not None:
            outcome = replace(inquiry.refusal, identity=outcome.identity.uri, serial=outcome.serial)
    return verdict_document(certificates, anchors, admission, now, outcome)


def verdict_document(
    certificates: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    admission: Admission,
    now: float,
    outcome: Peer | Refused,
) -> dict[str, Any]:
    """Return the verdict document for the first of *certificates*; *outcome* is admission's result."""
    verdict: Verdict = check(certificates, anchors, admission, now, datetime.now(UTC), outcome)
    return {
        "admitted": verdict.admitted,
        "code": verdict.code,
        "detail": verdict.detail,
        "remedy": verdict.remedy,
        "subject": shown_subject(certificates[0]),
        "serial": serial_text(certificates[0].serial_number),
        "steps": [
            {"step": step.name, "passed": step.passed, "code": str(step.code), "detail": step.detail}
            for step in verdict.steps
        ],
    }


def _shown(events: Iterable[Event], now: float, wall: datetime) -> list[dict[str, Any]]:
    """Return the newest of *events*, the oldest first."""
    return [
        {
            "event": str(event.what),
            "code": str(event.code),
            "detail": event.detail,
            "remedy": REMEDIES.get(event.code, ""),
            "client_id": event.client_id or None,
            "identity": str(event.identity) if event.identity is not None else None,
            "serial": event.serial or None,
            "address": event.address,
            "first": _time(event.first, now, wall),
            "last": _time(event.last, now, wall),
            "times": event.times,
        }
        for event in sorted(events, key=lambda event: event.last)[-_MOST_EVENTS:]
    ]


def _time(moment: float, now: float, wall: datetime) -> str:
    return rfc3339_milliseconds(wall - timedelta(seconds=now - moment))
