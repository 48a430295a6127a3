"""Whether a peer that has closed is known to have, also if its RST was lost.

That a probe brings another RST was seen with the kernel's own TCP at both ends of a link (docs/decisions/0265).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from device_sim.attack import handshake_cases, tls13_client
from device_sim.attack.raw_client import RawClient
from device_sim.attack.scene import Scene
from device_sim.link import lost_reset, tls_dial
from tests.unit.device_sim.attack.test_starvation import broker


def probes(connected: socket.socket) -> tuple[bool, int, int, int]:
    tcp = socket.IPPROTO_TCP
    return (
        bool(connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)),
        connected.getsockopt(tcp, socket.TCP_KEEPIDLE),
        connected.getsockopt(tcp, socket.TCP_KEEPINTVL),
        connected.getsockopt(tcp, socket.TCP_KEEPCNT),
    )


async def test_who_attacks_asks_again_on_each_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[socket.socket] = []

    def noted(ask_again: Callable[[socket.socket], None]) -> Callable[[socket.socket], None]:
        def ask(connected: socket.socket) -> None:
            asked.append(connected)
            ask_again(connected)
            assert probes(connected) == (True, 1, 1, 127)

        return ask

    for module in (tls_dial, tls13_client, handshake_cases):
        monkeypatch.setattr(module, "ask_again", noted(lost_reset.ask_again))
    async with broker(tmp_path, lambda _: True) as target:
        scene = Scene(target)
        context = scene.context((await scene.device()).pem)
        client = await RawClient.dial(target.endpoint, context)
        assert probes(client.socket) == (True, 1, 1, 127)
        client.close()
        plain = await handshake_cases.plain_socket(scene)
        plain.close()
        assert len(asked) == 2
        await tls13_client.offer(target.endpoint, b"\xc0\xb4", 10.0)
        assert len(asked) == 3
        dialled = await tls_dial.dial(target.endpoint, context, deadline=10.0)
        assert not probes(dialled.socket)[0], "thousands of devices would be as many probes a second"
        dialled.socket.close()
