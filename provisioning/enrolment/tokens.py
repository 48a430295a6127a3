"""One-time enrolment tokens: what they look like, how they are made, and what they may grant to whom.

Theory
------
A token is 32 random bytes in URL-safe base64 behind a prefix that secret scanners can search for. The operator sees it
once; the store keeps its SHA-256. It is worth one certificate: for one device, or for any *new* device of a group.

Rules
-----
1. A token for a group admits only names that are not in use, nor promised to somebody
   (`provisioning.enrolment.promised_names`); its holder can never become an existing device.
2. Only a broker's token carries server names.
3. No token is for the service's own name (`provisioning.enrolment.own_name`).
4. A token never promises what enrolment would refuse. One bound to an existing device has that device's role and group,
   which it keeps for life. A retired name gets no token, nor does one of which its profile makes no host name
   (`provisioning.enrolment.promised_hosts`). And no name is promised both to a device and to a broker, service or
   operator: an enroller may make the one token, and would keep the other party out.
5. `digest_of` refuses anything that could not be a token before it is hashed or looked up.
"""

from __future__ import annotations

import asyncio
import base64
import contextvars
import hashlib
import ipaddress
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import structlog
from sqlalchemy.engine import Connection

from provisioning.ca.name_policy import MAXIMUM_NAMES
from provisioning.ca.profile import MAXIMUM_LIFE, Profile
from provisioning.ca.server_names import InvalidServerName, check_host_name
from provisioning.enrolment.operator_roles import promise_roles
from provisioning.enrolment.own_name import check_nobody_enrols_as_the_service
from provisioning.enrolment.promised_hosts import check_hosts
from provisioning.errors import Code, Refusals, Refused, invalid
from provisioning.operator_role import OperatorRole
from provisioning.pki.identity import InvalidIdentity, check_name
from provisioning.pki.role import Role
from provisioning.program.counted import counted
from provisioning.program.durations import out_of_bounds
from provisioning.program.shielded import shielded
from provisioning.store import audit, claims, devices, groups, token_inventory, tokens
from provisioning.store.audit import Action
from provisioning.store.database import Database
from provisioning.store.devices import Device, DeviceState
from provisioning.store.groups import WayName, alternative_text
from provisioning.store.names_to_come import never_came
from provisioning.store.shared_turn import SharedTurn
from provisioning.store.token_inventory import KnownToken, TokenState
from provisioning.store.tokens import TokenGrant

DEFAULT_GROUP: Final = "default"
MAXIMUM_BATCH: Final = 10_000
PORTION: Final = 250
"""Tokens per transaction: some 0.1 ms each on PostgreSQL."""
MAXIMUM_TTL: Final = timedelta(days=90)
DEFAULT_TTL: Final = timedelta(hours=1)

_PREFIX: Final = "fgt_"
_TOKEN: Final = re.compile(r"fgt_[A-Za-z0-9_-]{43}", re.ASCII)

log = structlog.get_logger(__name__)


def new_token() -> str:
    """Return a new random token."""
    return _PREFIX + base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode()


def digest_of(token: str) -> bytes:
    """Return the SHA-256 of *token*; raise `Refused` if it does not look like one."""
    if not _TOKEN.fullmatch(token):
        raise Refused(
            Code.TOKEN_UNKNOWN,
            f"the password is not an enrolment token ({_PREFIX}… and 43 characters): check that it was copied whole",
        )
    return hashlib.sha256(token.encode()).digest()


def without_token(text: str) -> str:
    """Return *text*, sent where no token belongs, as it may be shown: a token is a secret there too."""
    return _TOKEN.sub(f"{_PREFIX}…", text)


@dataclass(frozen=True, slots=True)
class TokenOrder:
    """What an operator asks for: tokens for *devices* by name, or *count* for any new device of *group*."""

    devices: Sequence[str] = ()
    group: str | None = None
    role: Role = Role.DEVICE
    ttl: timedelta = DEFAULT_TTL
    count: int = 1
    dns_names: Sequence[str] = ()
    ip_addresses: Sequence[str] = ()
    lifetime: timedelta | None = None
    operator_role: OperatorRole | None = None
    """The role of operators by these names; None: the one they have already, at first read-only."""


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A token on its way to the operator; the only moment at which it exists in the clear."""

    grant: TokenGrant
    token: str
    expires_at: datetime
    number: int = 0
    """The number by which operators refer to it afterwards."""
    device_state: DeviceState | None = None
    """That of the device it is bound to; None: there is none yet, or it is bound to none."""

    def __repr__(self) -> str:
        """Leave the token out: representations end in logs."""
        return f"IssuedToken({self.grant}, expires_at={self.expires_at})"


class TokenService:
    """Makes enrolment tokens, and ends them."""

    def __init__(self, database: Database, clock: Callable[[], datetime], profiles: Mapping[str, Profile]) -> None:
        self._database = database
        self._clock = clock
        self._profiles = profiles
        self._turn: Final = SharedTurn()
        """One portion of tokens waits for the store at a time, of all orders: who enrols comes after one, not each."""

    async def create(self, order: TokenOrder, *, by: str) -> list[IssuedToken]:
        """Make the tokens of *order*, all or none; raise `Refused` naming the field that is wrong.

        Many are made a portion at a time; others write in between. The caller gets none before all are made: if that
        fails, those already made are voided; if the process dies, nobody knows them.
        """
        now = self._clock()
        grants = _grants(order)  # First: with a time to live that is too long, the end cannot be computed.
        expires_at = (now + order.ttl).replace(microsecond=0)
        issued = [IssuedToken(grant, new_token(), expires_at) for grant in grants]

        def record(connection: Connection, portion: Sequence[IssuedToken]) -> list[IssuedToken]:
            kept = self._kept_promises(connection, order, portion, now)
            names = [each.grant.device for each in kept if each.grant.device is not None]
            if order.role is Role.OPERATOR:
                promise_roles(connection, names, order.operator_role, by=by, now=now)
            promised = [each.grant for each in kept]
            groups_named = sorted({grant.group for grant in promised if grant.group is not None})
            if order.role is Role.DEVICE:
                for group in groups_named:
                    _check_way(connection, group)
            digests = [(digest_of(each.token), each.grant) for each in kept]
            numbers = tokens.add(connection, digests, created_by=by, now=now, expires_at=expires_at)
            named = ", ".join(groups_named) or None
            facts = {"count": len(promised), "role": order.role.value, "group": named, "expires_at": expires_at}
            subject = names[0] if len(names) == 1 else counted(len(promised), "token")
            audit.append(connection, now, by, Action.TOKENS_CREATED, subject, facts | {"devices": names})
            return [replace(each, number=number) for each, number in zip(kept, numbers, strict=True)]

        if len(issued) > PORTION:  # Refuse before any token is made.
            await self._database.read(lambda connection: self._kept_promises(connection, order, issued, now))
        made: list[IssuedToken] = []
        try:
            for start in range(0, len(issued), PORTION):
                async with self._turn.taken():
                    made += await self._database.write(partial(record, portion=issued[start : start + PORTION]))
        except BaseException:
            if made:
                await self._unmake(made, by)
            raise
        log.info(
            "tokens created", count=len(made), role=order.role.value, group=order.group, by=by, expires_at=expires_at
        )
        return made

    def _kept_promises(
        self, connection: Connection, order: TokenOrder, issued: Sequence[IssuedToken], now: datetime
    ) -> list[IssuedToken]:
        kept = _kept_promises(connection, order, issued, now)
        check_hosts(connection, self._profiles, [each.grant for each in kept], now)
        return kept

    async def _unmake(self, made: Sequence[IssuedToken], by: str) -> None:
        """Void tokens that were not handed out, even if the caller's request is cancelled."""

        def record(connection: Connection, numbers: Sequence[int]) -> None:
            now = self._clock()
            token_inventory.void(connection, numbers, now)
            audit.append(connection, now, by, Action.TOKEN_VOIDED, counted(len(numbers), "token"), {"tokens": numbers})

        async def void() -> None:
            numbers = [each.number for each in made]
            try:
                for start in range(0, len(numbers), PORTION):
                    await self._database.write(partial(record, numbers=numbers[start : start + PORTION]))
            except Refused as refusal:
                log.warning(
                    "tokens that no caller has received are not voided",
                    code="TOKENS_NOT_VOIDED",
                    count=len(numbers),
                    detail=refusal.detail,
                )

        # Without checking the caller, who may just have lost the right to ask.
        await shielded(asyncio.create_task(void(), context=contextvars.Context()))

    async def void(self, number: int, check: Callable[[KnownToken], None], *, by: str) -> KnownToken:
        """Make one token worthless and return it; raise `Refused` if it is unknown or has bought a certificate.

        *check* raises if the caller is not allowed to. A token that is void or has expired stays as it is.
        """

        def record(connection: Connection) -> tuple[KnownToken, bool]:
            now = self._clock()
            token = _numbered(connection, number, now)
            check(token)
            changed = token.may_buy
            if changed:
                token_inventory.void(connection, [number], now)
                audit.append(connection, now, by, Action.TOKEN_VOIDED, *_voided(token))
            token = _numbered(connection, number, now)
            if token.state is TokenState.USED:
                raise Refused(
                    Code.TOKEN_SPENT, f"token {number} was used for certificate {token.serial}: revoke that instead"
                )
            return token, changed

        token, changed = await self._database.write(record)
        if changed:
            log.info("token voided", token=number, device=token.device, group=token.group, by=by)
        return token

    async def void_batch(
        self, numbers: Sequence[int], check: Callable[[KnownToken], None], *, by: str
    ) -> tuple[list[KnownToken], bool]:
        """Make tokens worthless, and return them in that order, each once, and whether any was still usable.

        All or none: raises `RefusedTogether` naming all that are unknown, or that the caller may not void by *check*.
        One that has bought a certificate is reported as used and does not keep the others from being voided: whoever
        found a lost list of tokens is spending them meanwhile.
        """
        wanted = list(dict.fromkeys(numbers))

        def record(connection: Connection) -> tuple[list[KnownToken], list[KnownToken]]:
            now = self._clock()
            found = token_inventory.find_all(connection, wanted, now)
            refusals = Refusals()
            for number in wanted:
                with refusals.of("token", number):
                    check(_known(found, number))
            refusals.check("voided")
            opened = [found[number] for number in wanted if found[number].may_buy]
            token_inventory.void(connection, [each.id for each in opened], now)
            audit.append_each(connection, now, by, Action.TOKEN_VOIDED, [_voided(each) for each in opened])
            found = token_inventory.find_all(connection, wanted, now) if opened else found
            return [found[number] for number in wanted], opened

        told, opened = await self._database.write(record)
        if opened:
            log.info("tokens voided", count=len(opened), by=by)
        return told, bool(opened)


def _voided(token: KnownToken) -> tuple[str, dict[str, object]]:
    """Return what the audit log says: the subject, and the facts."""
    return token.device or f"token {token.id}", {"token": token.id, "role": token.role.value, "group": token.group}


def _numbered(connection: Connection, number: int, now: datetime) -> KnownToken:
    return _known(token_inventory.find_all(connection, [number], now), number)


def _known(found: Mapping[int, KnownToken], number: int) -> KnownToken:
    token = found.get(number)
    if token is None:
        raise Refused(Code.TOKEN_NUMBER_UNKNOWN, f"no token has the number {number}, or it was removed after its end")
    return token


def _grants(order: TokenOrder) -> list[TokenGrant]:
    _check_size(order)
    group = order.group
    try:
        if group is not None:
            check_name("group", group)
        for device in order.devices:
            check_nobody_enrols_as_the_service(check_name("device", device))
    except InvalidIdentity as error:
        raise invalid(str(error)) from error
    if group is None and order.role is Role.DEVICE:
        group = DEFAULT_GROUP
    _check_server_names(order)
    names = _dns_names(order), _ip_addresses(order)
    if order.devices:
        return [TokenGrant(device, group, order.role, *names, order.lifetime) for device in order.devices]
    return [TokenGrant(None, group, order.role, *names, order.lifetime)] * order.count


def _kept_promises(
    connection: Connection, order: TokenOrder, issued: Sequence[IssuedToken], now: datetime
) -> list[IssuedToken]:
    """Return *issued* with the group of each existing device, where *order* names none; raises as `_check_kept`."""
    here = {device.name: device for device in devices.find_all(connection, order.devices)}
    kept = []
    for each in issued:
        device = here.get(each.grant.device or "")
        grant = each.grant
        if device is not None:
            lost = _may_become_another_s(device) and claims.never_activated(device, now)
            if order.group is None and device.role is grant.role and not lost:
                grant = replace(grant, group=device.group)
            _check_kept(connection, device, grant)
        kept.append(replace(each, grant=grant, device_state=None if device is None else device.state))
    _check_promised(connection, order, now)
    return kept


def _check_promised(connection: Connection, order: TokenOrder, now: datetime) -> None:
    """Refuse to promise a name to a device that is promised to another kind of party, or the reverse."""
    if not order.devices:
        return
    for name, role in sorted(tokens.promised(connection, order.devices, now)):
        if (role is Role.DEVICE) is not (order.role is Role.DEVICE):
            raise Refused(
                Code.NAME_TAKEN,
                f"one of the two tokens could not be used: a token with role {role} is bound to {name}, and a name has "
                "one role for ever; void that one (token void --device), or choose another name",
            )


def _check_kept(connection: Connection, device: Device, grant: TokenGrant) -> None:
    """Refuse to promise *grant* if *device* would not get it."""
    if device.state is DeviceState.DECOMMISSIONED:
        raise Refused(
            Code.DEVICE_DECOMMISSIONED,
            f"a token could not be used: {device.name} was decommissioned for good, choose another name",
        )
    if (device.role, device.group) != (grant.role, grant.group) and not (
        _may_become_another_s(device) or never_came(connection, device)
    ):
        raise Refused(
            Code.NAME_TAKEN,
            f"a token could not be used: {device.name} keeps the {device.place}; ask for that role and "
            "leave the group out, or choose another name",
        )


def _may_become_another_s(device: Device) -> bool:
    """Whether the name is on trial, or its trial ended unused: as in `authorise`, not while its device is revoked."""
    return device.trial_ends_at is not None and device.state in {DeviceState.ACTIVE, DeviceState.SUSPENDED}


def _check_way(connection: Connection, group: str) -> None:
    """Refuse a promise that the group's rules would not keep."""
    ways = groups.rules_of(connection, group).ways
    if not any(WayName.TOKEN in alternative for alternative in ways):
        shown = " or ".join(map(alternative_text, ways)) or "no way: it is closed"
        kept = "".join(f" --way {alternative_text(each)}" for each in ways)
        raise Refused(
            Code.WAY_REFUSED,
            f"a token could not be used: group {group} admits devices by {shown}; to let one in by token, give it "
            f"that way for as long as it takes (fleet-provisioning group set {group}{kept} --way token)",
        )


def _check_size(order: TokenOrder) -> None:
    if not timedelta(seconds=1) <= order.ttl <= MAXIMUM_TTL:
        raise invalid(out_of_bounds("ttl_seconds", order.ttl, timedelta(seconds=1), MAXIMUM_TTL))
    if order.lifetime is not None and not timedelta(seconds=1) <= order.lifetime <= MAXIMUM_LIFE:
        raise invalid(out_of_bounds("lifetime_seconds", order.lifetime, timedelta(seconds=1), MAXIMUM_LIFE))
    if not 1 <= order.count <= MAXIMUM_BATCH or len(order.devices) > MAXIMUM_BATCH:
        raise invalid(f"a batch has 1 to {MAXIMUM_BATCH} tokens: ask for several batches")
    if order.devices and order.count != 1:
        raise invalid("count is for group tokens: devices already says how many")
    if len(set(order.devices)) != len(order.devices):
        raise invalid("devices names a device twice")
    if order.operator_role is not None and (order.role is not Role.OPERATOR or not order.devices):
        raise invalid("operator_role is for tokens with role operator, each for one by name")
    if not order.devices and order.group is None:
        raise invalid("give device, devices or group")


def _dns_names(order: TokenOrder) -> tuple[str, ...]:
    try:
        return tuple(dict.fromkeys(check_host_name(name) for name in order.dns_names))
    except InvalidServerName as error:
        raise invalid(f"dns_names: {error}") from error


def _ip_addresses(order: TokenOrder) -> tuple[str, ...]:
    try:
        return tuple(dict.fromkeys(str(ipaddress.ip_address(address)) for address in order.ip_addresses))
    except ValueError as error:
        raise invalid(f"ip_addresses: {error}") from error


def _check_server_names(order: TokenOrder) -> None:
    number = len(order.dns_names) + len(order.ip_addresses)
    if number and order.role is not Role.BROKER:
        raise invalid(f"dns_names and ip_addresses are for role broker, not {order.role}")
    if number > MAXIMUM_NAMES:
        raise invalid(f"a certificate holds {MAXIMUM_NAMES} DNS names and IP addresses at most")
