"""Names that an operator has promised to somebody: whoever may choose a name does not choose one of these.

Theory
------
Evidence that many devices share, a claim or a token for a group, admits any *new* name. One that a token is bound to is
new until its device has enrolled; but that device gets its certificate whoever has come before it, as an operator has
decided about it. The two would be one device to everybody, and the first could wait for the second.

Rules
-----
1. Promised are: a name that an unused token is bound to; one that is on the group's list with another key, where the
   group asks its list; and, to operators, one for which there is a role.
2. Who proves to be that very party needs no other promise: by such a token, its own certificate from its manufacturer,
   its key on the list, or an operator's decision about the request.
3. A promise ends with its token or its entry.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.engine import Connection

from provisioning.enrolment.attempt import Attempt
from provisioning.enrolment.ways.way import Vouched
from provisioning.errors import Code, Refused
from provisioning.pki.role import Role
from provisioning.store import listed_devices, operators, tokens
from provisioning.store.groups import Group, WayName


def check_name_is_not_promised(
    connection: Connection, attempt: Attempt, rules: Group, role: Role, said: Sequence[Vouched]
) -> None:
    """Raise `Refused` if the name that *attempt* has chosen for a new party of *role* is promised to another."""
    if any(each.readmits or each.identifies or each.decides for each in said):
        return
    name = attempt.request.common_name
    if role is Role.OPERATOR and operators.has_role(connection, name):
        raise _taken(name, "an operator who has a role already has this name")
    if tokens.is_bound_to(connection, name, attempt.now):
        raise _taken(name, "a token is bound to this name")
    if any(WayName.LISTED in alternative for alternative in rules.ways):
        found = listed_devices.find(connection, rules.name, name)
        if found is not None and found[0].spki_sha256 not in (None, attempt.request.key_fingerprint):
            raise _taken(name, f"the list of group {rules.name} has it with another public key")


def _taken(name: str, why: str) -> Refused:
    return Refused(
        Code.NAME_TAKEN,
        f"{name} is promised to somebody: {why}, and the credential presented is for any new name; ask for a token "
        "bound to it, or choose another name",
    )
