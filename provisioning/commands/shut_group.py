"""Says that a group does not admit by the way for which something was made, or is full: its devices would be refused.

That is no error: the group may be configured later. One that is closed is so on purpose.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from provisioning.commands.service_command import say
from provisioning.errors import Code

if TYPE_CHECKING:
    from collections.abc import Iterable

    from provisioning.client.enrolment import EnrolmentOperatorClient
    from provisioning.client.enrolment_answers import EnrolmentGroup
    from provisioning.client.operator_answers import IssuedToken

_GROUPS: Final = 5
"""As many are asked about: tokens may be for devices of any number."""


async def say_if_shut(client: EnrolmentOperatorClient, group: str, way: str) -> None:
    """Warn if *group* is not configured, or has no *way* that this is one step of."""
    from provisioning.client.operator import RequestRefused, ServiceUnavailable  # Late: `service_command`, rule 3.

    try:
        rules = await client.group(group)
    except RequestRefused as refusal:
        if refusal.code == Code.GROUP_UNKNOWN:
            said = f"group {group} is not configured, and admits nobody by {way}"
            say(f"fleet-provisioning: {said}: fleet-provisioning group create {group} --way {way}")
        return
    except ServiceUnavailable:  # What was made exists.
        return
    _say_if_full(rules)
    ways = rules.ways
    if way == "approval" and rules.new_key == "approve":  # An existing device's new key waits, whatever the ways.
        return
    if ways and not any(way in each.split("+") for each in ways):
        kept = "".join(f" --way {each}" for each in ways)
        said = f"group {group} admits nobody by {way}"
        say(f"fleet-provisioning: {said}: fleet-provisioning group set {group}{kept} --way {way}")


async def say_which_are_full(client: EnrolmentOperatorClient, made: Iterable[IssuedToken]) -> None:
    """Warn if a group of the new devices that *made* is for has its maximum already."""
    from provisioning.client.operator import RequestRefused, ServiceUnavailable

    new = {each.group for each in made if each.group is not None and each.device_state is None}
    for group in sorted(new)[:_GROUPS]:
        try:
            _say_if_full(await client.group(group))
        except (RequestRefused, ServiceUnavailable):  # One that is not configured has no maximum.
            continue


def _say_if_full(rules: EnrolmentGroup) -> None:
    if rules.full:
        say(
            f"fleet-provisioning: group {rules.name} has its maximum of devices, {rules.maximum_devices}: a new one "
            f"is refused until one is decommissioned: or fleet-provisioning group set {rules.name} --maximum-devices N"
        )
