"""A root's CRL: what the root signs names it, it is there from the beginning, and the doctor says when it is due."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import HttpUrl
from sqlalchemy import text, update
from sqlalchemy.engine import Connection
from structlog.testing import capture_logs

from provisioning.authorities.authority import root_crl_plan
from provisioning.authorities.authority_life import AuthorityLife
from provisioning.authorities.authority_revocation import AuthorityRevocation
from provisioning.authorities.next_authority import NextAuthority
from provisioning.authorities.root_life import RootLife
from provisioning.directory.audit_key import read_audit_key
from provisioning.directory.files import AuthorityFiles
from provisioning.doctor.doctor_authorities import authority_findings
from provisioning.pki.keys import key_identifier
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.serial_number import serial_text
from provisioning.revocation import publisher
from provisioning.revocation.publisher import CrlPublisher
from provisioning.signers.places import SignerPlaces
from provisioning.store import crls
from provisioning.store.crls import PublishedCrl
from provisioning.store.database import Database
from provisioning.store.lost_ends import LostEnd
from provisioning.store.tables import authorities
from tests.support.broker_process import wait_until
from tests.support.ceremonies import Ceremonies

HALF = timedelta(days=183)


def reached(cas: Ceremonies) -> AuthorityLife:
    """Return the ceremonies of a service that relying parties reach at a configured address."""
    settings = cas.settings.model_copy(update={"public_http_url": HttpUrl("http://ca.example.org:8080")})
    return replace(cas.life, settings=settings)


def addresses(certificate: x509.Certificate) -> Mapping[str, str]:
    found = {}
    for each in certificate.extensions:
        if isinstance(each.value, x509.CRLDistributionPoints):
            name, *others = [name for point in each.value for name in point.full_name or ()]
            assert others == []
            found["crl"] = name.value
        if isinstance(each.value, x509.AuthorityInformationAccess):
            found |= {access.access_method._name: access.access_location.value for access in each.value}
    return found


def of(root: str) -> Mapping[str, str]:
    origin = "http://ca.example.org:8080"
    return {"crl": f"{origin}/crl/{root}.crl", "caIssuers": f"{origin}/ca/{root}.crt"}


async def said(life: AuthorityLife, check: str = "CRL") -> list[tuple[str, str]]:
    now = life.clock()
    found = await life.database.read(lambda connection: [*authority_findings(connection, life.settings, now)])
    return [(each.verdict, each.detail.partition(":")[0]) for each in found if each.check == check]


def serves(publisher: CrlPublisher, made: PublishedCrl) -> bool:
    return publisher.current == made and not publisher._owed


def complaints(logs: Sequence[Mapping[str, object]]) -> list[object]:
    return [each["detail"] for each in logs if each.get("code") == "CRL_NOT_PUBLISHED"]


async def test_what_a_root_signs_names_its_list_and_no_responder(fleet_cas: Ceremonies) -> None:
    """No root has an OCSP responder: who is sent to one by its certificate gets no answer about it."""
    life = reached(fleet_cas)
    await NextAuthority(life).begin()
    await RootLife(life).begin()
    await NextAuthority(life).begin(another=True)
    named = {each.name: addresses(each.certificate) for each in await life.every()}
    assert named == {
        "root-ca": {},
        "issuing-ca": {},  # Founded without an address.
        "issuing-2": of("root-ca"),
        "root-2": {},
        "root-2-by-root-ca": of("root-ca"),
        "root-ca-by-root-2": of("root-2"),
        "issuing-3": of("root-2"),
    }
    shown = "\n".join(fleet_cas.shown)
    assert shown.count("  CRL      http://ca.example.org:8080/crl/root-2.crl") == 2
    await NextAuthority(fleet_cas.life).begin("meters")
    assert "CRL      none is named: clients that check the whole path refuse" in "\n".join(fleet_cas.shown)


async def test_a_new_root_s_list_is_there_though_its_key_leaves_at_once(fleet_cas: Ceremonies) -> None:
    life = reached(fleet_cas)
    await RootLife(life).begin()
    (root,) = [each for each in await life.every() if each.name == "root-2"]
    listed = await life.database.read(lambda connection: crls.newest(connection, "root-2"))
    assert listed is not None
    key = root.certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert x509.load_der_x509_crl(listed.der).is_signature_valid(key)


async def test_who_lacks_the_root_s_key_serves_the_list_that_another_process_has_made(
    fleet_cas: Ceremonies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its list would be the old one until it is started again: lapsed, and without the CA that was revoked."""
    monkeypatch.setattr(publisher, "_RETRY_SECONDS", 0.01)
    life, clock = fleet_cas.life, fleet_cas.clock
    (root,) = [each for each in await life.every() if each.name == "root-ca"]
    settings = life.settings.model_copy(update={"crl_debounce_seconds": 0.01})
    keyless = SignerPlaces(AuthorityFiles(tmp_path / "elsewhere"), settings)
    having, lacking = (
        CrlPublisher(life.database, root_crl_plan(settings, places, root.name, root.certificate), clock)
        for places in (life.places, keyless)
    )
    await having.start()
    await lacking.start()
    clock.advance(HALF)
    with capture_logs() as logs:
        made = await having.publish()
        run = asyncio.create_task(lacking.run())
        await asyncio.to_thread(wait_until, lambda: lacking.current == made, "it serves that list")
    assert complaints(logs) == [], "it is renewed"
    with capture_logs() as logs:
        for already in (True, False):  # Whether the change is on the other's list when this one hears of it.
            (revoked,) = [each.name for each in await life.every() if each.issues]
            await fleet_cas.successor()
            await AuthorityRevocation(life).begin(revoked, RevocationReason.CA_COMPROMISE)
            assert complaints(logs) == []
            if already:
                made = await having.publish()
            lacking.changed()
            if not already:
                await asyncio.to_thread(wait_until, lambda: complaints(logs) != [], "it cannot make the list")
                made = await having.publish()
            await asyncio.to_thread(
                wait_until, partial(serves, lacking, made), "it serves that list and wants no other"
            )
    run.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await run


async def test_a_newer_list_without_what_is_held_here_is_not_served(
    fleet_cas: Ceremonies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process with the key was started after the store had lost that a CA was revoked, and lists it no more."""
    monkeypatch.setattr(publisher, "_RETRY_SECONDS", 0.01)
    life, settings = fleet_cas.life, fleet_cas.settings
    every = await life.every()
    (root,) = [each for each in every if each.name == "root-ca"]
    (issuing,) = [each for each in every if each.issues]
    another = Database(settings.resolved_database_url, read_audit_key(life.files))
    keyless = SignerPlaces(AuthorityFiles(tmp_path / "elsewhere"), settings)
    having, lacking = (
        CrlPublisher(database, root_crl_plan(settings, places, root.name, root.certificate), fleet_cas.clock)
        for database, places in ((another, life.places), (life.database, keyless))
    )
    await having.start()
    await lacking.start()
    before, lost_ends = lacking.current, life.database.lost_ends
    serial, key_id = issuing.certificate.serial_number, key_identifier(issuing.certificate.public_key()).hex()
    end = LostEnd(
        key_identifier(root.certificate.public_key()).hex(),
        serial_text(serial),
        "issuing-ca",
        RevocationReason.CA_COMPROMISE,
        fleet_cas.clock(),
        authority_key=key_id,
    )
    lost_ends.hold([end])
    fleet_cas.clock.advance(HALF)
    await having.publish()
    with capture_logs() as logs:
        run = asyncio.create_task(lacking.run())
        await asyncio.to_thread(wait_until, lambda: complaints(logs) != [], "it cannot make the list")
        assert lacking.current == before, "the other's lacks the CA that is held here"
        lacking.read_again()
        lacking.changed()
        assert not await lacking._is_done_elsewhere(due=True), "nor has the one before that"
        lost_ends.settle([(end.issuer_key_id, end.serial)])
        await asyncio.to_thread(wait_until, lambda: lacking.current == having.current, "an operator has decided")
    run.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await run
    await another.close()


def exchange_names(one: str, other: str, connection: Connection) -> None:
    """As if each of two roots were the issuer of what names the other's list."""
    for before, after in ((one, "third"), (other, one), ("third", other)):
        connection.execute(update(authorities).where(authorities.c.name == before).values(name=after))


async def test_the_doctor_says_when_a_root_s_list_is_due_or_missing(fleet_cas: Ceremonies) -> None:
    life = reached(fleet_cas)
    await RootLife(life).begin()
    nameless = ("warning", "issuing-ca's certificate names no CRL")
    assert nameless in await said(life)
    assert nameless not in await said(fleet_cas.life), "devices' certificates name an address of this machine, too"
    assert [verdict for verdict, detail in await said(life) if "root" in detail] == ["ok", "ok"]
    fleet_cas.clock.advance(HALF)
    due = [("warning", f"{name}'s next CRL is due") for name in ("root-ca", "root-2")]
    assert [each for each in await said(life) if "due" in each[1]] == due
    await life.database.write(lambda connection: connection.execute(text("DELETE FROM crls WHERE issuer = 'root-2'")))
    absent = ("failed", "root-ca-by-root-2's certificate names http")
    assert absent in await said(life)
    await life.database.write(partial(exchange_names, "root-ca", "root-2"))
    assert (await said(life)).count(absent) == 1, "it has a list again"
    found = await life.database.read(lambda connection: [*authority_findings(connection, life.settings, life.clock())])
    theirs = [each.detail for each in found if "which is the CRL of root-2 and not of its issuer" in each.detail]
    assert len(theirs) == 1
