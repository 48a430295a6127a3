"""Names that an operator has promised to somebody: whoever may choose a name does not choose one of these.

Theory
------
Evidence that many devices share, a claim or a token for a group, admits any *new* name. One that a token is bound to is
new until its device has enrolled; but that device gets its certificate whoever has come before it, as an operator has
decided about it. The two would be one device to everybody, and the first could wait for the second.

Rules
-----
1. Promised are: a name that an unused token is bound to; one that is on the group's list with another key, where the
   group asks its list; one that begins with the prefix of a registered manufacturer, whose devices can have no other;
   and, to operators, one for which there is a role.
2. Who proves to be that very party needs no other promise: by such a token, its own certificate from its manufacturer,
   its key on the list, or an operator's decision about the request.
3. But whoever is a device is not the broker, service or operator that a token is bound to; and a manufacturer's
   certificate proves no name that begins with the longer prefix of another.
4. A promise ends with its token, its entry, or the trust in its manufacturer.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.engine import Connection

from provisioning.enrolment.attempt import Attempt
from provisioning.enrolment.ways.way import Vouched
from provisioning.errors import Code, Refused
from provisioning.pki.role import Role
from provisioning.store import listed_devices, manufacturers, operators, tokens
from provisioning.store.groups import Group, WayName


def check_name_is_not_promised(
    connection: Connection, attempt: Attempt, rules: Group, role: Role, said: Sequence[Vouched]
) -> None:
    """Raise `Refused` if the name that *attempt* has chosen for a new party of *role* is promised to another."""
    if any(each.readmits for each in said):
        return
    name = attempt.request.common_name
    if any(each.identifies or each.decides for each in said):
        _check_is_that_party(connection, attempt, name, said)
        return
    if role is Role.OPERATOR and operators.has_role(connection, name):
        raise _taken(name, "an operator who has a role already has this name")
    if tokens.is_bound_to(connection, name, attempt.now):
        raise _taken(name, "a token is bound to this name")
    if manufacturers.with_prefix_of(connection, name):
        raise _taken(name, "it begins with the prefix of a manufacturer's devices")
    if any(WayName.LISTED in alternative for alternative in rules.ways):
        found = listed_devices.find(connection, rules.name, name)
        if found is None or found.ended_at is not None:
            return
        if found.device.spki_sha256 not in (None, attempt.request.key_fingerprint):
            raise _taken(name, f"the list of group {rules.name} has it with another public key")


def _check_is_that_party(connection: Connection, attempt: Attempt, name: str, said: Sequence[Vouched]) -> None:
    """Refuse a device that proves a name which is promised to a party that it cannot be."""
    if any(role is not Role.DEVICE for _, role in tokens.promised(connection, [name], attempt.now)):
        raise _taken(name, "a token for no device is bound to this name")
    made_by = {each.idevid[0] for each in said if each.idevid is not None}
    its_own = manufacturers.with_prefix_of(connection, name) if made_by else set()
    if its_own and its_own.isdisjoint(made_by):
        raise _taken(name, "it begins with the prefix of another manufacturer's devices")


def _taken(name: str, why: str) -> Refused:
    return Refused(
        Code.NAME_TAKEN,
        f"{name} is promised to somebody: {why}, and the credential presented does not prove to be that party; ask "
        "for a token bound to it, or choose another name",
    )
