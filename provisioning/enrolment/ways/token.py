"""The one-time token: an operator's promise of one certificate, to one device or to any new device of a group.

A promise holds only while its maker is not suspended: a suspected operator may have put tokens aside. The tokens of an
operator who was ended are void (`provisioning.revocation.departed_operators`). Whose suspension it is, only the log
says: a thief of tokens would learn from the answer that somebody has noticed.

A promise of any other role than a device's holds only while its maker could make it now: an admin with a certificate
that is good (`provisioning.store.operators.usable_admins`). Otherwise a dismissed operator could come back as one, or
as a service that reads everything, by a token that was put aside.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import datetime
from typing import ClassVar, Self

import structlog
from sqlalchemy.engine import Connection

from provisioning.enrolment.attempt import Attempt, TokenCredential
from provisioning.enrolment.operator_roles import end_promise_of_who_left, is_here
from provisioning.enrolment.tokens import digest_of, without_token
from provisioning.enrolment.ways.way import Vouched, Way
from provisioning.errors import Code, Refused
from provisioning.operator_role import OperatorRole
from provisioning.pki.role import Role
from provisioning.program.moments import shown_time
from provisioning.store import certificates_of_key, devices, operators, tokens
from provisioning.store.devices import DeviceState
from provisioning.store.groups import Group, WayName
from provisioning.store.tokens import StoredToken

log = structlog.get_logger(__name__)


class TokenWay(Way):
    """HTTP Basic with a token as the password."""

    name: ClassVar[WayName] = WayName.TOKEN

    def __init__(self, credential: TokenCredential, token: StoredToken, attempt: Attempt) -> None:
        self._credential = credential
        self._now = attempt.now
        self._token = token
        self._becomes_operator = False
        self.role = token.grant.role
        self.group = token.grant.group
        self.is_decision = token.grant.device == attempt.request.common_name

    @classmethod
    def presented(cls, connection: Connection, attempt: Attempt) -> Self | None:
        """Find the token, and lock it until the transaction ends."""
        if attempt.token is None:
            return None
        token = tokens.find(connection, digest_of(attempt.token.token))
        if token is None:
            raise Refused(Code.TOKEN_UNKNOWN, "no such enrolment token: check that it was copied whole")
        return cls(attempt.token, token, attempt)

    def check_good(self, now: datetime) -> None:
        """Refuse a token that has ended."""
        _check_usable(self._token, now)

    def vouch(self, connection: Connection, attempt: Attempt, group: Group, shown: Sequence[Vouched]) -> Vouched:  # noqa: ARG002 - a way's signature
        """Refuse a token that has ended or is another device's."""
        token, grant = self._token, self._token.grant
        answer = self._given_before(connection, attempt, group)
        if answer is None:
            _check_usable(token, attempt.now)
            _check_maker(connection, token, attempt.now)
        name = attempt.request.common_name
        if grant.device is not None and not grant.device == name == self._credential.user:
            user = without_token(self._credential.user)[:80]
            raise Refused(
                Code.TOKEN_DEVICE,
                f"the token is for {grant.device}: user name ({user!r}) and Common Name ({name!r}) must both be that",
            )
        bound = grant.device is not None
        self._becomes_operator = grant.role is Role.OPERATOR and not is_here(connection, name)
        return Vouched(
            token.created_by,
            "token",
            worth_one=f"token {token.id}",
            proves=True,
            identifies=bound,
            readmits=bound,
            pays=True,
            dns_names=grant.dns_names,
            ip_addresses=tuple(ipaddress.ip_address(address) for address in grant.ip_addresses),
            lifetime=grant.lifetime,
            answer=answer,
            settle=self._spend,
        )

    def _given_before(self, connection: Connection, attempt: Attempt, group: Group) -> bytes | None:
        """Return what the token bought, to the same key and name, while the group answers a second time."""
        token = self._token
        if (
            token.used_at is None
            or token.certificate_id is None
            or attempt.now >= token.used_at + group.same_key_window
        ):
            return None
        spki = attempt.request.key_fingerprint
        held = certificates_of_key.newest(connection, attempt.request.common_name, spki)
        return held.der if held is not None and held.id == token.certificate_id and held.good(attempt.now) else None

    def _spend(self, connection: Connection, certificate_id: int, device: str, _ends: datetime) -> None:
        if not tokens.spend(connection, self._token.id, certificate_id, self._now):
            raise Refused(Code.TOKEN_USED, "this enrolment token was used already: ask for a new one")
        if self._becomes_operator:
            end_promise_of_who_left(connection, device, by=self._token.created_by, now=self._now)


def _check_maker(connection: Connection, token: StoredToken, now: datetime) -> None:
    """Refuse a token whose maker is suspended, or one that only an admin may make if its maker may not any more."""
    if token.maker_suspended_at is not None:
        raise _unpromised(token, "is suspended", "operator")
    if token.grant.role is Role.DEVICE:
        return
    maker = devices.find(connection, token.created_by)
    if maker is None or maker.role is not Role.OPERATOR or maker.name in operators.usable_admins(connection, now):
        return
    if not operators.role_of(connection, maker.name).permits(OperatorRole.ADMIN):
        why = "is no admin any more"
    else:
        why = "has no valid certificate" if maker.state is DeviceState.ACTIVE else f"is {maker.state}"
    raise _unpromised(token, why, "admin")


def _unpromised(token: StoredToken, why: str, who: str) -> Refused:
    """Log *why* the maker of *token* cannot promise it now; return the refusal, by which another *who* is asked."""
    log.info(
        "token refused: its maker may not promise it any more",
        code=Code.TOKEN_VOID.value,
        token=token.id,
        maker=token.created_by,
        why=why,
    )
    return Refused(Code.TOKEN_VOID, f"this token's maker cannot promise it now: ask another {who} for a new one")


def _check_usable(token: StoredToken, now: datetime) -> None:
    if token.used_at is not None:
        raise Refused(Code.TOKEN_USED, "this enrolment token was used already: ask for a new one")
    if token.voided_at is not None:
        raise Refused(
            Code.TOKEN_VOID,
            "this token was voided, or its device was ended, or who made it has left or lets nobody in any more: ask "
            "for a new one",
        )
    if now >= token.expires_at:
        raise Refused(
            Code.TOKEN_EXPIRED,
            f"this enrolment token expired on {shown_time(token.expires_at)}: ask for a new one",
        )
