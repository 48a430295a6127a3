"""Says that a group does not admit by the way for which something was made: its devices would all be refused.

That is no error: the group may be configured later. One that is closed is so on purpose.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from provisioning.commands.service_command import say
from provisioning.errors import Code

if TYPE_CHECKING:
    from provisioning.client.enrolment import EnrolmentOperatorClient


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
    ways = rules.ways
    if way == "approval" and rules.new_key == "approve":  # An existing device's new key waits, whatever the ways.
        return
    if ways and not any(way in each.split("+") for each in ways):
        kept = "".join(f" --way {each}" for each in ways)
        said = f"group {group} admits nobody by {way}"
        say(f"fleet-provisioning: {said}: fleet-provisioning group set {group}{kept} --way {way}")
