"""Roots: which may sign, when one is retired, and files that cannot be written."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import SecretStr
from sqlalchemy.engine import Connection

from provisioning.authorities import authority_life, own_credentials
from provisioning.authorities.authority_life import AuthorityLife
from provisioning.authorities.next_authority import NextAuthority
from provisioning.authorities.operator_restoration import restore_operator
from provisioning.authorities.root_life import RootLife
from provisioning.ca.ceremony import CertificateAuthority, read_issuing_ca_csr, sign_issuing_ca
from provisioning.directory.files import read_certificate
from provisioning.doctor import doctor
from provisioning.doctor.doctor_authorities import authority_findings
from provisioning.errors import Code, ConfigurationError, Refused
from provisioning.pki.issued_by import is_issued_by
from provisioning.pki.keys import key_identifier, key_to_pem, load_key
from provisioning.pki.revocation import certificate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.serial_number import serial_text
from provisioning.revocation.publisher import CrlPublisher
from provisioning.store import audit, authorities, crls, revocations
from provisioning.store.audit import Action
from provisioning.store.authorities import AuthorityKind, AuthorityState
from tests.support.ceremonies import Ceremonies

_LATER = timedelta(seconds=2)
"""A list of the same second would be waited for."""


async def test_one_root_waits_at_a_time_unless_another_is_asked_for_and_none_that_connects_two_is_retired(
    fleet_cas: Ceremonies,
) -> None:
    roots = RootLife(fleet_cas.life)
    assert await roots.begin() == "root-2"
    with pytest.raises(ConfigurationError, match=r"root-2 is the next root already.*ca rollover begin.*--another"):
        await roots.begin()
    assert not (fleet_cas.settings.directory / "root-3.key").exists()
    fleet_cas.clock.advance(_LATER)
    await roots.retire("root-2")
    assert await roots.begin() == "root-3"
    await NextAuthority(fleet_cas.life).begin()
    assert await roots.begin() == "root-4"
    assert await roots.begin(another=True) == "root-5"
    # Who knows root-3 alone finds no path to what is below root-5: it goes over the one between them.
    before = await fleet_cas.states()
    with pytest.raises(ConfigurationError, match=r"only by it root-ca and root-5 vouch .*: retire root-ca"):
        await roots.retire("root-4")
    assert await fleet_cas.states() == before
    fleet_cas.clock.advance(_LATER)
    assert len(await roots.retire("root-4", apart=True)) == 2, "if its key was stolen, say"


async def test_a_key_that_waits_for_its_root_is_used(fleet_cas: Ceremonies) -> None:
    """As of a command that was killed, or found no room for more than the key."""
    places = fleet_cas.life.places
    key, _ = places.create("root-2")
    assert await RootLife(fleet_cas.life).begin() == "root-2"
    (root,) = [each for each in await fleet_cas.life.every() if each.name == "root-2"]
    assert root.certificate.public_key() == key.public_key() == places.open("root-2").public_key()


async def test_a_root_with_a_passphrase_of_its_own_is_succeeded_by_one_with_the_same(fleet_cas: Ceremonies) -> None:
    life, secret = fleet_cas.life, b"of the vault"
    life.files.key("root-ca").write_bytes(key_to_pem(life.places.open("root-ca"), secret))
    vaults = life.settings.model_copy(update={"passphrase": SecretStr(secret.decode())})
    assert {each.verdict for each in doctor._keys(life.settings)} == {"warning", "ok"}, "it is no failed key"
    assert {each.verdict for each in doctor._keys(vaults)} == {"failed"}, "but an issuing CA's is one"
    assert await RootLife(replace(life, settings=vaults)).begin() == "root-2"
    assert load_key(life.files.key("root-2"), secret).public_key() == next(
        each.certificate.public_key() for each in await life.every() if each.name == "root-2"
    )


async def test_of_two_ceremonies_with_one_key_one_makes_the_root_and_the_other_says_so(
    fleet_cas: Ceremonies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second has found the key that the first has made, and takes it for one that waits."""
    roots, log_step = RootLife(fleet_cas.life), AuthorityLife.log_step

    async def overtaken(life: AuthorityLife, action: Action, name: str, facts: dict[str, object]) -> None:
        monkeypatch.setattr(AuthorityLife, "log_step", log_step)
        assert await roots.begin() == "root-2"
        await life.log_step(action, name, facts)

    monkeypatch.setattr(AuthorityLife, "log_step", overtaken)
    with pytest.raises(ConfigurationError, match="root-2 was made by another command at the same time"):
        await roots.begin()
    (root,) = [each for each in await fleet_cas.life.every() if each.name == "root-2"]
    assert root.certificate.public_key() == fleet_cas.life.places.open("root-2").public_key(), "its key is there"


async def test_who_writes_the_bundle_last_writes_what_is_true_then(
    fleet_cas: Ceremonies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a ceremony elsewhere, on the same store, ended a CA between the look at the CAs and the writing."""
    directory, replace_file = fleet_cas.settings.directory, own_credentials.replace_file

    def overtaken(path: Path, content: bytes) -> None:
        with contextlib.closing(sqlite3.connect(directory / "fleet.db", isolation_level=None)) as store:
            store.execute("UPDATE authorities SET state = 'revoked' WHERE name = 'issuing-ca'")
        replace_file(path, content)

    monkeypatch.setattr(authority_life, "replace_file", overtaken)
    await RootLife(fleet_cas.life).begin()
    bundle = x509.load_pem_x509_certificates((directory / "ca-bundle.crt").read_bytes())
    revoked = read_certificate(directory / "issuing-ca.crt")
    assert (len(bundle), revoked in bundle) == (2, False)


async def test_a_root_whose_commit_was_not_answered_keeps_its_key(
    fleet_cas: Ceremonies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on PostgreSQL, when the server or the network goes in the middle of a COMMIT."""
    write = fleet_cas.database.write

    async def unanswered(work: Callable[[Connection], object]) -> None:
        await write(work)
        if "root-2" in await fleet_cas.states():
            raise Refused(Code.UNAVAILABLE, "the store cannot be used now; try again")

    roots = RootLife(fleet_cas.life)
    with monkeypatch.context() as patch:
        patch.setattr(fleet_cas.database, "write", unanswered)
        with pytest.raises(Refused):
            await roots.begin()
    assert (await fleet_cas.states())["root-2"] == "active"
    with pytest.raises(ConfigurationError, match="root-2 is the next root already"):
        await roots.begin()
    assert await NextAuthority(fleet_cas.life).begin() == "issuing-2"
    known = {each.name: each.certificate for each in await fleet_cas.life.every()}
    assert is_issued_by(known["issuing-2"], known["root-2"])


async def test_a_root_is_retired_when_nothing_lives_under_it(fleet_cas: Ceremonies) -> None:
    with pytest.raises(ConfigurationError, match="root-ca cannot be retired: issuing-ca lives under it"):
        await RootLife(fleet_cas.life).retire("root-ca")
    assert await RootLife(fleet_cas.life).begin() == "root-2"
    await fleet_cas.successor()
    fleet_cas.clock.advance(fleet_cas.settings.operator_life)
    await fleet_cas.life.retire()
    await RootLife(fleet_cas.life).retire("root-ca")
    states = await fleet_cas.states()
    assert states == {
        "issuing-2": "active", "issuing-ca": "retired", "root-2": "active", "root-ca": "retired",
        "root-2-by-root-ca": "retired", "root-ca-by-root-2": "revoked",
    }  # fmt: skip
    with pytest.raises(ConfigurationError, match="root-2 cannot be retired: issuing-2 lives under it"):
        await RootLife(fleet_cas.life).retire("root-2")
    for other in ("issuing-2", "root-ca", "root-2-by-root-ca"):
        with pytest.raises(ConfigurationError, match=rf"there is no root '{other}' to retire; there are root-2 \(act"):
            await RootLife(fleet_cas.life).retire(other)
    assert await fleet_cas.states() == states
    entries = await fleet_cas.database.read(lambda connection: audit.entries(connection, 0, 100))
    for name in ("root-2", "root-2-by-root-ca", "root-ca-by-root-2"):
        steps = [each.action for each in entries if each.subject == name]
        assert steps == (
            ["signing CA certificate", "CA certificate signed", *["signing CRL", "CRL signed"] * 2]
            if name == "root-2"
            else ["CA certificate signed", "CA changed"]
        )


async def test_a_root_that_is_retired_leaves_the_certificates_between_the_others(fleet_cas: Ceremonies) -> None:
    await RootLife(fleet_cas.life).begin()
    assert await RootLife(fleet_cas.life).begin(another=True) == "root-3"
    fleet_cas.clock.advance(_LATER)
    await RootLife(fleet_cas.life).retire("root-3")
    states = await fleet_cas.states()
    assert {name for name, state in states.items() if state == "retired"} == {"root-3", "root-2-by-root-3"}
    assert states["root-3-by-root-2"] == "revoked"
    assert states["root-2-by-root-ca"] == states["root-ca-by-root-2"] == "active"


async def succeeded_root(cas: Ceremonies) -> RootLife:
    """Return a fleet whose first root has been succeeded, and has nothing below it any more."""
    roots = RootLife(cas.life)
    await roots.begin()
    await cas.successor()
    cas.clock.advance(cas.settings.operator_life)
    await cas.life.retire()
    return roots


async def test_no_root_vouches_for_one_that_is_retired(fleet_cas: Ceremonies) -> None:
    """Whoever has its key would be believed for years: a CA of his own, and the certificate between the roots."""
    roots, life = await succeeded_root(fleet_cas), fleet_cas.life
    await roots.retire("root-ca")
    known = {each.name: each.certificate for each in await life.every()}
    cross, issuer = certificate_key(known["root-ca-by-root-2"]), key_identifier(known["root-2"].public_key())
    assert cross[0] == issuer
    event = await life.database.read(revocations.last)
    assert event is not None
    assert (event.device, event.issuer_key_id, event.serial) == (
        "ca:root-ca-by-root-2", issuer.hex(), serial_text(cross[1])
    )  # fmt: skip
    assert event.reason is RevocationReason.CESSATION_OF_OPERATION
    published = await life.database.read(lambda connection: crls.newest(connection, "root-2"))
    assert published is not None
    listed = x509.load_der_x509_crl(published.der).get_revoked_certificate_by_serial_number(cross[1])
    assert listed is not None, "the service may not be able to open that root's key, and the old one is destroyed"


async def test_a_root_that_an_earlier_version_has_retired_is_retired_again(fleet_cas: Ceremonies) -> None:
    roots, database = await succeeded_root(fleet_cas), fleet_cas.database

    def retired_of_old(connection: Connection) -> None:
        for name in ("root-ca", "root-2-by-root-ca", "root-ca-by-root-2"):
            authorities.set_state(connection, name, AuthorityState.RETIRED, fleet_cas.clock())

    def warned(connection: Connection) -> list[str]:
        found = authority_findings(connection, fleet_cas.settings, fleet_cas.clock())
        return [each.remedy for each in found if "is still believed" in each.detail]

    await database.write(retired_of_old)
    assert await database.read(warned) == ["fleet-provisioning ca root retire root-ca"]
    before = await fleet_cas.states()
    await roots.retire("root-ca")
    assert await database.read(warned) == []
    assert await fleet_cas.states() == before | {"root-ca-by-root-2": "revoked"}
    with pytest.raises(ConfigurationError, match="there is no root 'root-ca' to retire"):
        await roots.retire("root-ca")


async def test_a_root_is_not_retired_without_the_key_of_who_vouches_for_it(fleet_cas: Ceremonies) -> None:
    roots, key = await succeeded_root(fleet_cas), fleet_cas.life.files.key("root-2")
    of_the_vault = key_to_pem(roots.life.places.open("root-2"), b"of the vault")
    key.unlink()
    before = await fleet_cas.states()
    with pytest.raises(ConfigurationError, match="the key of root-2 is not here: bring it here first"):
        await roots.retire("root-ca")
    assert await fleet_cas.states() == before
    key.write_bytes(of_the_vault)
    with pytest.raises(ConfigurationError, match=r"has to sign a CRL that ends it: .*root-2\.key.*passphrase"):
        await roots.retire("root-ca")
    assert await fleet_cas.states() == before
    vaults = roots.life.settings.model_copy(update={"passphrase": SecretStr("of the vault")})
    await RootLife(replace(roots.life, settings=vaults)).retire("root-ca")


async def test_a_root_is_retired_also_if_the_list_that_says_so_cannot_be_recorded(
    fleet_cas: Ceremonies, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = await succeeded_root(fleet_cas)

    async def full(_publisher: CrlPublisher) -> None:
        raise Refused(Code.UNAVAILABLE, "no room")

    with monkeypatch.context() as patch:
        patch.setattr(CrlPublisher, "publish", full)
        with pytest.raises(ConfigurationError, match=r"no room; root-ca is retired all the same, but keep its key"):
            await roots.retire("root-ca")
    assert await roots.retire("root-ca") == ["root-ca-by-root-2"], "the list is signed by the same command"
    with pytest.raises(ConfigurationError, match="there is no root 'root-ca' to retire"):
        await roots.retire("root-ca")
    bundle = x509.load_pem_x509_certificates(fleet_cas.life.files.bundle.read_bytes())
    assert read_certificate(fleet_cas.life.files.certificate("root-ca")) not in bundle


async def test_of_two_roots_with_passphrases_of_their_own_each_ends_a_stolen_one_when_its_key_can_be_opened(
    fleet_cas: Ceremonies,
) -> None:
    roots = RootLife(fleet_cas.life)
    await roots.begin()
    await roots.begin(another=True)
    of_the_vault = key_to_pem(roots.life.places.open("root-3"), b"of the vault")
    fleet_cas.life.files.key("root-3").write_bytes(of_the_vault)
    fleet_cas.clock.advance(_LATER)
    with pytest.raises(ConfigurationError, match=r"root-3 vouches for .* root-2 is retired all the same, but keep"):
        await roots.retire("root-2", apart=True)
    vaults = roots.life.settings.model_copy(update={"passphrase": SecretStr("of the vault")})
    again = RootLife(replace(roots.life, settings=vaults))

    def owed(connection: Connection) -> list[str]:
        found = authority_findings(connection, fleet_cas.settings, fleet_cas.clock())
        return [each.detail for each in found if "root-2 is retired, and no CRL of root-3 ends" in each.detail]

    assert len(await fleet_cas.database.read(owed)) == 1
    assert await again.retire("root-2", apart=True) == ["root-2-by-root-3"]
    assert await fleet_cas.database.read(owed) == []


async def test_a_root_whose_files_cannot_be_written_is_retired_with_a_list_that_says_so(
    fleet_cas: Ceremonies, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = await succeeded_root(fleet_cas)

    async def full(_life: AuthorityLife, _new: str | None = None) -> None:
        raise ConfigurationError("no room for files")

    monkeypatch.setattr(AuthorityLife, "write_files", full)
    with pytest.raises(ConfigurationError, match="no room for files"):
        await roots.retire("root-ca")
    published = await fleet_cas.database.read(lambda connection: crls.newest(connection, "root-2"))
    assert published is not None
    assert published.entries == 1


async def test_what_no_trusted_root_has_signed_as_a_ca_s_is_not_announced(fleet_cas: Ceremonies) -> None:
    life = fleet_cas.life
    await RootLife(life).begin()
    assert await fleet_cas.successor() == "issuing-2"
    fleet_cas.clock.advance(fleet_cas.settings.operator_life)
    await life.retire()
    await RootLife(life).retire("root-ca")
    request = read_issuing_ca_csr(await NextAuthority(life).export_csr())
    before = await fleet_cas.states()
    known = {each.name: each.certificate for each in await life.every()}
    retired = CertificateAuthority(known["root-ca"], life.places.open("root-ca"))
    signed = sign_issuing_ca(retired, request, 7 << 100, fleet_cas.clock())
    with pytest.raises(ConfigurationError, match=r"^no root of this fleet has issued it"):
        await NextAuthority(life).announce(signed.public_bytes(Encoding.PEM))
    now = fleet_cas.clock()
    builder = x509.CertificateBuilder(known["root-2"].subject, request.subject, request.public_key, 8 << 100)
    of_no_ca = builder.not_valid_before(now).not_valid_after(now + timedelta(days=1))
    signed = of_no_ca.sign(life.places.open("root-2"), hashes.SHA256())
    with pytest.raises(ConfigurationError, match="CA"):
        await NextAuthority(life).announce(signed.public_bytes(Encoding.PEM))
    assert await fleet_cas.states() == before


@pytest.mark.parametrize("what", ["issuing CA", "root"])
async def test_a_certificate_that_cannot_be_written_is_said_and_written_by_the_next_step(
    fleet_cas: Ceremonies, what: str
) -> None:
    begin = NextAuthority(fleet_cas.life).begin if what == "issuing CA" else RootLife(fleet_cas.life).begin
    name = "issuing-2" if what == "issuing CA" else "root-2"
    files = fleet_cas.life.files
    path = files.certificate(name)
    path.mkdir()  # Nothing takes its place.
    with pytest.raises(ConfigurationError, match=rf"^{path} cannot be written: Is a directory\. What was done"):
        await begin()
    states, known = await fleet_cas.states(), {each.name: each for each in await fleet_cas.life.every()}
    assert states[name] == ("announced" if what == "issuing CA" else "active")
    new = known[name].certificate.public_bytes(Encoding.PEM)
    assert new in files.bundle.read_bytes(), "whatever can be written is"
    assert list(files.directory.glob(".*")) == [], "and no draft is left"
    path.rmdir()
    assert (await begin(another=True)).endswith("-3")
    assert path.read_bytes() == new


async def test_an_operator_whose_files_cannot_be_written_is_told_so_and_no_key_is_left(fleet_cas: Ceremonies) -> None:
    files = fleet_cas.life.files
    path = files.certificate("operator")
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigurationError, match=rf"operator\.key or {path} cannot be written: Is a directory$"):
        await restore_operator(fleet_cas.life, "admin")
    assert list(files.directory.glob(".*")) == []
    path.rmdir()
    await restore_operator(fleet_cas.life, "admin")
    assert read_certificate(path).public_key() == load_key(files.key("operator")).public_key()


async def test_a_root_that_is_recorded_keeps_its_key_although_its_ceremony_was_cancelled(fleet_cas: Ceremonies) -> None:
    """Ctrl-C, say, while the transaction is under way that records it: it is committed nevertheless."""
    life, loop = fleet_cas.life, asyncio.get_running_loop()
    begun, cancelled = asyncio.Event(), threading.Event()

    def clock() -> datetime:
        if sys._getframe(2).f_code.co_name == "_record":  # In the store's thread.
            loop.call_soon_threadsafe(begun.set)
            cancelled.wait()
        return fleet_cas.clock()

    ceremony = asyncio.create_task(RootLife(replace(life, clock=clock)).begin())
    await begun.wait()
    ceremony.cancel()
    cancelled.set()
    with pytest.raises(asyncio.CancelledError):
        await ceremony
    assert (await fleet_cas.states())["root-2"] == "active"
    root = next(each for each in await life.every() if each.name == "root-2")
    assert life.places.open("root-2").public_key() == root.certificate.public_key()
    assert await NextAuthority(life).begin() == "issuing-2", "signed by it"


async def test_a_root_that_is_about_to_be_committed_keeps_its_key_though_nobody_waits_any_more(
    fleet_cas: Ceremonies,
) -> None:
    """Ctrl-C twice: the second ends the wait for the transaction, of which a reader sees nothing yet."""
    life, loop = fleet_cas.life, asyncio.get_running_loop()
    begun, go_on = asyncio.Event(), threading.Event()

    def clock() -> datetime:
        if sys._getframe(2).f_code.co_name == "_record":  # In the store's thread.
            loop.call_soon_threadsafe(begun.set)
            go_on.wait()
        return fleet_cas.clock()

    ceremony = asyncio.create_task(RootLife(replace(life, clock=clock)).begin())
    await begun.wait()
    for _ in range(2):
        ceremony.cancel()
        await asyncio.sleep(0)
    await asyncio.wait([ceremony], timeout=0.5)  # Whoever asked a reader would have been answered, and have ended.
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await ceremony
    await fleet_cas.database.write(lambda _: None)  # Behind it.
    assert (await fleet_cas.states())["root-2"] == "active"
    root = next(each for each in await life.every() if each.name == "root-2")
    assert life.places.open("root-2").public_key() == root.certificate.public_key()


async def test_a_root_that_is_not_recorded_leaves_no_key(fleet_cas: Ceremonies) -> None:
    def taken(connection: Connection) -> None:
        root = authorities.every(connection)[0].certificate
        cross = AuthorityKind.CROSS, AuthorityState.ACTIVE
        authorities.add(connection, "root-2-by-root-ca", *cross, root, fleet_cas.clock())

    await fleet_cas.database.write(taken)
    with pytest.raises(ConfigurationError, match="by another command at the same time"):
        await RootLife(fleet_cas.life).begin()
    assert not fleet_cas.life.files.key("root-2").exists()
