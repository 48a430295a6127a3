"""A group whose profile the settings have lost is told before its devices are refused."""

from __future__ import annotations

import asyncio
from pathlib import Path

from structlog.testing import capture_logs

from provisioning.authorities.issuing_policy import profiles_of
from provisioning.config import ProfileSettings, Settings
from provisioning.doctor.doctor_profiles import group_findings, profile_findings
from provisioning.enrolment.groups import GroupService
from provisioning.enrolment.lost_profiles import ProfileWatch
from provisioning.service.reloading import LiveProfiles
from provisioning.store.groups import Group
from tests.support.fleet import Fleet

WITH = Settings(directory=Path("there"), profiles={"lamp": ProfileSettings(role="device")})
WITHOUT = Settings(directory=Path("there"))
SERVICES = Settings(directory=Path("there"), profiles={"lamp": ProfileSettings(role="service")})


async def test_a_lost_profile_is_told_at_once_once_and_again_when_it_is_lost_again(fleet: Fleet) -> None:
    profiles = LiveProfiles(profiles_of(WITH))
    groups = GroupService(fleet.database, profiles, fleet.clock)
    lamp = await groups.create(Group("lamps", profile="lamp"), by="admin")
    await groups.create(Group("meters"), by="admin")
    watch = ProfileWatch(fleet.database, profiles, profiles.exchanged)
    told = {"event": "profile not configured", "code": "PROFILE_UNKNOWN", "profile": "lamp", "groups": ["lamps"]}
    with capture_logs() as logs:
        await watch.look()
        assert not logs
        running = asyncio.create_task(watch.run())
        async with asyncio.timeout(20):
            for settings, expected in ((WITHOUT, 1), (SERVICES, 1), (WITH, 1), (WITHOUT, 2)):
                profiles.exchange(profiles_of(settings))
                assert groups.knows_profile(lamp.group) is (settings is WITH)
                while profiles.exchanged.is_set():
                    await asyncio.sleep(0)
                await watch.look()
                assert len(logs) == expected, settings
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert [dict(each) for each in logs] == [{**told, "log_level": "error"}] * 2


async def test_the_doctor_tells_which_groups_have_lost_theirs_and_what_is_no_profile(fleet: Fleet) -> None:
    groups = GroupService(fleet.database, profiles_of(WITH), fleet.clock)
    for number in range(7):
        await groups.create(Group(f"lamps-{number}", profile="lamp"), by="admin")
    assert not await fleet.database.read(lambda connection: [*group_findings(connection, WITH)])
    [lost] = await fleet.database.read(lambda connection: [*group_findings(connection, WITHOUT)])
    assert "'lamp', of group lamps-0, lamps-1, lamps-2, lamps-3, lamps-4 and 2 more, is not configured" in lost.detail
    assert lost.remedy.endswith("group set lamps-0 --profile device")
    wrong = Settings(directory=Path("there"), profiles={"lamp": ProfileSettings(role="king")})
    assert not await fleet.database.read(lambda connection: [*group_findings(connection, wrong)]), "said once"
    [unusable] = profile_findings(wrong)
    assert "profiles.lamp" in unusable.detail
    assert not [*profile_findings(WITH)]
