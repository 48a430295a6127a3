"""How lines and their CAs are called, which root signs, and what a line may not do."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from provisioning.authorities.authority import found
from provisioning.authorities.authority_life import AuthorityLife, EndedLine
from provisioning.authorities.ceremony_transcript import Transcript
from provisioning.authorities.issuing_lines import check_line, line_of, next_name
from provisioning.authorities.next_authority import NextAuthority
from provisioning.authorities.operator_restoration import restore_operator
from provisioning.ca.ceremony import CertificateAuthority, found_authority, read_issuing_ca_csr, sign_issuing_ca
from provisioning.config import Settings
from provisioning.directory.audit_key import read_audit_key
from provisioning.directory.files import AuthorityFiles, read_certificate
from provisioning.errors import ConfigurationError
from provisioning.pki.issued_by import is_issued_by
from provisioning.pki.keys import generate_key
from provisioning.store import audit, authorities, groups
from provisioning.store.crl_shards import shard_name
from provisioning.store.database import Database
from provisioning.store.groups import Group
from tests.support.ceremonies import Ceremonies
from tests.support.fleet import Clock


@pytest.mark.parametrize("line", ["", "ca", "2", "Meters", "a-2", "a_b", "é", "x" * 25, "a\n", " a"])
def test_a_line_that_could_be_mistaken_is_refused(line: str) -> None:
    with pytest.raises(ConfigurationError, match="use a lower-case letter and up to 23"):
        check_line(line)


@pytest.mark.parametrize("line", ["default", "meters", "a2", "x" * 24])
def test_a_ca_s_name_says_its_line_and_is_no_shard_of_another(line: str) -> None:
    taken: list[str] = ["issuing-ca"]
    for _ in range(12):
        name, number = next_name(check_line(line), taken)
        assert name.endswith(f"-{number}")
        assert line_of(name) == line
        taken.append(name)
    shards = {shard_name(each, number) for each in taken for number in range(1, 20)}
    assert not shards & set(taken)


def test_the_first_ca_is_of_the_default_line() -> None:
    assert line_of("issuing-ca") == "default"
    assert next_name("default", ["issuing-ca"]) == ("issuing-2", 2)
    assert next_name("meters", ["issuing-ca"]) == ("issuing-meters-1", 1)


async def test_a_line_whose_cas_were_announced_only_ends_as_well(fleet_cas: Ceremonies) -> None:
    """So a line can be that was ended while a successor was announced, by a version that left it."""
    life = fleet_cas.life
    await NextAuthority(life).begin("meters")
    await NextAuthority(life).begin("meters", another=True)
    assert await life.end_line("meters") == EndedLine(None, ["issuing-meters-1", "issuing-meters-2"])
    assert await fleet_cas.states() == {
        "root-ca": "active", "issuing-ca": "active", "issuing-meters-1": "retired", "issuing-meters-2": "retired"
    }  # fmt: skip
    assert len(x509.load_pem_x509_certificates(life.files.bundle.read_bytes())) == 2
    with pytest.raises(ConfigurationError, match="no issuing CA is active in line 'meters'"):
        await life.end_line("meters")
    assert await NextAuthority(life).begin("meters") == "issuing-meters-3", "a number is one CA's for ever"


async def test_a_line_stays_under_its_root_and_ends_when_nobody_needs_it(tmp_path: Path) -> None:
    clock = Clock()
    settings = Settings(directory=tmp_path / "fleet", passphrase="secret")  # type: ignore[arg-type]
    await found(settings, ["localhost"], clock)
    database = Database(settings.resolved_database_url, read_audit_key(AuthorityFiles(settings.directory)))
    try:
        shown: list[str] = []
        life = AuthorityLife(settings, database, clock, Transcript("a test", clock, shown.append))
        other = found_authority("other.internal", clock(), (1 << 100, 2 << 100), None, (generate_key(), generate_key()))
        request = read_issuing_ca_csr(await NextAuthority(life).export_csr("pumps"))
        signed = sign_issuing_ca(
            CertificateAuthority(other.root_ca.certificate, other.root_ca.key), request, 3 << 100, clock()
        )
        pem, root = (each.public_bytes(Encoding.PEM) for each in (signed, other.root_ca.certificate))
        assert await NextAuthority(life).announce(pem, root) == "issuing-pumps-1"
        assert (await life.activate(waiting=False)).name == "issuing-pumps-1"
        lines = await database.read(authorities.active_lines)
        assert lines == ["default", "pumps"]
        await restore_operator(life, "admin")  # By the CA that issues for the service itself, of two that issue.
        operator = read_certificate(life.files.certificate("operator"))
        assert is_issued_by(operator, read_certificate(life.files.certificate("issuing-ca")))

        # Its root is elsewhere, so its successor is signed elsewhere, or by a root that somebody names.
        with pytest.raises(
            ConfigurationError, match=r"the key of root-2 is not here.*or name another root with --root"
        ):
            await NextAuthority(life).begin("pumps")
        with pytest.raises(ConfigurationError, match="--root: there is no root 'root-9'"):
            await NextAuthority(life).begin("pumps", "root-9")
        assert await NextAuthority(life).begin("pumps", "root-ca") == "issuing-pumps-2"
        # The default line stays under its own root's succession, whatever other roots there are.
        assert await NextAuthority(life).begin() == "issuing-2"
        subjects = {each.name: each.certificate for each in await life.every()}
        founding = subjects["root-ca"].subject
        assert subjects["issuing-2"].issuer == founding == subjects["issuing-pumps-2"].issuer
        assert subjects["issuing-pumps-1"].issuer == other.root_ca.certificate.subject
        name = subjects["issuing-pumps-2"].subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value
        assert name == "Fleetgate issuing CA pumps 2"

        with pytest.raises(ConfigurationError, match="the default line cannot be ended"):
            await life.end_line("default")
        with pytest.raises(ConfigurationError, match=r"^there is no line 'valves'; besides the default: pumps$"):
            await life.end_line("valves")
        pumps = Group("pumps", issuing_line="pumps")
        await database.write(lambda connection: groups.add(connection, pumps, by="admin", now=clock()))
        with pytest.raises(ConfigurationError, match="line pumps certifies the devices of pumps: give them another"):
            await life.end_line("pumps")
        moved = Group("pumps")
        await database.write(lambda connection: groups.change(connection, moved, by="admin", now=clock()))
        assert await life.end_line("pumps") == EndedLine("issuing-pumps-1", ["issuing-pumps-2"])
        states = {each.name: each.state.value for each in await life.every()}
        assert states["issuing-pumps-2"] == "retired"
        trusted = x509.load_pem_x509_certificates(life.files.bundle.read_bytes())
        assert subjects["issuing-pumps-1"] in trusted
        assert subjects["issuing-pumps-2"] not in trusted, "nobody needs it, and whoever has its key is not believed"
        assert await database.read(authorities.active_lines) == ["default"]
        clock.advance(timedelta(days=1))
        assert await life.retire() == "issuing-pumps-1"
        entries = await database.read(lambda connection: audit.entries(connection, 0, 100))
        (new_root,) = [each for each in entries if each.subject == "root-2"]
        assert f"{other.root_ca.certificate.serial_number:x}" in new_root.details
        assert next(line for line in shown if line in {"New root:", "Issuing CA issuing-pumps-1:"}) == "New root:"
        for ca, states_of_it in (
            ("issuing-pumps-1", ["active", "retiring", "retired"]),
            ("issuing-pumps-2", ["retired"]),
        ):
            noted = [json.loads(each.details).get("state") for each in entries if each.subject == ca]
            assert [each for each in noted if each] == states_of_it
    finally:
        await database.close()
