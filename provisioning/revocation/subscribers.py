"""Who follows the revocation feed at this process: every subscription, with its party and address.

Rules
-----
1. One party has at most `MOST_OF_ONE` subscriptions. A revocation is written to all subscribers in turn, so a party
   with a thousand would delay it for the others.
2. Beyond the limit, the address with the most subscriptions loses its oldest to an address with at least two fewer;
   otherwise the new one is refused. So brokers that share a name do not disconnect each other, and whoever has copied a
   broker's key cannot shut it out from one address.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import structlog

from provisioning.errors import Code, Refused
from provisioning.pki import address_key
from provisioning.revocation.subscription import Subscription

log = structlog.get_logger(__name__)

MOST_OF_ONE: Final = 16
"""Subscriptions of one party at one process: a broker has one, and for half a minute those that it has lost."""


class Subscribers:
    """The subscriptions of this process."""

    def __init__(self) -> None:
        self._subscriptions: Final[dict[Subscription, tuple[str, str]]] = {}
        """Each one's party and address, the oldest first."""

    def __len__(self) -> int:
        return len(self._subscriptions)

    def add(self, subscription: Subscription, by: str, host: str) -> None:
        """Add the *subscription* of the party called *by*; end another one if they are too many.

        Raises `Refused` if none may be ended.
        """
        host = address_key.shown(host)  # A client with an IPv6 /64 could use sixteen addresses at once.
        self._make_room(by, host)
        self._subscriptions[subscription] = (by, host)

    def _make_room(self, by: str, host: str) -> None:
        theirs = {each: where for each, (whose, where) in self._subscriptions.items() if whose == by}
        if len(theirs) < MOST_OF_ONE:
            return
        of_address = Counter(theirs.values())
        crowded, most = of_address.most_common(1)[0]
        if most < of_address[host] + 2:
            log.warning("feed followed too often", code=Code.FEED_CROWDED, subscriber=by, address=host)
            raise Refused(
                Code.FEED_CROWDED,
                f"{by} follows the feed {len(theirs)} times already: give each broker a name of its own, with "
                "`fleet-provisioning token create --device NAME --role broker`, and enrol it anew",
            )
        oldest = next(each for each, where in theirs.items() if where == crowded)
        log.warning("feed follower disconnected", code=Code.FEED_CROWDED, subscriber=by, address=crowded)
        oldest.close()
        self.remove(oldest)

    def remove(self, subscription: Subscription) -> None:
        """Forget a *subscription* that has ended."""
        self._subscriptions.pop(subscription, None)

    def wake(self) -> None:
        """Wake all: there is something new."""
        for each in self._subscriptions:
            each.wake()

    def close(self) -> None:
        """End all, whatever they have."""
        for each in self._subscriptions:
            each.close()

    def finish(self) -> None:
        """End each when it has all that is known."""
        for each in self._subscriptions:
            each.finish()
