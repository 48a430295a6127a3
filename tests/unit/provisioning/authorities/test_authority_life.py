"""Successors, with a clock that is moved: what waits, what is refused, and what ends."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import HttpUrl, SecretStr
from sqlalchemy import delete
from sqlalchemy.engine import Connection

from provisioning.authorities.authority import urls_of_root
from provisioning.authorities.authority_life import WAITING, AuthorityLife
from provisioning.authorities.authority_revocation import AuthorityRevocation
from provisioning.authorities.ceremony_transcript import Transcript, digest_of
from provisioning.authorities.next_authority import NextAuthority
from provisioning.authorities.root_life import RootLife
from provisioning.ca.ceremony import (
    CertificateAuthority,
    IssuingCaRequest,
    issuing_ca_name,
    read_issuing_ca_csr,
    sign_issuing_ca,
)
from provisioning.ca.issuer import Issuer
from provisioning.directory.files import AuthorityFiles
from provisioning.doctor.doctor_authorities import authority_findings
from provisioning.doctor.doctor_finding import Finding
from provisioning.enrolment.issuing import Issuing
from provisioning.errors import Code, ConfigurationError, Refused
from provisioning.pki.keys import generate_key, key_to_pem
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.revocation.reasons import AUTHORITY_REASONS
from provisioning.signers.places import SignerPlaces
from provisioning.store import (
    audit,
    audit_findings,
    authorities,
    certificates,
    devices,
    groups,
    known_authorities,
    revocations,
    tables,
)
from provisioning.store.authorities import AuthorityState
from provisioning.store.certificates import IssuedCertificate, StoredCertificate
from provisioning.store.groups import Group
from provisioning.store.known_authorities import LATELY
from tests.support.ceremonies import Ceremonies
from tests.support.fleet import Clock


async def revoked(
    life: AuthorityLife, name: str, reason: RevocationReason, since: datetime | None = None
) -> tuple[Sequence[StoredCertificate], bool]:
    """Revoke a CA; return what it had issued, and whether the first operator has a new certificate."""
    revocation = AuthorityRevocation(life)
    begun = await revocation.begin(name, reason, since)
    renewed = await revocation.renew_operator(begun)
    return await revocation.finish(begun), renewed


async def test_relying_parties_are_given_a_day(fleet_cas: Ceremonies) -> None:
    assert await NextAuthority(fleet_cas.life).begin() == "issuing-2"
    with pytest.raises(ConfigurationError, match=r"until 2027-03-02 12:00 UTC to fetch the bundle, or say --without"):
        await fleet_cas.life.activate()
    fleet_cas.clock.advance(WAITING)
    assert (await fleet_cas.life.activate()).name == "issuing-2"
    assert await fleet_cas.states() == {"issuing-2": "active", "issuing-ca": "retiring", "root-ca": "active"}


async def test_no_key_is_made_by_a_passphrase_that_does_not_open_the_others(fleet_cas: Ceremonies) -> None:
    settings = fleet_cas.settings.model_copy(update={"passphrase": SecretStr("wrong")})
    mistyped = NextAuthority(replace(fleet_cas.life, settings=settings))
    for ceremony in (mistyped.begin, mistyped.export_csr):
        with pytest.raises(ConfigurationError, match=r"^the key of .*passphrase"):
            await ceremony()
    assert fleet_cas.shown == [], "a refusal is one line"
    (left := AuthorityFiles(settings.directory).key("issuing-2")).write_text("of another passphrase")
    with pytest.raises(
        ConfigurationError, match=r"that is not here yet: .* move issuing-2.key away, and another is made$"
    ):
        await NextAuthority(fleet_cas.life).begin()
    assert fleet_cas.shown == []
    left.unlink()
    vaults = fleet_cas.life.settings.model_copy(update={"passphrase": SecretStr("of the vault")})
    root, of_root = AuthorityFiles(settings.directory).key("root-ca"), fleet_cas.life.places.open("root-ca")
    ours = root.read_bytes()
    root.write_bytes(key_to_pem(of_root, b"of the vault"))
    with_it = replace(fleet_cas.life, settings=vaults)
    with pytest.raises(ConfigurationError, match=r"^the key of issuing-ca: .*lost, move issuing-ca.key away; if"):
        await NextAuthority(with_it).begin()
    root.write_bytes(ours)
    assert await NextAuthority(fleet_cas.life).begin() == "issuing-2", "with the right one it goes on"
    assert fleet_cas.shown[0] == "Ceremony: a test"


async def test_a_successor_is_made_though_the_key_that_it_replaces_is_lost(fleet_cas: Ceremonies) -> None:
    """A stolen token: export-csr wanted to open what was in it, and ca revoke wanted a successor first."""
    files = AuthorityFiles(fleet_cas.settings.directory)
    files.key("issuing-ca").unlink()
    files.token_key("issuing-ca").write_text("pkcs11:token=gone;object=it?module-path=/nowhere.so")
    settings = fleet_cas.settings.model_copy(update={"passphrase": SecretStr("wrong")})
    with pytest.raises(
        ConfigurationError, match=r"^the key of root-ca: .*; if that key is lost, move root-ca.key away$"
    ):
        await NextAuthority(replace(fleet_cas.life, settings=settings)).export_csr()
    files.key("root-ca").unlink()
    read_issuing_ca_csr(await NextAuthority(fleet_cas.life).export_csr())


async def test_a_ca_that_the_store_has_lost_is_not_made_again_with_the_same_key(fleet_cas: Ceremonies) -> None:
    """After a recovery to before it was announced, and revoked: its key was taken for one that waits."""
    files, following = AuthorityFiles(fleet_cas.settings.directory), NextAuthority(fleet_cas.life)
    await following.begin()
    lost = delete(tables.authorities).where(tables.authorities.c.name == "issuing-2")
    await fleet_cas.database.write(lambda connection: connection.execute(lost))
    for begin in (following.begin, following.export_csr):
        with pytest.raises(ConfigurationError, match=r"has a certificate here, .*issuing-2\.crt, which the store does"):
            await begin()
    assert "issuing-2.crt announces it" in str(await doctor_says(fleet_cas))
    certificate = files.certificate("issuing-2").read_bytes()
    assert await following.announce(certificate) == "issuing-2"
    assert files.certificate("issuing-2").read_bytes() == certificate
    assert await doctor_says(fleet_cas) == []


async def doctor_says(fleet_cas: Ceremonies) -> list[Finding]:
    """Return what the doctor finds wrong with the CAs."""
    settings, now = fleet_cas.settings, fleet_cas.clock()
    found = await fleet_cas.database.read(lambda connection: list(authority_findings(connection, settings, now)))
    return [each for each in found if each.remedy]


async def test_a_step_that_cannot_be_shown_is_not_taken(fleet_cas: Ceremonies) -> None:
    """With stdout closed, or on a full disk, it was taken, and failed."""

    def show(_line: str) -> None:
        raise BrokenPipeError

    life = fleet_cas.life

    def unseen() -> AuthorityLife:
        return replace(life, transcript=Transcript("a test", life.clock, show))

    async def not_taken(step: Awaitable[object]) -> None:
        before = await fleet_cas.states()
        with pytest.raises(BrokenPipeError):
            await step
        assert await fleet_cas.states() == before

    await NextAuthority(life).begin("meters")
    await not_taken(unseen().activate(waiting=False))
    await life.activate(waiting=False)
    await not_taken(unseen().end_line("meters"))
    await life.end_line("meters")
    await not_taken(unseen().retire())
    await RootLife(life).begin()
    await not_taken(RootLife(unseen()).retire("root-2"))


async def test_a_ca_retires_when_the_last_certificate_of_its_has_ended(fleet_cas: Ceremonies) -> None:
    await fleet_cas.successor()
    with pytest.raises(ConfigurationError, match=r"certificates of issuing-ca are good until 2028-02-29 12:00 UTC"):
        await fleet_cas.life.retire()
    fleet_cas.clock.advance(fleet_cas.settings.operator_life)
    assert await fleet_cas.life.retire() == "issuing-ca"
    bundle = x509.load_pem_x509_certificates(AuthorityFiles(fleet_cas.settings.directory).bundle.read_bytes())
    names = [each.subject.rfc4514_string().partition(",")[0] for each in bundle]
    assert names == ["CN=Fleetgate root CA", "CN=Fleetgate issuing CA 2"]


async def test_a_ca_whose_certificates_may_be_renewed_after_their_end_is_not_retired(fleet_cas: Ceremonies) -> None:
    life, now = fleet_cas.life, fleet_cas.clock()
    await fleet_cas.successor()
    ca, *_ = [each for each in await life.every() if each.name == "issuing-ca"]

    def enrolled(connection: Connection) -> None:
        groups.add(connection, Group("drawer", renewal_grace=timedelta(days=90)), by="admin", now=now)
        meter = devices.add(connection, "meter-1", Role.DEVICE, "drawer", now)
        ends = now + timedelta(days=365)
        certificates.add(connection, IssuedCertificate(b"", ca.key_id, 7, now, ends, b""), meter.id, now)

    await fleet_cas.database.write(enrolled)
    fleet_cas.clock.advance(fleet_cas.settings.operator_life)
    with pytest.raises(ConfigurationError, match=r"have expired and can still be renewed until 2028-05-29 12:00 UTC"):
        await life.retire()
    fleet_cas.clock.advance(timedelta(days=90))
    assert await life.retire() == "issuing-ca"


async def test_who_is_meant_is_asked_where_it_is_not_clear(fleet_cas: Ceremonies) -> None:
    with pytest.raises(ConfigurationError, match=r"no issuing CA is announced, only issuing-ca \(active\)"):
        await fleet_cas.life.activate()
    await NextAuthority(fleet_cas.life).begin()
    await NextAuthority(fleet_cas.life).begin(another=True)
    with pytest.raises(ConfigurationError, match=r"issuing-2 \(announced\), issuing-3 \(announced\): name one"):
        await fleet_cas.life.activate(waiting=False)
    assert (await fleet_cas.life.activate("issuing-3", waiting=False)).name == "issuing-3"


async def test_one_successor_waits_at_a_time_unless_another_is_asked_for(fleet_cas: Ceremonies) -> None:
    life = fleet_cas.life
    await NextAuthority(life).begin()
    waits = (
        r"line default has its next CA already, issuing-2: ca rollover activate issuing-2 has it issue, "
        r"ca revoke issuing-2 --reason superseded ends it, --another makes one more"
    )
    for again in (NextAuthority(life).begin, NextAuthority(life).export_csr):
        with pytest.raises(ConfigurationError, match=waits):
            await again()
    assert not (fleet_cas.settings.directory / "issuing-3.key").exists()
    assert await NextAuthority(life).begin("meters") == "issuing-meters-1", "another line waits for nobody"
    await revoked(life, "issuing-2", RevocationReason.SUPERSEDED)
    assert await NextAuthority(life).begin() == "issuing-3"
    await life.activate("issuing-3", waiting=False)
    assert await NextAuthority(life).begin() == "issuing-4"
    assert await NextAuthority(life).begin(another=True) == "issuing-5"


async def test_what_cannot_be_revoked_is_said_before_anything_is_done(fleet_cas: Ceremonies) -> None:
    life = fleet_cas.life
    await NextAuthority(life).begin()
    await revoked(life, "issuing-2", RevocationReason.SUPERSEDED)
    for name, words in (("nosuch", "no issuing CA 'nosuch'"), ("issuing-2", "revoked already"), ("root-ca", "no issu")):
        with pytest.raises(ConfigurationError, match=words):
            await AuthorityRevocation(life).to_revoke(name)


async def test_a_ca_that_is_revoked_or_retired_signs_nothing_from_that_commit_on(fleet_cas: Ceremonies) -> None:
    files = AuthorityFiles(fleet_cas.settings.directory)
    certificate = x509.load_pem_x509_certificate(files.certificate("issuing-ca").read_bytes())
    issuing = Issuing(Issuer(certificate, SignerPlaces(files, fleet_cas.settings).open("issuing-ca")))
    await fleet_cas.successor()
    await fleet_cas.database.read(issuing.check)  # A process that has not heard yet may end what it began.
    await AuthorityRevocation(fleet_cas.life).begin("issuing-ca", RevocationReason.CA_COMPROMISE)
    with pytest.raises(Refused) as caught:
        await fleet_cas.database.read(issuing.check)
    assert caught.value.code is Code.UNAVAILABLE


async def test_a_revoked_ca_is_first_in_the_feed_and_its_certificates_follow(fleet_cas: Ceremonies) -> None:
    await fleet_cas.successor()
    since = fleet_cas.clock() - timedelta(days=1)
    affected, renewed = await revoked(fleet_cas.life, "issuing-ca", RevocationReason.SUPERSEDED, since)
    assert {each.device.name for each in affected} == {"admin", "provisioning"}
    events = await fleet_cas.database.read(lambda connection: revocations.after(connection, 0, 100))
    assert events[0].device == "ca:issuing-ca"
    (ca,) = [each for each in await fleet_cas.life.every() if each.name == "issuing-ca"]
    assert [each.authority_key for each in events] == [ca.key_id.hex(), *[None] * len(events[1:])]
    assert await fleet_cas.database.read(devices.count) == {
        "active": 2, "suspended": 0, "revoked": 1, "decommissioned": 0
    }  # fmt: skip
    assert {each.invalidity_date for each in events} == {since.replace(microsecond=0)}
    assert [each.sequence for each in events] == list(range(1, len(events) + 1))
    assert renewed
    operator = AuthorityFiles(fleet_cas.settings.directory).certificate("operator")
    assert "issuing CA 2" in x509.load_pem_x509_certificate(operator.read_bytes()).issuer.rfc4514_string()


_OF_CAS_ALONE = (RevocationReason.CA_COMPROMISE, RevocationReason.SUPERSEDED)


@pytest.mark.parametrize(
    ("reason", "below"),
    [
        *((each, RevocationReason.UNSPECIFIED) for each in _OF_CAS_ALONE),
        *((each, each) for each in AUTHORITY_REASONS if each not in _OF_CAS_ALONE),
    ],
    ids=str,
)
async def test_what_is_said_of_a_ca_only_is_not_said_of_what_it_has_issued(
    fleet_cas: Ceremonies, reason: RevocationReason, below: RevocationReason
) -> None:
    await fleet_cas.successor()
    now, ends = fleet_cas.clock(), fleet_cas.clock() + timedelta(days=1)
    ca = next(each for each in await fleet_cas.life.every() if each.name == "issuing-ca")

    def held(connection: Connection) -> None:
        meter = devices.add(connection, "meter-1", Role.DEVICE, "drawer", now)
        on_hold = certificates.add(connection, IssuedCertificate(b"", ca.key_id, 7, now, ends, b""), meter.id, now)
        hold = RevocationReason.CERTIFICATE_HOLD
        revocations.add(connection, [on_hold], reason=hold, revoked_at=now, revoked_by="admin")

    await fleet_cas.database.write(held)
    affected, _ = await revoked(fleet_cas.life, ca.name, reason)
    assert len(affected) == 3, "one on hold, and two fresh"
    _, *events = await fleet_cas.database.read(lambda connection: revocations.after(connection, 0, 100))
    assert (events[0].device, events[0].reason) == (f"ca:{ca.name}", reason)
    assert [each.reason for each in events[1:]] == [below] * 3, "the feed"
    since = datetime(2020, 1, 1, tzinfo=UTC)
    entries = await fleet_cas.database.read(lambda connection: revocations.listed(connection, ca.key_id, None, since))
    assert [each.reason for each in entries] == [below] * 3, "the CRL"
    for each in affected:
        key, serial = each.issuer_key_id, each.serial
        _, said = await fleet_cas.database.read(partial(certificates.revocation_of, issuer_key_id=key, serial=serial))
        assert said is not None
        assert said[1] is below, "OCSP"


async def test_a_weak_key_or_another_s_certificate_is_not_announced(fleet_cas: Ceremonies) -> None:
    life, settings = fleet_cas.life, fleet_cas.settings
    await NextAuthority(life).export_csr()
    root_key = SignerPlaces(AuthorityFiles(settings.directory), settings).open("root-ca")
    root = x509.load_pem_x509_certificate((settings.directory / "root-ca.crt").read_bytes())

    stranger = sign_issuing_ca(
        CertificateAuthority(root, root_key),
        IssuingCaRequest(issuing_ca_name("fleet.internal", 9), generate_key().public_key()),
        7 << 100,
        fleet_cas.clock(),
    )
    with pytest.raises(ConfigurationError, match="no key waits for this certificate"):
        await NextAuthority(life).announce(stranger.public_bytes(Encoding.PEM))
    with pytest.raises(ConfigurationError, match="is no PEM certificate"):
        await NextAuthority(life).announce(b"nonsense")


async def test_a_certificate_that_was_taken_over_is_told_so_when_it_comes_again(fleet_cas: Ceremonies) -> None:
    life, settings = fleet_cas.life, fleet_cas.settings
    request = read_issuing_ca_csr(await NextAuthority(life).export_csr())
    root = x509.load_pem_x509_certificate((settings.directory / "root-ca.crt").read_bytes())
    authority = CertificateAuthority(root, SignerPlaces(AuthorityFiles(settings.directory), settings).open("root-ca"))
    first, second = (
        sign_issuing_ca(authority, request, serial << 100, fleet_cas.clock()).public_bytes(Encoding.PEM)
        for serial in (7, 8)
    )
    assert await NextAuthority(life).announce(first) == "issuing-2"
    before = await fleet_cas.states()
    again = (
        "this is the certificate of issuing-2, which is announced already: ca rollover activate issuing-2 has it issue"
    )
    for pem, words in (
        (first, f"^{again}$"),
        (
            second,
            r"^issuing-2 \(announced\) has another certificate of the same key, .*: make the next CA with ca export",
        ),
        (root.public_bytes(Encoding.PEM), "^this is the certificate of root-ca, which is active already$"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            await NextAuthority(life).announce(pem)
    assert await fleet_cas.states() == before


def test_a_transcript_that_is_shown_no_more_goes_on_and_that_is_raised_at_the_end() -> None:
    shown: list[str] = []

    def show(line: str) -> None:
        if len(shown) >= most:
            raise BrokenPipeError(32, "Broken pipe")
        shown.append(line)

    most = 3
    with pytest.raises(BrokenPipeError):  # Before anything is done.
        Transcript("a test", Clock(), show).begin()
    most, shown = 5, []
    transcript = Transcript("a test", Clock(), show)
    assert shown == [], "a refusal is one line"
    transcript.begin()
    for line in ("one", "two", "three"):
        transcript.say(line)
    assert transcript.text.decode().splitlines()[-3:] == ["one", "two", "three"]
    assert shown[-1] == "one"
    with pytest.raises(BrokenPipeError):
        transcript.check_shown()


async def test_a_ca_whose_making_is_shown_to_its_head_alone_is_announced(fleet_cas: Ceremonies) -> None:
    """`ca rollover begin | head -3` made the key, and then neither certificate nor transcript."""
    shown: list[str] = []

    def show(line: str) -> None:
        if len(shown) == 4:
            raise BrokenPipeError(32, "Broken pipe")
        shown.append(line)

    transcript = Transcript("a test", fleet_cas.clock, show)
    assert await NextAuthority(replace(fleet_cas.life, transcript=transcript)).begin() == "issuing-2"
    assert shown[0] == "Ceremony: a test"
    assert "Issuing CA issuing-2:" in transcript.text.decode()
    with pytest.raises(BrokenPipeError):
        transcript.check_shown()


def test_a_witness_writes_no_line_of_his_own() -> None:
    shown: list[str] = []
    transcript = Transcript("a test", Clock(), shown.append, ["A. Auditor\nWitness: B. Nobody \x1b[2K"])
    transcript.say("done")
    assert r"Witness: A. Auditor\nWitness: B. Nobody \x1b[2K" in shown
    assert transcript.text.decode().splitlines() == shown


async def test_every_step_is_in_the_audit_log_before_and_after(fleet_cas: Ceremonies) -> None:
    await fleet_cas.successor()
    entries = await fleet_cas.database.read(lambda connection: audit.entries(connection, 0, 100))
    steps = [each.action for each in entries if each.subject == "issuing-2"]
    assert steps == ["making CA key", "CA key made", "signing CA certificate", "CA certificate signed", "CA changed"]
    assert await fleet_cas.database.read(lambda connection: list(audit_findings.findings(connection))) == []


async def test_a_transcript_has_what_was_shown(fleet_cas: Ceremonies) -> None:
    await NextAuthority(fleet_cas.life).begin()
    transcript = fleet_cas.life.transcript
    assert transcript.text.decode().splitlines() == fleet_cas.shown
    assert any("SHA-256" in line for line in fleet_cas.shown)
    path = transcript.path_in(fleet_cas.settings.directory)
    transcript.write(path)
    assert digest_of(path.read_bytes()) == transcript.digest
    with pytest.raises(ConfigurationError, match="cannot be written"):
        transcript.write(path)


def test_states_are_trusted_or_not() -> None:
    assert [state for state in AuthorityState if state.trusted] == ["announced", "active", "retiring"]


async def test_life_ends_with_the_root_s(fleet_cas: Ceremonies) -> None:
    fleet_cas.clock.advance(timedelta(days=3000))
    await NextAuthority(fleet_cas.life).begin()
    found_cas = await fleet_cas.database.read(authorities.every)
    ends = {each.name: each.certificate.not_valid_after_utc for each in found_cas}
    assert ends["issuing-2"] == ends["root-ca"]


async def test_what_tells_a_ca_apart_is_no_other_ca_s(fleet_cas: Ceremonies) -> None:
    """Its serial number, by which its root revokes it, its name, by which its lists are looked for, its root's list."""
    life, settings = fleet_cas.life, fleet_cas.settings
    request = read_issuing_ca_csr(await NextAuthority(life).export_csr())
    root, issuing = (
        x509.load_pem_x509_certificate((settings.directory / name).read_bytes())
        for name in ("root-ca.crt", "issuing-ca.crt")
    )
    authority = CertificateAuthority(root, SignerPlaces(AuthorityFiles(settings.directory), settings).open("root-ca"))
    address = {"public_http_url": HttpUrl("http://ca.example.org:8080")}
    life = replace(life, settings=settings.model_copy(update=address))
    right, of_another, of_itself = (
        urls_of_root(life.settings, each) for each in ("root-ca", "issuing-ca", "issuing-2")
    )
    for wanted, serial, urls, words in (
        (request, issuing.serial_number, None, "it has the serial number of issuing-ca, under the same issuer"),
        (replace(request, subject=issuing.subject), 7 << 100, None, "it has the name of issuing-ca, by which"),
        (request, 7 << 100, of_another, "the CRL to look in, which is that of issuing-ca and not of its issuer"),
        (request, 7 << 100, of_itself, "the CRL to look in, which is that of issuing-2 and not of its issuer"),
    ):
        pem = sign_issuing_ca(authority, wanted, serial, fleet_cas.clock(), urls).public_bytes(Encoding.PEM)
        with pytest.raises(ConfigurationError, match=words):
            await NextAuthority(life).announce(pem)
    accepted = sign_issuing_ca(authority, request, 7 << 100, fleet_cas.clock(), right)
    assert await NextAuthority(life).announce(accepted.public_bytes(Encoding.PEM)) == "issuing-2"


async def test_no_ca_is_activated_that_a_broker_would_not_believe(fleet_cas: Ceremonies) -> None:
    async def says(name: str, known: dict[str, bool]) -> None:
        now = fleet_cas.clock()

        def transaction(connection: Connection) -> None:
            broker = devices.find(connection, name) or devices.add(connection, name, Role.BROKER, None, now)
            known_authorities.record(connection, broker.id, known, now)

        await fleet_cas.database.write(transaction)

    await NextAuthority(fleet_cas.life).begin()
    fleet_cas.clock.advance(WAITING)
    await says("broker-1", {"issuing-ca": True, "issuing-2": False})
    await says("broker-2", {"issuing-ca": True})
    refusal = r"under issuing-2 would be refused by broker-1 \(2027-03-02 12:00 UTC\), which said so.*--despite-brokers"
    with pytest.raises(ConfigurationError, match=refusal):
        await fleet_cas.life.activate()
    assert (await fleet_cas.states())["issuing-2"] == "announced"
    with pytest.raises(ConfigurationError, match=refusal):
        await fleet_cas.life.activate(waiting=False)

    fleet_cas.clock.advance(LATELY + timedelta(seconds=1))
    activated = await fleet_cas.life.activate()
    assert activated.name == "issuing-2", "who was not heard of for a week may be gone"
    assert [(each.broker, each.known) for each in activated.doubts] == [("broker-1", False), ("broker-2", None)]

    await NextAuthority(fleet_cas.life).begin()
    await says("broker-1", {"issuing-3": False})
    with pytest.raises(ConfigurationError, match=r"would be refused by broker-1"):
        await fleet_cas.life.activate(waiting=False)
    assert (await fleet_cas.life.activate(waiting=False, despite_brokers=True)).name == "issuing-3"
    await NextAuthority(fleet_cas.life).begin()
    await says("broker-1", {"issuing-4": True})
    assert (await fleet_cas.life.activate(waiting=False)).doubts[0].broker == "broker-2"
