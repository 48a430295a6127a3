from __future__ import annotations

import socket
import struct

import pytest

from device_sim.link.distance import NEARBY, Distance, distance_of

SATELLITE = Distance(0.6, 0.65, 1.3, 0.0)


class _Told:
    """A socket whose kernel says *told*."""

    def __init__(self, told: bytes) -> None:
        self._told = told

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert (level, option) == (socket.IPPROTO_TCP, socket.TCP_INFO)
        return self._told[:size]


def kernel_says(*, rtt: int, rttvar: int, again: int, sent: int, received: int, lowest: int, overtaken: int) -> bytes:
    """Return the kernel's answer; the offsets are those of Linux's ``struct tcp_info``, counted in its header file."""
    told = bytearray(232)
    for offset, value in ((68, rtt), (72, rttvar), (100, again), (136, sent), (140, received), (148, lowest)):
        struct.pack_into("=I", told, offset, value)
    struct.pack_into("=I", told, 224, overtaken)
    return bytes(told)


def of(told: bytes) -> Distance:
    return distance_of(_Told(told))  # type: ignore[arg-type]


def test_the_kernel_s_figures_are_read_where_they_are() -> None:
    told = kernel_says(rtt=650_000, rttvar=100_000, again=6, sent=60, received=140, lowest=600_000, overtaken=4)
    assert of(told) == Distance(0.6, 0.65, 1.05, 0.05)
    assert of(told).packets == 200


def test_what_few_packets_say_of_losses_is_nothing() -> None:
    told = kernel_says(rtt=650_000, rttvar=1, again=6, sent=49, received=50, lowest=600_000, overtaken=4)
    assert of(told).lost == 0.0
    assert of(told).timeout == pytest.approx(0.85)  # The kernel never waits less than 200 ms longer.


@pytest.mark.parametrize("told", [b"\1" * 104, kernel_says(
    rtt=9, rttvar=9, again=0, sent=0, received=0, lowest=0xFFFFFFFF, overtaken=0
)])  # fmt: skip
def test_a_kernel_that_does_not_know_explains_nothing(told: bytes) -> None:
    assert of(told) == NEARBY


def test_this_machine_is_near_and_an_ended_connection_tells_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as client:
            seen = distance_of(client)
        assert seen.round_trip > 0.0
        assert not seen.is_far
        assert distance_of(client) == NEARBY


def test_a_near_link_explains_nothing_whatever_it_loses() -> None:
    rack = Distance(0.009, 0.3, 0.5, 0.2)
    assert (rack.explains(3), rack.longest(3)) == (0.0, 0.0)
    assert not rack.is_far


def test_a_far_link_explains_its_round_trips_and_three_losses_of_each_where_it_loses_packets() -> None:
    assert SATELLITE.explains(3) == pytest.approx(1.95)
    assert SATELLITE.or_worse(Distance(lost=0.02)).explains(1) == pytest.approx(0.65 + 7 * 1.3)
    assert SATELLITE.or_worse(Distance(lost=0.01)).explains(1) == pytest.approx(0.65)


def test_who_waits_allows_for_losses_that_have_not_happened_yet_but_not_for_ever() -> None:
    assert SATELLITE.longest(1) == pytest.approx(0.65 + 7 * 1.3)
    assert SATELLITE.longest(100) == 30.0


def test_the_worse_of_two_is_so_in_every_respect() -> None:
    one, other = Distance(1.0, 2.0, 3.0, 0.1), Distance(2.0, 1.0, 4.0, 0.0)
    assert one.or_worse(other) == other.or_worse(one) == Distance(2.0, 2.0, 4.0, 0.1)
    assert one.or_worse(NEARBY) == one
    assert Distance(packets=7).or_worse(Distance(packets=5)).packets == 7
    assert Distance(packets=5).or_worse(Distance(packets=7)).packets == 7


def test_it_says_what_it_is() -> None:
    assert str(SATELLITE) == "round trip 600 ms, at worst 650"
    assert (
        str(Distance(0.6, 0.65, 1.3, 0.05)) == "round trip 600 ms, at worst 650, 5.0% of the packets lost or overtaken"
    )
