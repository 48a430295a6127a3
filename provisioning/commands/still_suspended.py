"""What is said of certificates that a resumption was about, and that stay suspended: which, why, and what ends that.

A device as a whole and a certificate by itself are suspended for reasons of their own, mostly by different people: who
lifts one suspension has to know that there is another, and decide about that one by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from provisioning.commands.service_command import say
from provisioning.program.counted import counted

if TYPE_CHECKING:
    from provisioning.client.operator_answers import StillSuspended

_SERIALS: Final = 5
"""Serial numbers of one device that are told."""
_DEVICES: Final = 20
_MOST: Final = 100
"""So many of one device the service tells, in an answer about several."""


def say_what_stays_suspended(stay: Iterable[StillSuspended]) -> None:
    """Say of each of *stay* why it is suspended still, and how that ends; by device, and not of very many."""
    by_itself: dict[str, list[str]] = {}
    with_device: dict[str, list[str]] = {}
    for each in stay:
        (by_itself if each.by_itself else with_device).setdefault(each.device, []).append(each.serial)
    for device, serials in list(by_itself.items())[:_DEVICES]:
        _say_by_itself(device, serials)
    for device, serials in list(with_device.items())[:_DEVICES]:
        which, stays = _words(serials, device)
        say(
            f"fleet-provisioning: {which} {stays} suspended with the device, which is suspended as a whole; if that is "
            f"over, too: resume --device {device}"
        )
    more = max(len(by_itself) - _DEVICES, 0) + max(len(with_device) - _DEVICES, 0)
    if more:
        say(
            f"fleet-provisioning: certificates of {counted(more, 'more device')} stay suspended: certificate list "
            "--state suspended"
        )


def _say_by_itself(device: str, serials: list[str]) -> None:
    which, stays = _words(serials, device)
    was = "it was suspended by itself" if len(serials) == 1 else "they were suspended by themselves"
    remedy = " ".join(["resume", *(f"--serial {each}" for each in serials)])
    if len(serials) > _SERIALS:
        remedy = f"certificate list --device {device} --state suspended, resume --serials-file"
    say(f"fleet-provisioning: {which} {stays} suspended, as {was}; if that is over: {remedy}")


def _words(serials: list[str], device: str) -> tuple[str, str]:
    """Return which certificates they are, and "stay" or "stays" as fits them."""
    if len(serials) == 1:
        return f"certificate {serials[0]} of {device}", "stays"
    number = f"{_MOST} or more certificates" if len(serials) == _MOST else counted(len(serials), "certificate")
    return f"{number} of {device}", "stay"
