"""A device that looks whether the port is open, before it connects: that is no attempt from which anything follows."""

from __future__ import annotations

import pytest

from broker.mqtt.codes import ProtocolVersion
from broker.mqtt.connect import Connect
from device_sim.attack.verdict import Verdict
from device_sim.qualify import judging
from device_sim.qualify.attempt import Attempt

PASS, WARN, FAIL, SKIP = Verdict.PASS, Verdict.WARN, Verdict.FAIL, Verdict.SKIP
PROBE = Attempt(0.0, ended=0.1)
"""A connection without a byte."""


def waiting(at: float, ended: float | None = None) -> Attempt:
    """Return an attempt that has said ClientHello, and waits for an answer until it has *ended*."""
    return Attempt(at, offered=0x0304, ended=ended)


@pytest.mark.parametrize(
    ("attempts", "expected"),
    [
        ([PROBE, waiting(0.5)], WARN),
        ([PROBE, waiting(0.5, 5.5)], PASS),
        ([PROBE, Attempt(0.5)], WARN),  # It waits for whoever speaks first.
        ([PROBE], SKIP),
    ],
)
def test_a_port_that_was_tried_is_not_a_server_that_was_given_up(attempts: list[Attempt], expected: Verdict) -> None:
    (line,) = judging.gives_up(attempts, 20.0)
    assert (line.name, line.verdict) == ("gives-up", expected)


@pytest.mark.parametrize(
    ("attempts", "expected", "words"),
    [
        ([PROBE, waiting(0.5)], WARN, "does it ever give up?"),
        ([PROBE, waiting(0.5, 5.5), waiting(8.0)], PASS, ""),
        ([PROBE, waiting(0.5, 5.5)], SKIP, "one attempt in 20 s"),
        ([PROBE, Attempt(1.0, ended=1.1)], SKIP, "only tried whether the port is open"),
        ([PROBE, PROBE, Attempt(1.0, ended=1.1, by_device=False)], SKIP, "one attempt in 20 s"),
        ([*(Attempt(at, ended=at) for at in (0.0, 0.01, 0.02, 0.03, 0.04)), waiting(0.05)], FAIL, "hammers"),
        # They were broken before it said anything.
        ([PROBE, *(Attempt(at, ended=at + 0.1, by_device=False) for at in (1.0, 3.0))], PASS, ""),
    ],
)
def test_who_tries_the_port_first_has_not_come_back_yet(attempts: list[Attempt], expected: Verdict, words: str) -> None:
    (line,) = judging.comes_back(attempts, None, 20.0)
    assert line.verdict is expected
    assert words in line.why


def test_what_came_before_the_broker_vanished_is_no_return() -> None:
    connect = Connect("d", keep_alive=1, protocol_version=ProtocolVersion.V311)
    served = Attempt(1.0, tls=1.0, packets=[(1.0, connect)], answered=1.0, ended=3.0)
    notices, again = judging.notices_silence([PROBE, served], 20.0)
    assert (notices.verdict, again.verdict) == (PASS, WARN)
    _, again = judging.notices_silence([PROBE, served, waiting(5.0)], 20.0)
    assert again.verdict is PASS
