"""What a benchmark is to do: how many clients, how fast, publishing or subscribing how much.

Handles: the placeholders of emqtt-bench's topics: ``%i`` the client's number, ``%c`` its client identifier, ``%g`` the
group in its certificate, ``%%`` a per cent sign.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from device_sim.bench.payload import SHORT
from device_sim.bench.sizes import USUAL, Sizes

_PLACEHOLDER = re.compile(r"%(.)", re.DOTALL)


class InvalidPlan(ValueError):
    """The benchmark cannot be run as given; the text names the option and the remedy."""


class Kind(StrEnum):
    """What the clients do once they are connected."""

    CONN = "conn"
    PUB = "pub"
    SUB = "sub"


@dataclass(frozen=True, slots=True)
class Plan:
    """A benchmark. *rate* is connections per second, *interval* the seconds between two messages of one client."""

    kind: Kind
    clients: int
    rate: float
    topic: str = ""
    qos: int = 0
    interval: float = 1.0
    size: Sizes = USUAL
    retain: bool = False
    limit: int = 0
    """Total messages after which it ends; 0 for no limit."""
    content: bytes | None = None
    """The user's own payload, which has no stamp and no *size*."""
    seconds: float = 0.0
    """Seconds after which it ends; 0 to run until Ctrl-C."""

    def __post_init__(self) -> None:
        if self.kind is not Kind.CONN and not self.topic:
            raise InvalidPlan("-t: name a topic, as in -t fleet/%g/%c/telemetry")
        if self.kind is Kind.PUB and self.content is None and self.size.between[0] < SHORT:
            raise InvalidPlan(f"-s {self.size}: a payload carries its time, so it has at least {SHORT} bytes")
        topic_for(self.topic, 0, "", "")


def topic_for(topic: str, number: int, client_id: str, group: str) -> str:
    """Return *topic* for one client. Raises `InvalidPlan`."""
    words = {"i": str(number), "c": client_id, "g": group, "%": "%"}

    def replaced(match: re.Match[str]) -> str:
        word = words.get(match[1])
        if word is None:
            raise InvalidPlan(f"-t {topic}: %{match[1]} is not known; there are %i, %c, %g and %%")
        return word

    return _PLACEHOLDER.sub(replaced, topic)
