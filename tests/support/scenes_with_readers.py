"""More scenes for `tests.support.stepped_processes`: who reads while others write, and works of several transactions.

What a process derives from the store by reading it more than once, CRLs, the feed's tail, remembered OCSP answers, is
right only if nothing falls between two readings. Scenes as in `tests.support.process_scenes`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.x509 import ocsp
from starlette.responses import JSONResponse

from provisioning.api.idempotency import AnswerBook
from provisioning.authorities.authority_life import AuthorityLife
from provisioning.authorities.ceremony_transcript import Transcript
from provisioning.ca.ceremony import CertificateAuthority
from provisioning.ca.crl import CrlIssuer
from provisioning.ca.issuer import Issuer
from provisioning.ca.profile import ProfileConfig, ProfileName, profile_of
from provisioning.config import Settings
from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.issuing import Issuing
from provisioning.enrolment.service import EnrolmentService
from provisioning.errors import Code, ConfigurationError, Refused
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation.feed import RevocationFeed
from provisioning.revocation.feed_event import FeedEvent
from provisioning.revocation.grounds import Grounds
from provisioning.revocation.ocsp import OcspResponder
from provisioning.revocation.ocsp_signer import RenewedOcspSigner
from provisioning.revocation.of_authority import revoke_authority
from provisioning.revocation.publisher import CrlPlan, CrlPublisher
from provisioning.store import authorities, conditions
from provisioning.store.authorities import AuthorityKind, AuthorityState
from provisioning.store.counters import crl_counter
from tests.support.fleet import Fleet, new_authority, successor_csr
from tests.support.ocsp import request_der
from tests.support.process_scenes import DONE, ISSUED, Found, Scene, World, enrolling, renewing, revoking
from tests.support.requests import csr_der
from tests.support.stepped_processes import Act

_SECRET: Final = b"s" * 32


def feed_and_revocations(world: World) -> Scene:
    """Two write, and a third follows: it looks three times, whenever that is."""
    names = [world.name(side) for side in ("left", "right")]
    for name in names:
        world.call(world.first.enrol(name))
    heard: list[FeedEvent] = []
    process = world.stage.processes["third"]
    feed = RevocationFeed(process.fleet.database, 60, on_new=heard.extend)
    process.call(feed.start())
    begun = feed.newest

    async def follow(_fleet: Fleet) -> None:
        for _ in range(3):
            await feed._read_new()

    def nothing_is_missed(found: Found) -> bool:
        process.call(feed._read_new())
        assert [each.sequence for each in heard] == list(range(begun + 1, begun + 3)), heard
        return set(found.values()) == {DONE}

    return Scene({"first": revoking(names[0]), "second": revoking(names[1]), "third": follow}, nothing_is_missed)


def ocsp_and_revocation(world: World) -> Scene:
    """A process is asked about a certificate that another one revokes; it hears of that in the feed, sooner or later.

    Its feed reads by a session that the stage can step by itself, that of a third process.
    """
    answering, following = (world.stage.processes[name] for name in ("second", "third"))
    fleet = answering.fleet
    certificate = world.call(world.first.enrol(world.name()))
    signer = RenewedOcspSigner(
        issuer=fleet.issuer,
        database=fleet.database,
        serial_numbers=fleet.serial_numbers,
        owner=world.name(),
        life=timedelta(days=1),
        clock=fleet.clock,
    )
    answering.call(signer.renew())
    responder = OcspResponder(fleet.database, [signer], fleet.clock, timedelta(hours=1))

    async def forget(events: Sequence[FeedEvent]) -> None:
        responder.forget_changed(events)

    feed = RevocationFeed(following.fleet.database, 60, on_new=lambda events: answering.call(forget(events)))
    following.call(feed.start())
    question = request_der(certificate, fleet.issuer.certificate)

    async def answer(_fleet: Fleet) -> ocsp.OCSPCertStatus:
        return ocsp.load_der_ocsp_response((await responder.answer(question)).der).certificate_status

    async def follow(_fleet: Fleet) -> None:
        for _ in range(2):
            await feed._read_new()

    def is_revoked(found: Found) -> bool:
        following.call(feed._read_new())
        assert answering.call(answer(fleet)) is ocsp.OCSPCertStatus.REVOKED, "an answer from before is remembered"
        return set(found.values()) == {DONE}

    return Scene({"first": revoking(world.name()), "second": answer, "third": follow}, is_revoked)


_List = tuple[int, set[int], set[int], int, datetime]
"""A complete list's number and entries, its delta's entries and base, and thisUpdate."""


def two_publishers(world: World, *, revoke: bool = False) -> Scene:
    """Two make the next list of one CA, full and delta; what was revoked before must be in it."""
    ca = _another_ca(world, AuthorityState.ACTIVE)
    sides = [world.name(side) for side in ("left", "right")]
    for each in sides:
        token = TokenCredential(each, world.call(world.first.token(each)))
        world.call(ca.service.enrol(csr_der(names=[each]), token))
    publishers = {}
    for each in ("first", "second"):
        process = world.stage.processes[each]
        publisher = CrlPublisher(process.fleet.database, _plan(ca), process.fleet.clock, _no_sleep)
        process.call(publisher.start())
        publishers[each] = publisher
    lists = [_list_of(each) for each in publishers.values()]
    world.call(revoking(sides[0])(world.first))
    before = _revoked(world)

    def one_numbering(found: Found) -> bool:
        lists.extend(_list_of(each) for each in publishers.values())
        world.stage.processes["second"].call(publishers["second"].publish())
        lists.append(_list_of(publishers["second"]))
        in_order = sorted(lists)
        numbers = [number for number, *_ in in_order]
        assert len(set(numbers)) == 5, "a number was used twice"
        complete = {number: entries for number, entries, *_ in in_order}
        for less, more in itertools.pairwise(complete.values()):
            assert less <= more, "a list with a higher number tells less"
        for _, entries, delta, base, _ in in_order:
            assert complete[base] | delta == entries, "list and delta make another list"
        updates = [at for *_, at in in_order]
        assert updates == sorted(set(updates)), "thisUpdate does not rise with the number"
        assert before <= complete[numbers[2]], "a list that was begun later lacks what was revoked before"
        assert complete[numbers[-1]] == _revoked(world)
        return set(found.values()) == {DONE}

    acts = {each: (lambda _fleet, publisher=publisher: publisher.publish()) for each, publisher in publishers.items()}
    return Scene(acts | ({"third": revoking(sides[1])} if revoke else {}), one_numbering)


def two_publishers_and_revocation(world: World) -> Scene:
    """The same while another device is revoked."""
    return two_publishers(world, revoke=True)


def _list_of(publisher: CrlPublisher) -> _List:
    """Return what a publisher has made last."""
    assert publisher.current is not None
    assert publisher.delta is not None
    crl = x509.load_der_x509_crl(publisher.current.der)
    delta = x509.load_der_x509_crl(publisher.delta.der)
    base = delta.extensions.get_extension_for_class(x509.DeltaCRLIndicator).value.crl_number
    assert publisher.delta.number == publisher.current.number
    listed, changed = ({each.serial_number for each in some} for some in (crl, delta))
    return publisher.current.number, listed, changed, base, crl.last_update_utc


def _plan(ca: _Ca) -> CrlPlan:
    return CrlPlan(
        ca.name,
        crl_counter(ca.name),
        timedelta(hours=1),
        0.0,
        lambda: CrlIssuer(ca.authority.certificate, ca.authority.key),
        delta_url=f"http://ca.example.org/crl/{ca.name}.delta.crl",
    )


async def _no_sleep(_seconds: float) -> None: ...


def _revoked(world: World) -> set[int]:
    """Return what is revoked of this order's certificates."""
    rows = world.outsider.rows(
        "SELECT serial FROM revocations JOIN certificates ON certificate_id = certificates.id "
        "WHERE certificates.id > %s", world.outsider.certificate,
    )  # fmt: skip
    return {int(serial, 16) for (serial,) in rows}


def one_idempotency_key(world: World) -> Scene:
    """An operator's request is sent to two processes with one key: it is done once, and both may hear the answer."""
    before = _tokens(world)
    once = _token_for_a_key(world)

    def once_only(found: Found) -> bool:
        assert _tokens(world) == before + 1, "done twice"
        if set(found.values()) == {DONE}:
            return bool(world.results["first"] == world.results["second"])
        return sorted(found.values()) == sorted((DONE, Code.IDEMPOTENCY_BUSY.value))

    return Scene({"first": once, "second": once}, once_only)


def _token_for_a_key(world: World, later: timedelta = timedelta()) -> Act:
    """Return an operator's request for a token, with a key."""

    async def once(fleet: Fleet) -> str:
        book = AnswerBook(fleet.database, _SECRET, lambda: fleet.clock() + later)
        digest = book.digest_of("admin", "/v1/tokens", world.name())
        answer = await book.begin(digest, b"r" * 32)
        if answer is not None:
            return bytes(answer.body).decode()
        with conditions.of_one_request(), book.doing(digest):
            try:
                response = JSONResponse({"token": await fleet.token(world.name())})
            except Refused as refusal:
                await book.forget(digest, refused=refusal.code is not Code.UNAVAILABLE)
                raise
            await book.finish(digest, response)
        return bytes(response.body).decode()

    return once


def key_again(world: World) -> Scene:
    """A process is lost with an operator's request, which is sent again to another one with its key, a minute later."""
    before = _tokens(world)

    def once_only(found: Found) -> bool:
        assert _tokens(world) == before + 1, "done twice, or never"
        return found["second"] in {DONE, Code.IDEMPOTENCY_UNKNOWN.value}

    acts = {"first": _token_for_a_key(world), "second": _token_for_a_key(world, timedelta(minutes=1))}
    return Scene(acts, at_last=once_only)


def _tokens(world: World) -> int:
    ((count,),) = world.outsider.rows("SELECT count(*) FROM tokens")
    return int(count)


class _WithoutFiles(AuthorityLife):
    async def write_files(self, new: str | None = None) -> None:
        """Write none: the directory is none."""


def issue_and_retire(world: World) -> Scene:
    """A process that does not know yet that its CA retires issues, while an operator ends that CA."""
    ca = _another_ca(world, AuthorityState.RETIRING)
    clock = world.second.clock
    transcript = Transcript("a test", clock, lambda _line: None)
    life = _WithoutFiles(Settings(directory=Path("/nonexistent")), world.second.database, clock, transcript)

    async def retire(_fleet: Fleet) -> str:
        try:
            return await life.retire(ca.name)
        except ConfigurationError as error:
            return str(error)

    def not_both(found: Found) -> bool:
        retired = world.results["second"] == ca.name
        assert retired or "are good until" in world.results["second"]
        return retired is not (found["first"] == ISSUED) and found["first"] in {ISSUED, Code.UNAVAILABLE.value}

    return Scene({"first": _issue_by(world, ca.service), "second": retire}, not_both, may_be_refused=True)


def issue_and_revoke_ca(world: World) -> Scene:
    """The same while the CA is revoked, with all that it has issued."""
    ca = _another_ca(world, AuthorityState.ACTIVE)

    async def revoke(fleet: Fleet) -> None:
        grounds = Grounds(RevocationReason.CA_COMPROMISE)
        revoked = await fleet.database.write(
            lambda connection: revoke_authority(connection, ca.name, grounds, by="admin", now=fleet.clock())
        )
        await fleet.revocation.portions.finish(revoked.issuer)

    def nothing_is_good(found: Found) -> bool:
        good = world.outsider.rows(
            "SELECT serial FROM certificates JOIN authorities ON key_id = issuer_key_id "
            "WHERE authorities.name = %s AND NOT EXISTS "
            "(SELECT 1 FROM revocations WHERE certificate_id = certificates.id)",
            ca.name,
        )
        assert good == [], "a certificate of a CA that was revoked"
        return found["second"] == DONE and found["first"] in {ISSUED, Code.UNAVAILABLE.value}

    return Scene({"first": _issue_by(world, ca.service), "second": revoke}, nothing_is_good, may_be_refused=True)


@dataclass(frozen=True)
class _Ca:
    """A CA of one order, and the first process's service that issues with it."""

    name: str
    authority: CertificateAuthority
    service: EnrolmentService


def _another_ca(world: World, state: AuthorityState) -> _Ca:
    name, fleet = world.name("issuing"), world.first
    ca, now = new_authority().issuing_ca, fleet.clock()
    world.call(
        fleet.database.write(
            lambda connection: authorities.add(
                connection, name, AuthorityKind.ISSUING, state, ca.certificate, now, world.name("line")
            )
        )
    )
    issuer = Issuer(ca.certificate, ca.key)
    service = EnrolmentService(
        database=fleet.database,
        issuing=lambda _line: Issuing(issuer),
        serial_numbers=fleet.serial_numbers,
        profiles={each.value: profile_of(ProfileConfig(each, timedelta(days=30))) for each in ProfileName},
        trust_domain="fleet.internal",
        clock=fleet.clock,
    )
    return _Ca(name, ca, service)


def _issue_by(world: World, service: EnrolmentService) -> Act:
    token, csr = world.call(world.first.token(world.name())), csr_der(names=[world.name()])

    async def issue(_fleet: Fleet) -> x509.Certificate:
        return x509.load_der_x509_certificate(await service.enrol(csr, TokenCredential(world.name(), token)))

    return issue


def enrol_again(world: World) -> Scene:
    """A device asks a process that is lost meanwhile, and then another one, with the same request."""
    token, csr = world.call(world.first.token(world.name())), csr_der(names=[world.name()])

    def one_certificate(found: Found) -> bool:
        certificates = world.outsider.rows("SELECT der FROM certificates WHERE id > %s", world.outsider.certificate)
        assert len(certificates) == 1, "another one for the same request"
        return found["second"] == ISSUED

    acts = {name: enrolling(world.name(), token, csr) for name in ("first", "second")}
    return Scene(acts, at_last=one_certificate)


def renew_again(world: World) -> Scene:
    """The same with a renewal."""
    certificate = world.call(world.first.enrol(world.name()))
    csr = successor_csr(certificate)

    def one_certificate(found: Found) -> bool:
        certificates = world.outsider.rows("SELECT der FROM certificates WHERE id > %s", world.outsider.certificate)
        assert len(certificates) == 2, "another one for the same request"
        return found["second"] == ISSUED

    renew: Act = lambda fleet: fleet.reenrol(certificate, csr)  # noqa: E731
    return Scene({"first": renew, "second": renew}, at_last=one_certificate)


def revoke_again(world: World) -> Scene:
    """An operator asks a process that is lost meanwhile, and then another one: all is revoked, and told once."""
    name = world.name()
    certificate = world.call(world.first.enrol(name))
    world.call(renewing(certificate)(world.first))
    world.call(world.first.token(name))

    def all_is_told_once(found: Found) -> bool:
        assert len(world.outsider.events) == 2
        return found["second"] == DONE

    return Scene({"first": revoking(name), "second": revoking(name)}, at_last=all_is_told_once)


def revoke_in_portions(world: World) -> Scene:
    """A process is lost between two portions of a device's certificates; another one finishes what it has begun."""
    name = world.name()
    certificate = world.call(world.first.enrol(name))
    for _ in range(4):
        world.call(renewing(certificate)(world.first))

    def finished(_found: Found) -> bool:
        world.stage.processes["second"].call(world.second.revocation.portions.finish_left())
        world.outsider.check(world.second.clock())
        assert world.outsider.rows("SELECT device_id FROM unfinished_ends") == []
        return len(world.outsider.events) in {0, 5}

    finish: Act = lambda fleet: fleet.revocation.portions.finish_left()  # noqa: E731
    return Scene({"first": revoking(name), "second": finish}, at_last=finished)


AGAIN: Final = (enrol_again, renew_again, revoke_again, revoke_in_portions, key_again)
"""Of a process that is lost, and another one that goes on."""
WITH_READERS: Final = (
    feed_and_revocations,
    ocsp_and_revocation,
    two_publishers,
    two_publishers_and_revocation,
    one_idempotency_key,
    issue_and_retire,
    issue_and_revoke_ca,
)
