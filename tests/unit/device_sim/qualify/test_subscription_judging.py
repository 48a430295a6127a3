"""The verdict on a device whose broker no longer knows that it has subscribed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.mqtt.connect import Connect
from broker.mqtt.packets import Connack, Packet, Pingreq, Subscribe, SubscriptionRequest, Unsubscribe
from device_sim.attack.verdict import Verdict
from device_sim.qualify.attempt import Attempt
from device_sim.qualify.starvation import Waited, on_this_machine
from device_sim.qualify.subscription_judging import filters_of, subscribes_again

PASS, FAIL, SKIP = Verdict.PASS, Verdict.FAIL, Verdict.SKIP
WINDOW = 10.0


def subscribe(*filters: str) -> Packet:
    return Subscribe(1, tuple(map(SubscriptionRequest, filters)))


def served(at: float, *packets: Packet, ended: float | None = None) -> Attempt:
    came = [(at, Connect("d", clean_start=False)), *((at, packet) for packet in packets)]
    return Attempt(at, tls=at, answered=at, packets=came, sent=[Connack()], ended=ended)


LESS = served(0.0, subscribe("a", "b"), Unsubscribe(2, ("a",)), ended=1.0)
BOTH = served(0.0, subscribe("cmd/#"), subscribe("time"), ended=1.0)
OWN = served(0.0, subscribe("cmd/#", "reply/1"), ended=1.0)
OLDER = replace(served(0.0), packets=[(0.0, Connect("e")), (0.5, subscribe("state"))])
"""Of two connections at a time the older one, which subscribes later: the stand breaks the other."""
NEWER = served(0.2, subscribe("cmd/#"), ended=1.2)


@pytest.mark.parametrize(
    ("attempts", "ending", "expected", "words"),
    [
        ([BOTH, served(2.0, subscribe("time", "cmd/#"))], "", PASS, ""),
        ([BOTH, served(2.0, subscribe("time"), ended=2.5), served(3.0, subscribe("cmd/#"))], "", PASS, ""),
        ([BOTH, served(2.0, Pingreq())], "", FAIL, "no command"),
        ([BOTH, served(2.0, subscribe("time"))], "", FAIL, "no command"),
        ([BOTH, served(9.0, Pingreq())], "", SKIP, "--window"),
        ([BOTH, served(9.0, Pingreq())], "it ended with status 1", FAIL, "no command"),
        ([BOTH, served(9.0, Pingreq(), ended=9.1)], "", FAIL, "no command"),
        ([BOTH, Attempt(2.0, ended=2.1)], "", SKIP, "come again"),
        ([BOTH], "", SKIP, "come again"),
        ([served(0.0, Pingreq(), ended=1.0), served(2.0, Pingreq())], "", SKIP, "to nothing"),
        ([LESS, served(2.0, subscribe("b"))], "", PASS, ""),
        ([BOTH, served(2.0, subscribe("time", "cmd/#"), Unsubscribe(2, ("time",)))], "", PASS, ""),
        ([BOTH, served(2.0, subscribe("cmd/#"), Unsubscribe(2, ("time",)))], "", PASS, ""),
        ([OWN, served(2.0, subscribe("cmd/#", "reply/2"))], "", SKIP, "to reply/2 and no more to reply/1"),
        ([OWN, served(2.0, subscribe("reply/2"), ended=3.0), served(4.0, subscribe("reply/3"))], "", FAIL, "no comm"),
        ([BOTH, served(2.0, Pingreq(), ended=2.5), served(9.9, Pingreq())], "", SKIP, "--window"),
        ([BOTH, served(2.0, Pingreq(), ended=5.5), served(9.9, Pingreq())], "", FAIL, "no command"),
        ([BOTH, served(0.5, Pingreq(), ended=9.5)], "", SKIP, "come again"),
        ([served(0.0, subscribe("a")), served(0.5, Pingreq())], "", SKIP, "not broken yet"),
        ([OLDER, NEWER, served(2.0, subscribe("cmd/#"))], "", PASS, ""),
        ([OLDER, NEWER, served(2.0, Pingreq())], "", FAIL, "no command"),
        ([], "", SKIP, "to nothing"),
    ],
)
def test_a_device_subscribes_again(attempts: list[Attempt], ending: str, expected: Verdict, words: str) -> None:
    line = subscribes_again(attempts, WINDOW, "no command comes any more", ending)
    assert (line.name, line.verdict) == ("subscribes-again", expected)
    assert words in line.why


@pytest.mark.parametrize(
    ("attempts", "expected", "words"),
    [
        ([served(0.0, Pingreq())], FAIL, "no command"),
        ([served(9.0, Pingreq())], FAIL, "no command"),
        ([Attempt(0.0, ended=0.1), served(9.0, Pingreq())], SKIP, "--window"),
        ([], SKIP, "come again"),
        ([served(0.0, subscribe("time"), ended=1.0), served(2.0, subscribe("time"))], FAIL, "no command"),
        ([BOTH, served(2.0, subscribe("time", "cmd/#"))], PASS, ""),
        ([BOTH, served(2.0, subscribe("time"))], FAIL, "no command"),
        ([served(0.0, subscribe("time", "reply/1"), ended=1.0), served(2.0, subscribe("time", "reply/1"))], PASS, ""),
    ],
)
def test_what_hardware_subscribed_to_at_its_start_counts_in_each_stage(
    attempts: list[Attempt], expected: Verdict, words: str
) -> None:
    known = filters_of([served(0.0, Pingreq()), BOTH, OWN])
    assert known == {"cmd/#", "time"}
    assert filters_of([OLDER, NEWER]) == {"cmd/#"}
    line = subscribes_again(attempts, WINDOW, "no command comes any more", known=known)
    assert (line.verdict, words in line.why) == (expected, True)


def test_who_had_no_core_may_only_have_been_late() -> None:
    line = subscribes_again([BOTH, served(2.0, Pingreq())], WINDOW, "no command comes any more")
    assert on_this_machine(line, Waited(8.0, 10.0)).verdict is Verdict.INVALID
