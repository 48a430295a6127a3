"""Whom an operator may have meant by a name that no device has: "did you mean meter-17?".

Theory
------
A fleet may have a million devices. Names are looked through in their order, from the given one in both directions: a
slip behind the first characters leaves a name close by. A small fleet is looked through completely.

Rules
-----
1. Only for operators: a device learns nothing of other names.
2. The cost is bounded, `_EACH_WAY` names in both directions, read from the index of names.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import select
from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refused
from provisioning.program.near_names import NearNames, did_you_mean
from provisioning.store.tables import devices

_EACH_WAY: Final = 1000
_SHOWN: Final = 80


def no_such_device(connection: Connection, name: str) -> Refused:
    """Return the refusal for *name*, which no device has, with the question whether a similar one is meant."""
    near = NearNames(name)
    column = devices.c.name
    for beside, order in ((column < name, column.desc()), (column > name, column.asc())):
        for (each,) in connection.execute(select(column).where(beside).order_by(order).limit(_EACH_WAY)):
            near.see(each)
    meant = f": {did_you_mean(near.found)}" if near.found else ""
    return Refused(Code.DEVICE_UNKNOWN, f"no device is called {name[:_SHOWN]!r}{meant}")
