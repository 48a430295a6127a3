"""What is said of what is left to a device of which one certificate has ended: others of its, and its tokens.

``--serial`` and ``--certificate`` are about one certificate, as of a device that has another one: its device stays
admitted with that, and its tokens are as good as before. Whoever meant the device has to be told: a device that has
renewed has two valid certificates, mostly for two keys, until the older one expires.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from provisioning.commands.service_command import say
from provisioning.program.counted import counted

if TYPE_CHECKING:
    from provisioning.client.enrolment import EnrolmentOperatorClient
    from provisioning.client.operator_answers import OtherForKey

_SERIALS: Final = 5
"""Serial numbers of one device that are told."""
_MOST: Final = 20
"""Devices that are asked about: of more, only that it may be so is said."""


def say_which_are_for_the_same_key(others: Iterable[OtherForKey]) -> None:
    """Say which certificates are good still for the keys of those that were suspended by themselves."""
    of_device: dict[str, list[str]] = {}
    for each in {each.serial: each for each in others}.values():  # Several steps may have found it.
        of_device.setdefault(each.device, []).append(each.serial)
    for device, serials in of_device.items():
        which = f"another certificate for the same key, which is good: {serials[0]}"
        remedy = " ".join(["suspend", *(f"--serial {each}" for each in serials)])
        if len(serials) > 1:
            which = f"{len(serials)} other certificates for the same key, which are good"
        if len(serials) > _SERIALS:
            remedy = f"suspend --device {device}"
        say(
            f"fleet-provisioning: {device} has {which}; if the key is in doubt: {remedy}; if others have it: "
            f"revoke --serial {serials[0]} --reason keyCompromise, which ends all that are for it"
        )


def say_who_had_not_come(names: Sequence[str], then: str) -> None:
    """Say by which *names* nobody had enrolled when they were ended, as may be if one is mistyped; *then*: who may."""
    if names:
        shown = ", ".join(names[:_MOST])
        more = f" and {len(names) - _MOST} more" if names[_MOST:] else ""
        say(f"fleet-provisioning: no certificate was ever issued to {shown}{more}, and {then}")


async def tell_what_is_left(client: EnrolmentOperatorClient, devices: Iterable[str], ending: str) -> None:
    """Say which of *devices* have certificates and tokens that still admit them; *ending*: the command's name."""
    from provisioning.client.operator import RequestRefused, ServiceUnavailable  # Late: `service_command`, rule 3.
    from provisioning.pki.identity import PROVISIONING

    names = [name for name in dict.fromkeys(devices) if name != PROVISIONING]  # That is no device, and renews itself.
    if len(names) > _MOST:
        say(
            "fleet-provisioning: these devices may have other valid certificates and open tokens: certificate list, "
            f"token list --state open; to end the devices' access, {ending} --devices-file"
        )
        return
    for name in names:
        try:
            valid = (await client.count_certificates(device=name)).get("active", 0)
            tokens = len([each async for each in client.tokens(device=name, state="open")])
        except (RequestRefused, ServiceUnavailable) as error:  # What was asked for is done all the same.
            say(f"fleet-provisioning: whether other certificates and tokens of {name} are left cannot be told: {error}")
            return
        if valid:
            has = f"{name} has {counted(valid, 'other valid certificate')}, which this does not {ending}"
            say(f"fleet-provisioning: {has}: to end the device's access, {ending} --device {name}")
        if tokens:
            has = f"{name} has {counted(tokens, 'open token')}, which this does not void"
            say(f"fleet-provisioning: {has}: if it is not to come back, token void --device {name}")
