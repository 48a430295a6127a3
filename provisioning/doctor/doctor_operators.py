"""Whether an operator may still change something, and for how long."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from sqlalchemy.engine import Connection

from provisioning.config import Settings
from provisioning.doctor.doctor_finding import Finding, failed, ok, warning
from provisioning.enrolment.operator_watch import warned_for
from provisioning.operator_role import OperatorRole
from provisioning.program.moments import shown_minute
from provisioning.store import operators

_CHECK: Final = "operators"


def operator_finding(connection: Connection, settings: Settings, now: datetime) -> Finding:
    """Say until when an admin has a valid certificate."""
    try:
        last = operators.ends(connection, now).get(OperatorRole.ADMIN)
    except ValueError as error:
        return failed(
            _CHECK, f"the store has a role that no service writes: {error}", "correct it in the table of operators"
        )
    if last is None:
        return failed(_CHECK, "no admin has a valid certificate", "fleet-provisioning ca restore-operator NAME")
    if last - now < warned_for(settings.operator_life):
        return warning(
            _CHECK,
            f"no admin has a valid certificate beyond {shown_minute(last)}: then nobody can make a token",
            "renew it: token create --device NAME --role operator --operator-role admin, and enrol with that",
        )
    return ok(_CHECK, f"an admin has a valid certificate until {last:%Y-%m-%d}")
