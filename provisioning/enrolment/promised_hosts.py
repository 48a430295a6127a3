"""Host names that a token would promise in vain: enrolment would refuse them, so the order is refused already.

Rules
-----
1. A name and a group of which the profile's patterns make no host name, or one that could be another device's
   (`provisioning.ca.host_patterns`), get no token; nor does a group of which they make none for any name.
2. Nor is a token made while one of its host names is another's, as `provisioning.enrolment.host_names` would find.
3. Enrolment decides as before: profiles change, and a name may be taken between the order and the request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final

from sqlalchemy.engine import Connection

from provisioning.ca.name_policy import NameRefused, host_name_of
from provisioning.ca.profile import Profile
from provisioning.enrolment.groups import rules_for
from provisioning.enrolment.host_names import host_name_in
from provisioning.errors import Code, Refused
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from provisioning.store import host_names
from provisioning.store.claims import never_activated
from provisioning.store.tokens import TokenGrant

_ANY_DOMAIN: Final = "any"
"""No host name has the trust domain in it."""
_ANY_NAME: Final = "x"
"""The best one that a device of a group could have."""


def check_hosts(
    connection: Connection, profiles: Mapping[str, Profile], grants: Sequence[TokenGrant], now: datetime
) -> None:
    """Raise `Refused` if enrolment would refuse the host names of one of *grants* now."""
    of_place: dict[tuple[Role, str | None], Profile | None] = {}
    for grant in dict.fromkeys(grants):
        place = grant.role, grant.group
        if place not in of_place:
            of_place[place] = profiles.get(rules_for(connection, *place).profile)
        profile = of_place[place]
        if profile is None:  # An operator has to configure it; enrolment says so.
            continue
        for host, is_shared in _hosts(profile, grant):
            _check_is_free(connection, grant, host, now, is_shared=is_shared)


def _hosts(profile: Profile, grant: TokenGrant) -> Iterator[tuple[str, bool]]:
    """Yield the host names that the certificate for *grant* would have, and whether servers may share it."""
    if profile.names.dns_patterns:
        identity = Identity(_ANY_DOMAIN, grant.role, grant.device or _ANY_NAME, grant.group)
        try:
            built = [host_name_of(pattern, identity) for pattern in profile.names.dns_patterns]
        except NameRefused as refusal:
            raise Refused(refusal.code, f"a token could not be used: {refusal.detail}") from refusal
        if grant.device is not None:
            yield from ((each, False) for each in built)
    granted = profile.names.granted
    if granted:
        yield from ((each, True) for each in grant.dns_names)
    if grant.device is not None and (granted or profile.serves) and (called := host_name_in(grant.device)):
        yield called, granted


def _check_is_free(connection: Connection, grant: TokenGrant, host: str, now: datetime, *, is_shared: bool) -> None:
    holder = host_names.holder(connection, host)
    if holder is None or holder.name == grant.device or holder.state.is_end or never_activated(holder, now):
        return
    if not (is_shared and holder.role is not Role.DEVICE):
        raise Refused(
            Code.CSR_NAME,
            f"a token could not be used: the host name {host[:80]!r} is that of {holder.role} {holder.name}; choose "
            "another, or revoke or decommission that one first",
        )
