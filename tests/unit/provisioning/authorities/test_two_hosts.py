"""Ceremonies of two hosts on one store: what one does to a root, the other sees before it announces anything."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy.engine import Connection

from provisioning.authorities.authority_revocation import AuthorityRevocation
from provisioning.authorities.next_authority import NextAuthority
from provisioning.authorities.operator_restoration import restore_operator
from provisioning.authorities.root_life import RootLife
from provisioning.ca.ceremony import CertificateAuthority, read_issuing_ca_csr, sign_issuing_ca
from provisioning.directory.files import OPERATOR, read_certificate
from provisioning.doctor.doctor_authorities import authority_findings
from provisioning.errors import ConfigurationError
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.signers.file import FileSigner
from provisioning.signers.signer import SignerError
from provisioning.store import audit, lacked_keys
from tests.support.ceremonies import Ceremonies

_LATER = timedelta(seconds=2)
"""A list of the same second would be waited for."""
_MEANWHILE = {
    "rollover": (r"root that has issued the certificate of issuing-2 was retired meanwhile", "retire"),
    "import": (r"root that has issued the certificate of issuing-2 was retired meanwhile", "retire"),
    "begin": (r"root-2 was retired meanwhile, by another command", "retire"),
    "retire": (r"another root vouches for root-2 since this was begun: run it again", "begin"),
}


@pytest.mark.parametrize("step", _MEANWHILE)
async def test_what_another_host_does_to_a_root_meanwhile_is_seen(
    fleet_cas: Ceremonies, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Else a CA is announced, or a root vouched for, whose key was retired; or is believed by a list nobody signed."""
    roots, database = RootLife(fleet_cas.life), fleet_cas.database
    assert await roots.begin() == "root-2"
    fleet_cas.clock.advance(_LATER)
    pem = b"" if step != "import" else await issued_elsewhere(fleet_cas, "root-2")
    refused, by = _MEANWHILE[step]
    write = database.write

    async def overtaken(work: Callable[[Connection], object], *rest: object, **how: object) -> object:
        monkeypatch.setattr(database, "write", write)
        if by == "retire":
            await roots.retire("root-2")
        else:
            assert await roots.begin(another=True) == "root-3"
        return await write(work, *rest, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(database, "write", overtaken)
    following = NextAuthority(fleet_cas.life)
    steps: dict[str, Callable[[], Awaitable[object]]] = {
        "rollover": following.begin,
        "import": partial(following.announce, pem),
        "begin": partial(roots.begin, another=True),
        "retire": partial(roots.retire, "root-2", apart=True),
    }
    with pytest.raises(ConfigurationError, match=refused):
        await steps[step]()
    states = await fleet_cas.states()
    assert "issuing-2" not in states
    assert ("root-3" in states) is (by == "begin")
    assert states["root-2"] == ("retired" if by == "retire" else "active")
    if by == "begin":
        fleet_cas.clock.advance(_LATER)
        assert {"root-2-by-root-ca", "root-2-by-root-3"} <= {*await roots.retire("root-2", apart=True)}
    fleet_cas.clock.advance(_LATER)
    assert await following.begin() == "issuing-2", "under the root that stays, with the key that waits, if one does"


async def test_a_root_that_was_retired_is_not_announced_again_as_anothers(fleet_cas: Ceremonies) -> None:
    """Whoever imports what it has signed before is told to give the root's certificate, and has it."""
    roots = RootLife(fleet_cas.life)
    await roots.begin()
    pem = await issued_elsewhere(fleet_cas, "root-2")
    root = (fleet_cas.settings.directory / "root-2.crt").read_bytes()
    fleet_cas.clock.advance(_LATER)
    await roots.retire("root-2")
    with pytest.raises(
        ConfigurationError, match="root that has issued it is root-2, which is retired: whoever has its key"
    ):
        await NextAuthority(fleet_cas.life).announce(pem, root)
    assert "root-3" not in await fleet_cas.states()


@pytest.mark.parametrize("requested", [False, True])
async def test_two_hosts_that_make_the_next_ca_at_once(
    fleet_cas: Ceremonies, monkeypatch: pytest.MonkeyPatch, *, requested: bool
) -> None:
    """One is announced. The other's key is no CA's, and where that one's has to be copied to."""
    here, database = fleet_cas.life, fleet_cas.database
    other = other_directory(fleet_cas)
    there = NextAuthority(replace(here, settings=here.settings.model_copy(update={"directory": other})))
    key = here.places.path("issuing-2")
    if requested:
        pem = await issued_elsewhere(fleet_cas, "root-ca")
        await there.begin()
        with pytest.raises(ConfigurationError, match=r"issuing-2 was announced from another machine.*issuing-2\.key"):
            await NextAuthority(here).announce(pem)
        (detail,) = await told(fleet_cas)
        assert detail.startswith(f"issuing-2 is announced, and its key is not the one in {key}: another CA of")
        key.unlink()
    else:
        write = database.write

        async def overtaken(work: Callable[[Connection], object], *rest: object, **how: object) -> object:
            if key.exists() and "issuing-2" not in await fleet_cas.states():
                monkeypatch.setattr(database, "write", write)
                await there.begin()
            return await write(work, *rest, **how)  # type: ignore[arg-type]

        monkeypatch.setattr(database, "write", overtaken)
        with pytest.raises(ConfigurationError, match="issuing-2 was announced by another command"):
            await NextAuthority(here).begin()
        assert not key.exists()
        entries = await database.read(lambda connection: audit.entries(connection, 0, 100))
        assert (entries[-1].action, entries[-1].subject) == ("CA key deleted", "issuing-2")
    assert [each.split(":")[0] for each in await told(fleet_cas)] == ["issuing-2 is announced, and its key is not here"]
    shutil.copy(other / key.name, key)
    assert not await told(fleet_cas)


@pytest.mark.parametrize("stays", [False, True])
async def test_two_hosts_that_make_the_next_root_at_once(
    fleet_cas: Ceremonies, monkeypatch: pytest.MonkeyPatch, *, stays: bool
) -> None:
    """A key that cannot be deleted hides neither what has happened nor itself."""
    here, database = fleet_cas.life, fleet_cas.database
    there = replace(here, settings=here.settings.model_copy(update={"directory": other_directory(fleet_cas)}))
    key, write = here.places.path("root-2"), database.write

    async def overtaken(work: Callable[[Connection], object], *rest: object, **how: object) -> object:
        if key.exists():
            monkeypatch.setattr(database, "write", write)
            await RootLife(there).begin()
        return await write(work, *rest, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(database, "write", overtaken)
    if stays:
        monkeypatch.setattr(FileSigner, "discard", cannot_delete)
    with pytest.raises(ConfigurationError, match="root-2 was made by another command"):
        await RootLife(here).begin()
    assert key.exists() is stays
    if stays:
        remedy = "Operation not permitted: delete it, or move it away"
        assert fleet_cas.shown[-1] == f"the unused key of root-2 cannot be deleted: {remedy}"
        entries = await database.read(lambda connection: list(audit.entries(connection, 0, 100)))
        assert "CA key deleted" not in {each.action for each in entries}
        return
    shutil.copy(here.places.path("root-ca"), key)
    (detail,) = await told(fleet_cas)
    assert detail.startswith(f"the key of root-2 is not the one in {key}")
    shutil.copy(there.places.path("root-2"), key)
    assert not await told(fleet_cas)


async def test_a_ca_whose_key_a_service_lacks_is_not_activated(
    fleet_cas: Ceremonies, monkeypatch: pytest.MonkeyPatch
) -> None:
    await NextAuthority(fleet_cas.life).begin()
    key = fleet_cas.life.places.path("issuing-2")
    with pytest.MonkeyPatch.context() as away:
        away.setattr(platform, "node", lambda: "ca-1")
        key.rename(key.with_name("away"))
        with pytest.raises(ConfigurationError, match=r"a service at ca-1 cannot use the key of issuing-2"):
            await fleet_cas.life.activate(waiting=False)
    key.with_name("away").rename(key)
    monkeypatch.setattr(lacked_keys, "lacking", lambda *_: ["192.0.2.7", "192.0.2.9"])
    with pytest.raises(ConfigurationError, match=r"at 192\.0\.2\.7 and at 192\.0\.2\.9 .*copy issuing-2\.key"):
        await fleet_cas.life.activate(waiting=False)
    assert (await fleet_cas.states())["issuing-2"] == "announced"
    activated = await fleet_cas.life.activate(waiting=False, despite_services=True)
    assert (await fleet_cas.states())["issuing-2"] == "active"
    assert list(activated.lacking) == ["192.0.2.7", "192.0.2.9"], "it is told all the same, and is in the audit log"
    entries = await fleet_cas.database.read(lambda connection: list(audit.entries(connection, 0, 100)))
    assert json.loads(entries[-1].details) == {"state": "active", "services_without_key": activated.lacking}


async def test_services_are_asked_about_a_key_when_they_have_had_the_time_to_look_for_it(
    fleet_cas: Ceremonies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it is activated while nobody has said anything: as it is new by another clock, or the server restarted."""
    await NextAuthority(fleet_cas.life).begin()
    fleet_cas.clock.advance(timedelta(days=2))
    monkeypatch.setattr(lacked_keys, "said_in", lambda *_: 0.01)
    waiting = "Waiting 1 s: services on other machines say by then whether they lack the key of issuing-2."

    def lacking(*_: object) -> list[str]:
        return ["192.0.2.7"] if fleet_cas.shown[-1] == waiting else []

    monkeypatch.setattr(lacked_keys, "lacking", lacking)
    with pytest.raises(ConfigurationError, match=r"a service at 192\.0\.2\.7 cannot use the key of issuing-2"):
        await fleet_cas.life.activate(waiting=False)
    assert (await fleet_cas.states())["issuing-2"] == "announced"
    fleet_cas.shown.append("")
    await fleet_cas.life.activate(waiting=False, despite_services=True)
    assert fleet_cas.shown[-1] == "", "nobody is waited for"


async def test_a_ca_that_is_activated_while_it_is_being_revoked_is_not_revoked(
    fleet_cas: Ceremonies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nothing issues any more, neither for devices nor for whoever has to repair it."""
    await NextAuthority(fleet_cas.life).begin()
    write = fleet_cas.database.write

    async def overtaken(work: Callable[[Connection], object], *rest: object, **how: object) -> object:
        monkeypatch.setattr(fleet_cas.database, "write", write)
        await fleet_cas.life.activate(waiting=False)
        return await write(work, *rest, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(fleet_cas.database, "write", overtaken)
    with pytest.raises(ConfigurationError, match="issuing-2 is active"):
        await AuthorityRevocation(fleet_cas.life).begin("issuing-2", RevocationReason.SUPERSEDED)
    assert (await fleet_cas.states())["issuing-2"] == "active"


@pytest.mark.parametrize("signed", [False, True])
async def test_no_operator_is_certified_by_a_ca_that_is_revoked_meanwhile(
    fleet_cas: Ceremonies, monkeypatch: pytest.MonkeyPatch, *, signed: bool
) -> None:
    """What a revoked CA has issued is listed once: this would be on no list."""
    await NextAuthority(fleet_cas.life).begin()
    held = fleet_cas.life.files.certificate(OPERATOR).read_bytes()
    write, left = fleet_cas.database.write, 2 if signed else 1

    async def overtaken(work: Callable[[Connection], object], *rest: object, **how: object) -> object:
        nonlocal left
        left -= getattr(work, "__name__", "") in {"announce", "record"}
        if not left:
            monkeypatch.setattr(fleet_cas.database, "write", write)
            await fleet_cas.life.activate(waiting=False)
            revocation = AuthorityRevocation(fleet_cas.life)
            await revocation.finish(await revocation.begin("issuing-ca", RevocationReason.CA_COMPROMISE))
        return await write(work, *rest, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(fleet_cas.database, "write", overtaken)
    with pytest.raises(ConfigurationError, match=r"admin has no new certificate: .* revoked or retired meanwhile"):
        await restore_operator(fleet_cas.life, "admin")
    assert fleet_cas.life.files.certificate(OPERATOR).read_bytes() == held
    await restore_operator(fleet_cas.life, "admin")
    assert fleet_cas.life.files.certificate(OPERATOR).read_bytes() != held


def cannot_delete(_signer: FileSigner) -> None:
    raise SignerError("Operation not permitted")


def other_directory(fleet_cas: Ceremonies) -> Path:
    """Return another host's copy of the directory."""
    directory = fleet_cas.settings.directory
    ignored = shutil.ignore_patterns("fleet.db*")
    return Path(shutil.copytree(directory, directory.with_name("other"), ignore=ignored))


async def told(fleet_cas: Ceremonies) -> list[str]:
    """Return what `doctor` says of the keys."""
    found = await fleet_cas.database.read(
        lambda connection: list(authority_findings(connection, fleet_cas.settings, fleet_cas.clock()))
    )
    return [each.detail for each in found if "key is " in each.detail or each.detail.startswith("the key ")]


async def issued_elsewhere(fleet_cas: Ceremonies, root: str) -> bytes:
    """Return the certificate of the next CA, as `ca root sign` makes it."""
    life = fleet_cas.life
    request = read_issuing_ca_csr(await NextAuthority(life).export_csr())
    certificate = read_certificate(life.files.certificate(root))
    authority = CertificateAuthority(certificate, life.places.open(root))
    signed = sign_issuing_ca(authority, request, 7 << 100, fleet_cas.clock())
    return signed.public_bytes(Encoding.PEM)
