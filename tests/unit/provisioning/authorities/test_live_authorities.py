"""The CAs of a service that starts, or whose store goes back: what was decided while none ran."""

from __future__ import annotations

import asyncio
import os
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import NameOID
from sqlalchemy import delete, select, text, update
from sqlalchemy.engine import Connection
from structlog.testing import capture_logs

from provisioning.authorities.authority import open_authority, root_crl_plan
from provisioning.authorities.authority_revocation import AuthorityRevocation
from provisioning.authorities.live_authorities import LiveAuthorities
from provisioning.authorities.next_authority import NextAuthority
from provisioning.authorities.root_life import RootLife
from provisioning.ca.ceremony import ISSUING_LIFE, read_issuing_ca_csr
from provisioning.ca.issuer import Issuer
from provisioning.directory.files import AuthorityFiles, read_certificate
from provisioning.errors import Code, Refused
from provisioning.pki.keys import PrivateKey, generate_key, key_identifier, key_to_pem, write_private
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation.feed import RevocationFeed
from provisioning.revocation.ocsp import OcspResponder
from provisioning.revocation.publisher import CrlPublisher
from provisioning.revocation.service import RevocationService
from provisioning.store import crls, tables
from provisioning.store.authorities import DEFAULT_LINE, AuthorityState
from provisioning.store.crls import PublishedCrl
from provisioning.store.serials import SerialNumbers
from tests.support.ceremonies import Ceremonies
from tests.support.openssl import openssl
from tests.support.pki import pem_of

ROOT = "root-ca"


def opened(fleet_cas: Ceremonies) -> LiveAuthorities:
    async def issue_with(_issuer: Issuer) -> None: ...

    settings, database, clock = fleet_cas.settings, fleet_cas.database, fleet_cas.clock
    return LiveAuthorities(
        authority=open_authority(settings),
        settings=settings,
        public_url="http://ca.example.org",
        database=database,
        serial_numbers=SerialNumbers(database),
        responder=OcspResponder(database, [], clock, settings.ocsp_life),
        clock=clock,
        on_trust=lambda _certificates: None,
        on_active=issue_with,
    )


async def listed_by_next_service(fleet_cas: Ceremonies, number: int) -> set[int]:
    """Run the CAs until the root's list after *number* is there; return the serial numbers in it."""
    live = opened(fleet_cas)
    await live.start()
    running = asyncio.create_task(live.run())
    try:
        async with asyncio.timeout(60):
            while (crl := live.publishers[ROOT].current) is None or crl.number <= number:
                await asyncio.sleep(0.01)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return {each.serial_number for each in x509.load_der_x509_crl(crl.der)}


async def newest(fleet_cas: Ceremonies) -> int:
    live = opened(fleet_cas)
    await live.start()
    crl = live.publishers[ROOT].current
    assert crl is not None
    return crl.number


async def test_a_ca_that_was_revoked_while_no_service_ran_is_listed_though_another_has_ended_meanwhile(
    fleet_cas: Ceremonies,
) -> None:
    """The list is as long as before: who compares lengths leaves the CA good until the root's next list is due."""
    fleet_cas.clock.advance(ISSUING_LIFE - timedelta(days=10))
    before = await newest(fleet_cas)
    for revoked in ("issuing-ca", "issuing-2"):
        await fleet_cas.successor()
        fleet_cas.clock.advance(timedelta(seconds=5))
        await AuthorityRevocation(fleet_cas.life).begin(revoked, RevocationReason.CA_COMPROMISE)
        serial = next(each.certificate.serial_number for each in await fleet_cas.life.every() if each.name == revoked)
        assert serial in await listed_by_next_service(fleet_cas, before)
        before = await newest(fleet_cas)
        fleet_cas.clock.advance(timedelta(days=20))


@pytest.mark.parametrize("runs", [False, True], ids=["while no service ran", "under a running service"])
async def test_an_imported_root_s_list_names_its_key_as_the_root_does(fleet_cas: Ceremonies, runs: bool) -> None:
    """By its subject key identifier, which not every tool makes by SHA-1 of the key (RFC 7093)."""
    life, clock = fleet_cas.life, fleet_cas.clock
    key, identifier = generate_key(), os.urandom(20)
    request = read_issuing_ca_csr(await NextAuthority(life).export_csr())
    root = signed_ca("Root", "Root", key.public_key(), key, clock(), identifier, identifier)
    issuing = signed_ca(
        request.subject, "Root", request.public_key, key, clock(), key_identifier(request.public_key), identifier, 0
    )
    assert await NextAuthority(life).announce(pem_of(issuing), pem_of(root)) == "issuing-2"
    write_private(life.files.key("root-2"), key_to_pem(key, b"secret"))  # Brought here for the revocation.
    live = opened(fleet_cas)
    if runs:
        await live.start()
        clock.advance(timedelta(seconds=5))
    begun = await AuthorityRevocation(life).begin("issuing-2", RevocationReason.CA_COMPROMISE)
    if runs:
        live.changed(await RevocationFeed(fleet_cas.database, 60)._page(begun.authority.sequence - 1))
    else:
        await live.start()
    publisher = live.publishers["root-2"]
    if publisher._changed.is_set():
        await publisher.publish_changes()
    assert listed(publisher) == {issuing.serial_number}
    assert publisher.current is not None
    directory = fleet_cas.settings.directory
    for name, content in (("root", pem_of(root)), ("issuing", pem_of(issuing)), ("crl", publisher.current.der)):
        (directory / name).write_bytes(content)
    crl = directory / "crl.pem"
    crl.write_bytes(openssl("crl", "-inform", "DER", "-in", directory / "crl"))
    verify = "verify", "-attime", str(int(clock().timestamp())), "-crl_check", "-CRLfile", crl
    with pytest.raises(AssertionError, match="certificate revoked"):
        openssl(*verify, "-CAfile", directory / "root", directory / "issuing")


async def without_list(cas: Ceremonies) -> tuple[Path, Path]:
    """Begin a root, whose first list was not made before the ceremony ended; return where its key belongs, and is."""
    assert await RootLife(cas.life).begin() == "root-2"
    await cas.database.write(lambda connection: connection.execute(text("DELETE FROM crls WHERE issuer = 'root-2'")))
    key = cas.life.files.key("root-2")
    return key, key.rename(key.with_name("in-a-safe"))


async def test_a_root_whose_key_comes_back_has_its_first_list_then(fleet_cas: Ceremonies) -> None:
    """Without it, whoever looks for the status of the CAs below refuses all that they have issued."""
    key, elsewhere = await without_list(fleet_cas)
    live = opened(fleet_cas)
    with capture_logs() as logs:
        await live.start()
        for _ in range(3):
            await live._take_over()
    assert [each["ca"] for each in logs if each.get("code") == "CRL_NOT_PUBLISHED"] == ["root-2"], "it is said once"
    assert "root-2" not in live.publishers
    elsewhere.rename(key)
    await live._take_over()
    assert listed(live.publishers["root-2"]) == set()


async def test_the_first_list_of_a_root_is_served_also_where_only_another_process_has_the_key(
    fleet_cas: Ceremonies,
) -> None:
    """Else who asks this process for the status of the CAs below finds no list, until it is started again."""
    key, elsewhere = await without_list(fleet_cas)
    live = opened(fleet_cas)
    await live.start()
    elsewhere.rename(key)
    (root,) = [each for each in await fleet_cas.life.every() if each.name == "root-2"]
    plan = root_crl_plan(fleet_cas.settings, fleet_cas.life.places, root.name, root.certificate)
    made = await CrlPublisher(fleet_cas.database, plan, fleet_cas.clock).publish()
    key.rename(elsewhere)
    await live._take_over()
    assert live.publishers["root-2"].current == made


def unusable(*_: object, **__: object) -> None:
    raise Refused(Code.UNAVAILABLE, "the store cannot be used now; try again")


async def test_a_root_whose_key_comes_back_is_begun_later_if_the_store_fails_meanwhile(
    fleet_cas: Ceremonies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its list would never be made again, and lapse."""
    key, elsewhere = await without_list(fleet_cas)
    live, run = opened(fleet_cas), list[str]()
    await live.start()
    elsewhere.rename(key)
    monkeypatch.setattr(live, "_run_root", run.append)
    with monkeypatch.context() as patched:
        patched.setattr(live._contents, "take", unusable)
        with pytest.raises(Refused):
            await live._take_over()
    assert run == []
    await live._take_over()
    assert run == ["root-2"]
    assert listed(live.publishers["root-2"]) == set()


async def test_a_ca_whose_key_comes_back_is_begun_later_if_the_store_fails_meanwhile(
    fleet_cas: Ceremonies, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fleet_cas.successor()
    key = fleet_cas.life.files.key("issuing-ca")
    elsewhere = key.rename(key.with_name("in-a-safe"))
    live = opened(fleet_cas)
    await live.start()
    assert "issuing-ca" not in live.publishers
    elsewhere.rename(key)
    with monkeypatch.context() as patched:
        patched.setattr(fleet_cas.database, "write", unusable)
        with pytest.raises(Refused):
            await live._take_over()
    await live._take_over()
    assert "issuing-ca" in live.publishers


def signed_ca(
    subject: x509.Name | str,
    issuer: str,
    key: CertificatePublicKeyTypes,
    signer: PrivateKey,
    now: datetime,
    identifier: bytes,
    above: bytes,
    path_length: int | None = None,
) -> x509.Certificate:
    names = [
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) if isinstance(each, str) else each
        for each in (issuer, subject)
    ]
    number = x509.random_serial_number()
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    return (
        x509.CertificateBuilder(names[0], names[1], key, number)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=300))
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier(identifier), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier(above, None, None), critical=False)
        .sign(signer, hashes.SHA256())
    )


async def test_a_list_that_says_all_is_not_made_again_by_the_next_service(fleet_cas: Ceremonies) -> None:
    await fleet_cas.successor()
    await AuthorityRevocation(fleet_cas.life).begin("issuing-ca", RevocationReason.CA_COMPROMISE)
    await listed_by_next_service(fleet_cas, await newest(fleet_cas))
    live = opened(fleet_cas)
    await live.start()
    assert not live.publishers[ROOT]._changed.is_set()


async def test_what_another_process_revokes_while_a_list_is_first_made_is_in_the_next_one(
    fleet_cas: Ceremonies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its event may be read before anybody knows of the list that has to be told."""
    live, revoked = opened(fleet_cas), set[int]()
    first = CrlPublisher.start

    async def start(publisher: CrlPublisher) -> None:
        await first(publisher)
        if publisher._plan.name == "issuing-ca":
            (serial, *_) = await fleet_cas.database.read(
                lambda connection: connection.scalars(select(tables.certificates.c.serial)).all()
            )
            service = RevocationService(fleet_cas.database, fleet_cas.clock, ())
            await service.revoke_serial(serial, RevocationReason.UNSPECIFIED, by="another process")
            revoked.add(int(serial, 16))

    monkeypatch.setattr(CrlPublisher, "start", start)
    await live.start()
    assert revoked
    fleet_cas.clock.advance(timedelta(seconds=5))  # Else the list is of the future, and made again for that.
    running = asyncio.create_task(live.run())
    try:
        async with asyncio.timeout(60):
            while not revoked <= listed(live.publishers["issuing-ca"]):
                await asyncio.sleep(0.01)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def listed(publisher: CrlPublisher) -> set[int]:
    assert publisher.current is not None
    return {each.serial_number for each in x509.load_der_x509_crl(publisher.current.der)}


async def test_a_ca_that_the_store_has_lost_ends_and_the_service_goes_on(fleet_cas: Ceremonies) -> None:
    """A recovery to before it was announced ended the running service: its list had no number any more."""
    assert await fleet_cas.successor() == "issuing-2"
    live = opened(fleet_cas)
    await live.start()
    publisher = live.publishers["issuing-2"]

    def go_back(connection: Connection) -> None:
        connection.execute(delete(tables.authorities).where(tables.authorities.c.name == "issuing-2"))
        connection.execute(delete(tables.counters).where(tables.counters.c.name == "crl/issuing-2"))
        connection.execute(update(tables.authorities).values(state=AuthorityState.ACTIVE))

    await fleet_cas.database.write(go_back)
    with pytest.raises(Refused, match="does not know the list issuing-2"):
        await publisher.publish()
    with capture_logs() as logs:
        await live._take_over()
    assert [(each["code"], each["cas"]) for each in logs if "code" in each] == [("STORE_WENT_BACK", ["issuing-2"])]
    assert "issuing-2" not in live.publishers
    first = AuthorityFiles(fleet_cas.settings.directory).certificate("issuing-ca")
    assert live.issuing(DEFAULT_LINE).issuer.certificate == read_certificate(first)
    with capture_logs() as logs:
        await live._take_over()
    assert logs == []


async def test_the_list_of_a_former_shard_is_made_by_a_service_that_starts_with_a_clock_that_is_ahead(
    fleet_cas: Ceremonies,
) -> None:
    """By that clock its certificates had expired; when it was set right, nobody made their list until a restart."""
    made = PublishedCrl("issuing-ca", 1, now := fleet_cas.clock(), now, 0, b"")

    def one_year_later(connection: Connection) -> list[str]:
        crls.add(connection, made)
        for shards in (2, 1):
            fleet_cas.settings = fleet_cas.settings.model_copy(update={"crl_shards": shards})
            _, listed = opened(fleet_cas)._shards("issuing-ca", connection)
            assert connection.execute(update(tables.certificates).values(crl_shard_id=2)).rowcount
            fleet_cas.clock.advance(timedelta(days=400))
        return [each.name for each in listed]

    assert await fleet_cas.database.write(one_year_later) == ["issuing-ca-1", "issuing-ca-2"]
