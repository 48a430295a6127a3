"""Until when devices have a valid certificate: what tells those that do not renew from those that have a later one."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from provisioning.client.operator import OperatorClient

_FEW: Final = 200
"""So many are asked about one by one; for more, the list of all is read, a page of 500 in the time of some."""


async def last_ends(
    client: OperatorClient, names: AbstractSet[str], group: str | None, *, few: int = _FEW
) -> dict[str, datetime | None]:
    """Return when the newest valid certificate of each of *names*, of *group* if that is given, ends."""
    if len(names) <= few:
        return {name: (await client.device(name)).certificate_not_after for name in sorted(names)}
    return {each.name: each.certificate_not_after async for each in client.devices(group=group) if each.name in names}
