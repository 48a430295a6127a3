"""Trust anchors that end soon: told once a day, as all clients below one are refused from then on.

Rules
-----
1. Soon is the last tenth of an anchor's life, and 90 days at most: for as long as it takes to bring a root to a fleet.
2. An anchor is not told of if another one of its bundle ends later and has its name, or its issuer: that is its
   successor, and it stays for those who have not renewed. Nor is one that has ended: a bundle may keep old ones.
3. No I/O but the log; both times are passed in, once a second.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from broker.admission.issuers import Issuer
from broker.admission.trust import Trust
from provisioning.pki.issued_by import as_compared
from provisioning.program.moments import shown_time

log = structlog.get_logger("broker")

_DAY: Final = 86400.0
_LONGEST: Final = timedelta(days=90)
_MOST: Final = 8
"""Lines of one bundle: a URL may list very many anchors."""
_SHOWN: Final = 200


class AnchorEnds:
    """What was told of one generation of trust."""

    def __init__(self) -> None:
        self._judged: Trust | None = None
        self._again_at = 0.0

    def look(self, trust: Trust | None, now: float, wall_now: float) -> None:
        """Log which anchors of *trust* end soon; *now* is monotonic, *wall_now* in seconds since 1970."""
        if trust is None or (trust is self._judged and now < self._again_at):
            return
        self._judged, self._again_at = trust, now + _DAY
        for each in _ending(trust, datetime.fromtimestamp(wall_now, UTC)):
            detail = f"{each.subject[:_SHOWN]} ends on {shown_time(each.not_after)}; nobody below it is admitted then"
            log.warning("a trust anchor ends soon", code="ANCHOR_ENDS", bundle=each.bundle.name, detail=detail)


def _ending(trust: Trust, now: datetime) -> Iterator[Issuer]:
    """Yield the anchors that end soon, `_MOST` of each bundle at most, the first to end first."""
    for bundle in trust.bundles:
        lasts: dict[Hashable, datetime] = {}
        for each in bundle.anchors:
            for name in _alike(each):
                lasts[name] = max(each.not_after, lasts.get(name, each.not_after))
        soon = (each for each in bundle.anchors if _ends_soon(each, now))
        last = (each for each in soon if all(lasts[name] == each.not_after for name in _alike(each)))
        yield from sorted(last, key=lambda each: each.not_after)[:_MOST]


def _alike(anchor: Issuer) -> tuple[Hashable, ...]:
    """Return what *anchor* has in common with its successors: its name, and below a root its issuer's."""
    by = as_compared(anchor.certificate.issuer)
    return ("named", anchor.called), *(() if by == anchor.called else (("issued by", by),))


def _ends_soon(anchor: Issuer, now: datetime) -> bool:
    return now <= anchor.not_after <= now + min(_LONGEST, (anchor.not_after - anchor.begins) / 10)
