"""Whose end is told of before it comes: of an anchor that nobody has succeeded, once a day, and anew after a reload."""

from __future__ import annotations

from datetime import timedelta

from structlog.testing import capture_logs

from broker.admission.bundle import TrustBundle
from broker.admission.trust import Trust
from broker.upkeep.anchor_ends import AnchorEnds
from tests.support.pki import Held, shared_pki

PKI = shared_pki()
DAY = 86400.0


def told(ends: AnchorEnds, trust: Trust | None, now: float, day: float) -> list[str]:
    """Return what is said of *trust* at *now*, so many days after the PKI was made."""
    with capture_logs() as logs:
        ends.look(trust, now, PKI.now.timestamp() + day * DAY)
    return [f"{each['code']} {each['bundle']}: {each['detail']}" for each in logs]


def of(*anchors: Held) -> Trust:
    return Trust([TrustBundle("plant", [each.certificate for each in anchors])])


def test_it_is_told_once_a_day_and_after_a_reload() -> None:
    """A whole fleet was refused from one second to the next, and nothing had said so before."""
    plant = PKI.authority("Plant CA", not_after=PKI.now + timedelta(days=8))  # Of ten: its last one begins after seven.
    trust, ends = of(plant), AnchorEnds()
    when = f"{PKI.now + timedelta(days=8):%Y-%m-%d %H:%M:%S} UTC"
    line = f"ANCHOR_ENDS plant: CN=Plant CA ends on {when}; nobody below it is admitted then"
    assert told(ends, None, 0.0, 7.5) == []
    assert told(ends, trust, 0.0, 6.9) == []
    assert told(ends, trust, DAY, 7.1) == [line]
    assert told(ends, trust, 2 * DAY - 1, 7.9) == []
    assert told(ends, trust, 2 * DAY, 7.95) == [line]
    assert told(ends, of(plant), 2 * DAY + 1, 7.95) == [line]
    assert told(ends, trust, 3 * DAY + 2, 8.1) == [], "then there are refusals to see"


def test_who_has_a_successor_is_not_told_of() -> None:
    plant = PKI.authority("Plant CA", not_after=PKI.now + timedelta(days=8))
    longer = PKI.authority("Plant CA", not_after=PKI.now + timedelta(days=80))
    other = PKI.authority("Other CA", not_after=PKI.now + timedelta(days=80))
    assert [told(AnchorEnds(), of(plant, each), 0.0, 7.5) != [] for each in (longer, other)] == [False, True]
    first = PKI.authority("CA 1", PKI.root, not_after=PKI.now + timedelta(days=8))
    second = PKI.authority("CA 2", PKI.root, not_after=PKI.now + timedelta(days=80))
    assert told(AnchorEnds(), of(first, second, other), 0.0, 7.5) == [], "of one line"
    many = [PKI.authority(f"CA {number}", not_after=PKI.now + timedelta(days=8)) for number in range(9)]
    assert len(told(AnchorEnds(), of(*many), 0.0, 7.5)) == 8, "a URL may list very many"
