"""What is said of the tokens of a device of which one certificate has ended: they are as good as before.

``--serial`` is about one certificate, as of a device that has another one: its device stays admitted, and so do its
tokens. Whoever meant the device has to be told, as the device comes back with them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from provisioning.commands.service_command import counted, say

if TYPE_CHECKING:
    from provisioning.client.enrolment import EnrolmentOperatorClient

_MOST: Final = 20
"""Devices that are asked about: of more, only that it may be so is said."""


async def tell_of_open_tokens(client: EnrolmentOperatorClient, devices: Iterable[str]) -> None:
    """Say which of *devices* have tokens that still admit them."""
    from provisioning.client.operator import RequestRefused, ServiceUnavailable  # Late: `service_command`, rule 3.

    names = list(dict.fromkeys(devices))
    if len(names) > _MOST:
        say("fleet-provisioning: open tokens of these devices stay valid: token list --state open, token void --device")
        return
    for name in names:
        try:
            number = len([each async for each in client.tokens(device=name, state="open")])
        except (RequestRefused, ServiceUnavailable) as error:  # What was asked for is done all the same.
            say(f"fleet-provisioning: whether open tokens of {name} are left cannot be told: {error}")
            return
        if number:
            has = f"{name} has {counted(number, 'open token')}, which this does not void"
            say(f"fleet-provisioning: {has}: if it is not to come back, token void --device {name}")
