"""Until when operators of each role can get in, and that it is said before the last admin cannot."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from sqlalchemy import text
from structlog.testing import capture_logs

from provisioning.api.metrics import OperatorsCollector
from provisioning.config import Settings
from provisioning.doctor.doctor_finding import Verdict
from provisioning.doctor.doctor_operators import operator_finding
from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.operator_watch import OperatorWatch, warned_for
from provisioning.enrolment.tokens import TokenOrder
from provisioning.operator_role import OperatorRole
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from tests.support.fleet import Fleet
from tests.support.requests import csr_der

LIFE = timedelta(days=365)


async def enrol(fleet: Fleet, name: str, role: OperatorRole) -> None:
    order = TokenOrder([name], None, Role.OPERATOR, operator_role=role)
    (token,) = await fleet.token_service.create(order, by="admin")
    await fleet.enrolment.enrol(csr_der(names=[name]), TokenCredential(name, token.token))


def figures(watch: OperatorWatch) -> dict[str, float]:
    """Return when the last of each role ends; when that is near follows from it."""
    last, due = (
        {each.labels["operator_role"]: each.value for each in family.samples}
        for family in OperatorsCollector(watch).collect()
    )
    assert due == {role: end and end - warned_for(LIFE).total_seconds() for role, end in last.items()}
    return last


async def found(fleet: Fleet) -> tuple[Verdict, str]:
    settings = Settings(directory=Path("nowhere"))
    finding = await fleet.database.read(lambda connection: operator_finding(connection, settings, fleet.clock()))
    return finding.verdict, finding.detail


async def test_the_last_end_of_each_role_counts_and_nobody_is_none(fleet: Fleet) -> None:
    watch = OperatorWatch(fleet.database, fleet.clock, LIFE)
    assert figures(watch) == {}, "nothing is told before it is known"
    await enrol(fleet, "anna", OperatorRole.ADMIN)
    fleet.clock.advance(timedelta(days=10))
    await enrol(fleet, "bert", OperatorRole.ADMIN)
    await enrol(fleet, "carl", OperatorRole.AUDITOR)
    await watch.look()
    ends = watch.ends
    assert ends is not None
    assert ends.keys() == {OperatorRole.ADMIN, OperatorRole.AUDITOR}
    assert ends[OperatorRole.ADMIN] == ends[OperatorRole.AUDITOR], "bert's, not anna's"
    assert figures(watch) == {
        "admin": ends[OperatorRole.ADMIN].timestamp(),
        "auditor": ends[OperatorRole.AUDITOR].timestamp(),
        "enroller": 0,
    }
    await fleet.revocation.revoke_device("carl", RevocationReason.SUPERSEDED, by="anna")
    await watch.look()
    assert figures(watch)["auditor"] == 0


async def test_that_the_last_admin_s_certificate_ends_is_said_once_in_time_and_when_it_has(fleet: Fleet) -> None:
    await enrol(fleet, "anna", OperatorRole.ADMIN)
    watch = OperatorWatch(fleet.database, fleet.clock, LIFE)
    with capture_logs() as logs:
        await watch.look()
        assert not logs
        assert (await found(fleet))[0] is Verdict.OK
        assert watch.ends is not None
        last = watch.ends[OperatorRole.ADMIN]
        fleet.clock.advance(last - fleet.clock() - warned_for(LIFE) + timedelta(seconds=1))
        for _ in range(2):
            await watch.look()
        assert [(each["code"], each["until"]) for each in logs] == [("LAST_ADMIN_ENDS", last)]
        assert (await found(fleet))[0] is Verdict.WARNING
        fleet.clock.advance(warned_for(LIFE))
        for _ in range(2):
            await watch.look()
        assert [each["code"] for each in logs] == ["LAST_ADMIN_ENDS", "NO_ADMIN"]
        assert await found(fleet) == (Verdict.FAILED, "no admin has a valid certificate")
        await enrol(fleet, "bert", OperatorRole.ADMIN)
        await watch.look()
        assert [each["code"] for each in logs if "code" in each] == ["LAST_ADMIN_ENDS", "NO_ADMIN"]
        assert (await found(fleet))[0] is Verdict.OK


async def test_a_role_that_no_version_has_written_is_told_and_ends_nothing(fleet: Fleet) -> None:
    await enrol(fleet, "anna", OperatorRole.ADMIN)
    await fleet.database.write(lambda connection: connection.execute(text("UPDATE operators SET role = 'emperor'")))
    with capture_logs() as logs:
        await OperatorWatch(fleet.database, fleet.clock, LIFE).go_round()
    assert [each["code"] for each in logs] == ["OPERATOR_WATCH_FAILED"]
    assert "'emperor' is not a valid" in logs[0]["detail"]
    verdict, detail = await found(fleet)
    assert (verdict, "'emperor' is not a valid" in detail) == (Verdict.FAILED, True)


def test_what_lives_briefly_is_warned_of_later() -> None:
    assert warned_for(LIFE) == timedelta(days=30)
    assert warned_for(timedelta(days=9)) == timedelta(days=3)
