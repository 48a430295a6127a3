"""Enrolment: the whole story of a certificate, from a stranger's request to a row in the store.

Theory
------
A first certificate and a successor differ only in what vouches for them. One function,
`provisioning.enrolment.authorise.authorise`, decides both, so no rule can hold on one path and be forgotten on the
other::

    verify the request -> take a serial number that is on disk -> BEGIN
        authorise (group, ways or certificate, device) -> the key is nobody else's -> prepare -> sign -> record, settle
    COMMIT -> hand out

The audit log has an entry before and after the signature; if it cannot be written, nothing is signed.

Rules
-----
1. Nothing is handed out before it is committed; nothing is signed under a serial number that is not on disk.
2. What pays for a certificate (a token, a place of a claim) is spent in the transaction that records it: exactly once
   under any concurrency, and only if a certificate is issued.
3. Status is read from the primary store inside that transaction, so a committed revocation is seen.
4. The server builds identity, subject and names. Enrolment takes a name and a key from the request, and other names
   where the profile honours them; re-enrolment requires subject and names equal to the certificate's (RFC 7030 §4.2.2,
   `provisioning.ca.same_names`), and grants what the profile allows now.
5. A key belongs to one device, and a compromised key and a claim's to none. While a certificate for it is suspended by
   itself, nothing is issued for it, nor for another one on its word, nor given again.
6. A client that repeats a request gets the same answer again, where its group allows it: nothing is signed.

Handles: issuance, recording. Does not handle: HTTP, base64, making tokens, deciding who is admitted.
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final
from weakref import WeakValueDictionary

import structlog
from cryptography import x509
from sqlalchemy.engine import Connection

from provisioning.ca.csr import apply_profile, read_key_request, verify_csr
from provisioning.ca.csr_attributes import csr_attributes
from provisioning.ca.issuer import IssuanceRequest
from provisioning.ca.key_envelope import Recipient
from provisioning.ca.key_policy import KeyPolicy, WeakKey
from provisioning.ca.name_policy import SubjectNames
from provisioning.ca.profile import Profile
from provisioning.enrolment import pace
from provisioning.enrolment.attempt import (
    Attempt,
    Question,
    TlsConnection,
    TokenCredential,
    Verdict,
)
from provisioning.enrolment.authentication import check_key
from provisioning.enrolment.authorise import Authorised, authorise
from provisioning.enrolment.host_names import host_name_in, reserve
from provisioning.enrolment.issuing import Issuing
from provisioning.enrolment.key_owner import check_key_is_its_own, claim_key
from provisioning.enrolment.refusal_log import refusals_logged
from provisioning.enrolment.server_keys import make_key
from provisioning.enrolment.tokens import digest_of
from provisioning.enrolment.ways.approval import RETRY_SECONDS, Undecided
from provisioning.enrolment.ways.approval import record as record_request
from provisioning.enrolment.ways.webhook import Unasked
from provisioning.errors import Code, Pending, Refused
from provisioning.pki.extension import UNUSABLE
from provisioning.pki.identity import Identity
from provisioning.pki.keys import PrivateKey, spki_fingerprint
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.pki.serial_number import serial_text
from provisioning.quick_values import quickly_made
from provisioning.store import (
    audit,
    certificates,
    devices,
    groups,
    revocations,
)
from provisioning.store.audit import Action
from provisioning.store.certificates import IssuedCertificate, StoredCertificate
from provisioning.store.database import Database
from provisioning.store.groups import Group
from provisioning.store.serials import Reservation, SerialNumbers

log = structlog.get_logger(__name__)

_MAXIMUM_QUESTIONS: Final = 3
"""Of one alternative, to the webhook, per request: one may change while it is asked, say with its group."""


@quickly_made
@dataclass(frozen=True, slots=True)
class _Outcome:
    der: bytes
    serial: int
    not_after: datetime
    again: bool = False
    changed: Sequence[StoredCertificate] = ()
    """Certificates whose status changed: those that were replaced, and a new one on trial."""


class _Rehearsed(Exception):
    """The rehearsal is over, and *rules* admit the device; its transaction is rolled back."""

    def __init__(self, rules: Group) -> None:
        super().__init__(rules)
        self.rules = rules


@dataclass(frozen=True, slots=True)
class MadeKey:
    """A key that was made here, and its certificate."""

    key: PrivateKey = field(repr=False)
    certificate: x509.Certificate
    recipient: Recipient | None
    """The recipient to encrypt the key for; None: TLS protects it."""


class EnrolmentService:
    """Issues certificates to those whom `authorise` admits."""

    def __init__(
        self,
        *,
        database: Database,
        issuing: Callable[[str], Issuing],
        serial_numbers: SerialNumbers,
        profiles: Mapping[str, Profile],
        trust_domain: str,
        clock: Callable[[], datetime],
        after_commit: Sequence[Callable[[Sequence[StoredCertificate]], None]] = (),
        ask: Callable[[Question], Awaitable[Verdict]] | None = None,
        key_policy: KeyPolicy | None = None,
        signs_at_once: Callable[[], bool] = lambda: True,
    ) -> None:
        """*issuing* returns the CA of a line that issues now.

        *after_commit* are called with the certificates whose status a new one has changed: those that it replaces.
        *ask* asks a webhook. *signs_at_once* tells whether signing is immediate: not in a hardware token.
        """
        self._ask = ask or _nobody_to_ask
        self._signs_at_once = signs_at_once
        self._key_policy = key_policy or KeyPolicy()
        self._database = database
        self._issuing = issuing
        self._serial_numbers = serial_numbers
        self._profiles = profiles
        self._trust_domain = trust_domain
        self._clock = clock
        self._after_commit = after_commit
        self._making: Final = asyncio.Lock()
        """One key is made at a time: an RSA key takes a processor for a tenth of a second or more."""
        self._turns: Final[WeakValueDictionary[Hashable, asyncio.Lock]] = WeakValueDictionary()
        """By what was shown for a key to be made, which it is once: for as long as somebody asks with it, or waits."""

    def check_keys_by(self, key_policy: KeyPolicy) -> None:
        """Check keys against *key_policy* from now on."""
        self._key_policy = key_policy

    async def enrol(
        self,
        csr_der: bytes,
        token: TokenCredential | None,
        label: str | None = None,
        certificate: x509.Certificate | None = None,
        connection: TlsConnection | None = None,
    ) -> bytes:
        """Return a first certificate, in DER, if what was presented vouches for it; raise `Refused`, or `Pending`."""
        with refusals_logged(connection):
            request = verify_csr(csr_der, self._key_policy)
            self._check_shown(certificate, Code.MANUFACTURER_CERTIFICATE)
        return await self._certify(Attempt(request, self._clock(), label, token, certificate, connection=connection))

    async def enrol_with_server_key(
        self,
        csr_der: bytes,
        token: TokenCredential | None,
        label: str | None = None,
        certificate: x509.Certificate | None = None,
        connection: TlsConnection | None = None,
    ) -> MadeKey:
        """Make a key and return it with its first certificate; raise `Refused`, or `Pending`.

        The key exists in the answer only: while the request waits, there is none. Its type is one of those that the
        profile of its group takes, whether or not the label names that group: the client cannot choose another.
        """
        with refusals_logged(connection):
            asked = read_key_request(csr_der, certificate, self._key_policy)
            self._check_shown(certificate, Code.MANUFACTURER_CERTIFICATE)
        attempt = Attempt(
            asked.request,
            self._clock(),
            label,
            token,
            certificate,
            connection=connection,
            server_key=True,
            waits_as=None if asked.proof is None else spki_fingerprint(asked.wished),
            proof=asked.proof,
        )
        async with self._turns.setdefault(attempt.shown, asyncio.Lock()):
            rules = await self._rehearse(attempt)
            profile = self._profile_named(rules.profile, Role.DEVICE, rules.name)
            async with self._making:
                key = await asyncio.to_thread(make_key, profile, asked.wished)
            issued = await self._certify(replace(attempt, request=asked.with_key(key)))
        return MadeKey(key, x509.load_der_x509_certificate(issued), asked.recipient)

    async def reenrol(
        self,
        csr_der: bytes,
        certificate: x509.Certificate | None,
        label: str | None = None,
        connection: TlsConnection | None = None,
    ) -> bytes:
        """Return a successor of the presented certificate, in DER, with the same key or a new one; raise `Refused`."""
        with refusals_logged(connection):
            request = verify_csr(csr_der, self._key_policy)
            self._check_shown(certificate, Code.CSR_KEY)
        return await self._certify(
            Attempt(
                request,
                self._clock(),
                label,
                certificate=certificate,
                renewal=True,
                connection=connection,
            )
        )

    def _check_shown(self, certificate: x509.Certificate | None, code: Code) -> None:
        """Refuse, with *code*, a certificate whose key others may hold: weak, or published since it was issued."""
        if certificate is None:
            return
        try:
            self._key_policy.check_shown(certificate.public_key())
        except (WeakKey, *UNUSABLE) as error:
            raise Refused(code, f"the certificate that you present: {error}") from error

    async def _rehearse(self, attempt: Attempt) -> Group:
        """Raise `Refused` or `Pending` where `authorise` does, before anything is spent on *attempt*.

        Return the rules that admit it. It records nothing, except that a request waits.
        """

        def transaction(connection: Connection) -> Pending:
            try:
                authorised = authorise(connection, attempt)
                _keep_pace(connection, authorised, attempt.now)
                rules = authorised.rules
            except Unasked as unasked:  # The webhook is asked later, about the key that is made then.
                rules = groups.rules_of(connection, unasked.question.group)
            except Undecided as undecided:
                return _waiting(connection, undecided, attempt.now)
            raise _Rehearsed(rules)

        try:
            with refusals_logged(attempt.connection, attempt.request.common_name):
                waiting = await self._database.write(transaction)
        except _Rehearsed as rehearsed:
            return rehearsed.rules
        _log_waiting(attempt, waiting)
        raise waiting

    async def csr_attributes(self, label: str | None) -> bytes:
        """Return what a request for the label's group should look like, as DER."""
        rules = await self._rules_of(label)
        return csr_attributes(self._profile_named(rules.profile, Role.DEVICE, label), linked=rules.tls_unique)

    async def issuing_line(self, label: str) -> str:
        """Return the line of issuing CAs that certifies the devices of the label's group."""
        return (await self._rules_of(label)).issuing_line

    async def _rules_of(self, label: str | None) -> Group:
        if label is None:
            return Group("")
        return await self._database.read(lambda connection: groups.rules_of(connection, label))

    async def _certify(self, attempt: Attempt) -> bytes:
        with refusals_logged(attempt.connection, attempt.request.common_name):
            outcome = await self._decide(attempt)
        if isinstance(outcome, Pending):
            _log_waiting(attempt, outcome)
            raise outcome
        if outcome.changed:
            for tell in self._after_commit:
                tell(outcome.changed)
        log.info(
            "certificate returned again" if outcome.again else "certificate issued",
            name=attempt.request.common_name,
            serial=serial_text(outcome.serial),
            not_after=outcome.not_after,
        )
        return outcome.der

    async def _decide(self, attempt: Attempt) -> _Outcome | Pending:
        async with self._serial_numbers.reservation(self._clock()) as reservation:
            asked = Counter[tuple[str, ...]]()
            while True:
                try:
                    return await self._database.write(
                        functools.partial(self._transaction, attempt=attempt, reservation=reservation),
                        functools.partial(_apart, attempt),
                        short=self._signs_at_once(),
                    )
                except Unasked as unasked:
                    question = unasked.question
                asked[question.evidence] += 1
                if asked[question.evidence] > _MAXIMUM_QUESTIONS:
                    raise Refused(Code.UNAVAILABLE, "the question to the webhook changed while it was asked; try again")
                attempt = replace(attempt, verdicts=(*attempt.verdicts, await self._answer_to(question)))

    async def _answer_to(self, question: Question) -> Verdict:
        try:
            return await self._ask(question)
        except Refused as failure:
            return Verdict(question, allowed=False, failure=failure)

    def _transaction(self, connection: Connection, attempt: Attempt, reservation: Reservation) -> _Outcome | Pending:
        if reservation.burnt:  # Signed in a batch, and rolled back with it: never sign twice under one number.
            raise Refused(Code.UNAVAILABLE, "the certificate could not be recorded; try again")
        attempt = attempt.at(self._clock())  # The audit log's times are in commit order.
        try:
            authorised = authorise(connection, attempt)
        except (Undecided, Unasked) as unanswered:
            check_key_is_its_own(connection, attempt.request.common_name, attempt.request.key_fingerprint)
            if isinstance(unanswered, Unasked):
                raise
            return _waiting(connection, unanswered, attempt.now)
        if authorised.answer is not None:
            check_key(connection, authorised.device, attempt.request.key_fingerprint)
            return _given_again(authorised.answer)
        claim_key(connection, authorised.device, attempt.request.key_fingerprint)
        _keep_pace(connection, authorised, attempt.now)
        certificate, certificate_id = self._sign(connection, attempt, authorised, reservation)
        for settle in authorised.settlements:
            settle(connection, certificate_id, authorised.device.name, certificate.not_after)
        _supersede(connection, authorised, attempt.now)
        changed = list(authorised.superseded)
        if authorised.on_trial:
            changed.append(_hold(connection, certificate, certificate_id, authorised, attempt.now))
        else:
            devices.stay(connection, authorised.device)
        return _Outcome(certificate.der, certificate.serial, certificate.not_after, changed=changed)

    def _sign(
        self, connection: Connection, attempt: Attempt, authorised: Authorised, reservation: Reservation
    ) -> tuple[IssuedCertificate, int]:
        device, now = authorised.device, attempt.now
        issuing = self._issuing(authorised.rules.issuing_line)
        issuing.check_life(now)
        issuing.check(connection)
        shard = issuing.choose_shard()
        profile = self._profile_named(authorised.rules.profile, device.role, device.group)
        identity = Identity(self._trust_domain, device.role, device.name, device.group)
        held = SubjectNames(authorised.dns_names, authorised.ip_addresses)
        names = apply_profile(attempt.request, profile, identity, held)
        names = reserve(connection, profile, identity, held, names, device, attempt)
        prepared = issuing.issuer.prepare(
            profile,
            IssuanceRequest(
                identity,
                attempt.request.public_key,
                reservation.serial,
                now,
                names.dns_names,
                names.ip_addresses,
                authorised.lifetime,
                None if shard is None else shard.url,
                names.attributes,
                attempt.request.spki,
            ),
        )
        serial = serial_text(reservation.serial)
        facts = {"serial": serial, "role": device.role.value, "group": device.group, "paid_with": authorised.credential}
        if attempt.server_key:
            facts["key"] = "made by the service"
        audit.append(connection, now, authorised.by, Action.SIGNING_CERTIFICATE, device.name, facts)
        reservation.burnt = True
        der = issuing.issuer.sign(prepared)
        reservation.use(connection, now)
        shard_id = None if shard is None else shard.id  # For ever: the CRL's URL is in the certificate.
        made = prepared.made  # The linter has found it in the certificate.
        certificate = IssuedCertificate(
            der, issuing.issuer.key_id, made.serial, made.not_before, made.not_after, attempt.request.key_fingerprint
        )
        certificate_id = certificates.add(connection, certificate, device.id, now, shard_id, authorised.granted)
        signed = {"serial": serial, "not_after": made.not_after}
        audit.append(connection, now, authorised.by, Action.CERTIFICATE_SIGNED, device.name, signed)
        return certificate, certificate_id

    def _profile_named(self, name: str, role: Role, group: str | None) -> Profile:
        profile = self._profiles.get(name)
        if profile is None or profile.role is not role:
            log.error("profile not configured", code="PROFILE_UNKNOWN", profile=name, group=group, role=role.value)
            raise Refused(
                Code.UNAVAILABLE,
                f"group {group} has a profile that is not configured for a {role}: an operator has to change the group",
            )
        return profile


def _keep_pace(connection: Connection, authorised: Authorised, now: datetime) -> None:
    """Take the certificate from what the device and its group may have; raise `Refused` if that is too much."""
    if not authorised.paid and not authorised.on_trial:
        pace.certify_again(connection, authorised.device, now)
    pace.certify(connection, authorised.rules, now)


def _apart(attempt: Attempt) -> Collection[Hashable] | None:
    """Return all that a first enrolment by token alone depends on; None: this one depends on more."""
    if attempt.renewal or attempt.token is None or attempt.certificate is not None:
        return None
    key = attempt.request.key_fingerprint
    name = attempt.request.common_name
    hosts = (("host", each) for each in (host_name_in(name) or name, *attempt.request.asked.dns_names))
    return ("token", digest_of(attempt.token.token)), ("device", name), ("key", key), *hosts


def _given_again(der: bytes) -> _Outcome:
    certificate = x509.load_der_x509_certificate(der)
    return _Outcome(der, certificate.serial_number, certificate.not_valid_after_utc, again=True)


def _log_waiting(attempt: Attempt, waiting: Pending) -> None:
    log.info("enrolment waits", detail=waiting.detail, name=attempt.request.common_name)


def _waiting(connection: Connection, undecided: Undecided, now: datetime) -> Pending:
    """Record that a request waits, and return the answer for its sender."""
    request = undecided.request
    number = record_request(connection, undecided, now)
    return Pending(
        f"request {number}, for {request.name} in group {request.group}, waits for an operator's decision: "
        "send it again later",
        RETRY_SECONDS,
    )


async def _nobody_to_ask(_question: Question) -> Verdict:
    raise Refused(Code.WEBHOOK_FAILED, "this service asks no webhooks: an operator has to change the group")


def _supersede(connection: Connection, authorised: Authorised, now: datetime) -> None:
    """Revoke what the new certificate replaces. A hold becomes a revocation and keeps its date."""
    reason, by = RevocationReason.SUPERSEDED, authorised.by
    held = {each.id: each.revocation for each in authorised.superseded if each.revocation is not None}
    fresh = [each.id for each in authorised.superseded if each.revocation is None]
    if held:
        revocations.finalise(connection, held, reason=reason, revoked_by=by, replaced=True)
    if fresh:
        revocations.add(connection, fresh, reason=reason, revoked_at=now, revoked_by=by)
    if authorised.superseded:
        facts = {"reason": reason, "serials": [each.serial for each in authorised.superseded]}
        audit.append(connection, now, by, Action.REVOKED, authorised.device.name, facts)


def _hold(
    connection: Connection, certificate: IssuedCertificate, certificate_id: int, authorised: Authorised, now: datetime
) -> StoredCertificate:
    """Put a certificate on hold from its first second: it is good only for its activation."""
    reason = RevocationReason.CERTIFICATE_HOLD
    revocations.add(connection, [certificate_id], reason=reason, revoked_at=now, revoked_by=authorised.by)
    held = certificates.find(connection, certificate.issuer_key_id, certificate.serial)
    if held is None:
        raise AssertionError("the certificate has just been recorded")
    facts = {"reason": reason, "serials": [held.serial], "until": "its activation"}
    audit.append(connection, now, authorised.by, Action.SUSPENDED, authorised.device.name, facts)
    return held
