"""The topics that one client publishes to: those known to be permitted, and its Topic Aliases.

Hot: `permitted`, looked into for each PUBLISH. Budget: part of that of `broker.connection.connection`, measured with it
by benchmarks/receive_loop.py. Slow twin: the policy, asked each time; tests/properties/test_fast_path_properties.py.

Rules
-----
1. Both are bounded in number, and the remembered topics in length too; they belong to the Network Connection, and end
   with it [MQTT-3.3.2-7].
2. The caller decides whether a topic may be remembered as permitted (`broker.connection.authorization`); this only
   keeps it, and forgets it when the policy changes.
3. A client that publishes nothing has no set: most of ten thousand connections are in that state most of the time.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from broker.routing.router import LONGEST_CACHED
from broker.session.aliases import IncomingAliases

_NONE: frozenset[bytes] = frozenset()


class PublisherTopics:
    """What is remembered of one connection's topics."""

    __slots__ = ("_aliases", "permitted")

    def __init__(self) -> None:
        self.permitted: AbstractSet[bytes] = _NONE
        """Topics to which the client may publish on the fast path."""
        self._aliases: IncomingAliases | None = None

    def permit(self, topic: bytes, most: int) -> None:
        """Remember that the client may publish to *topic*; nothing is forgotten until there are *most* topics."""
        if len(topic) > LONGEST_CACHED:
            return
        permitted = self.permitted
        if not isinstance(permitted, set) or len(permitted) >= most:
            permitted = self.permitted = set()
        permitted.add(topic)

    def of_alias(self, alias: int, topic: bytes, maximum: int) -> bytes:
        """Return the topic of *alias*, at most *maximum*, after setting it to *topic* if that is not empty."""
        if self._aliases is None:
            self._aliases = IncomingAliases(maximum)
        return self._aliases.resolve(alias, topic)

    def forget_permissions(self) -> None:
        """Make the policy be consulted again at the next PUBLISH to any topic."""
        self.permitted = _NONE

    def clear(self) -> None:
        """Forget everything: the connection has ended."""
        self.permitted = _NONE
        self._aliases = None
