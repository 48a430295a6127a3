"""The stand to which a device connects."""

from __future__ import annotations

import socket

import pytest

from device_sim.qualify.conduct import Conduct
from device_sim.qualify.papers import Papers
from device_sim.qualify.stand import CannotListen, Stand


async def test_a_port_that_is_taken_is_said_in_one_sentence() -> None:
    papers = Papers("meter-1", ["localhost"])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            CannotListen, match=f"^nothing can listen on 127.0.0.1 port {port}: Address already in use; give"
        ):
            async with Stand(papers, Conduct(), "127.0.0.1", port):
                pytest.fail("it listens")


async def test_a_name_that_is_no_address_is_said_in_words() -> None:
    with pytest.raises(CannotListen, match=r"^nothing can listen on nowhere\.invalid port 0: [A-Z]\w+ [a-z ]+; give"):
        async with Stand(Papers("meter-1", ["localhost"]), Conduct(), "nowhere.invalid", 0):
            pytest.fail("it listens")
