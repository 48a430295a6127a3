"""Which of a device's certificates have surely expired, so that ending the device need not touch them.

Our clock may be ahead, by a day or by a time zone. What it calls expired is still accepted by everybody whose clock is
right, and would be again by us once it is set: the device would be ended here, and good in the feed, in CRLs and OCSP.
So a certificate has surely expired only if the device got another one after its end. The newest never has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from provisioning.store.certificates import StoredCertificate


def surely_expired(issued: Iterable[StoredCertificate], now: datetime) -> Mapping[int, datetime]:
    """Return for each device, by its id, the time by whose end a certificate of it has surely expired.

    Of each device *issued* ends with the newest certificate.
    """
    return {each.device.id: min(each.issued_at, now) for each in issued}
