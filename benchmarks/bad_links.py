"""Links as bad as a cellular or satellite network between network namespaces of this machine; needs root.

    async with Network("provisioning", "broker", "field") as network:
        network.between("field", "broker", Line(delay=0.3, loss=0.05, rate=20_000))
        child = subprocess.Popen(network.inside("field", ["mosquitto_pub", "-h", network.address("broker"), …]))
        network.between("field", "broker", Line(loss=1.0))       # a black hole: nothing arrives, and nobody is told

Theory
------
Each namespace has one TUN device, and this process carries the packets between them. So the kernel's real TCP is at
both ends, which no proxy of streams can offer: lost, late, doubled and overtaking packets, packets that are too big and
vanish, and sockets that nobody acknowledges. The kernel's own netem does the same where it is built; many kernels of
virtual machines lack it.

Rules
-----
1. A direction has one `Line`. Packets keep their order, unless one is chosen to be late.
2. The queue of a line with a rate is bounded in seconds, as in a modem: what exceeds it is dropped.
3. The namespaces are removed at the end, with everything in them; nothing outside them is changed.

Does not handle: IPv6, and packets that leave the machine.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import random
import struct
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_TUNSETIFF: Final = 0x400454CA
_TUN_WITHOUT_HEADER: Final = 0x1001
_CLONE_NEWNET: Final = 0x40000000
_LARGEST: Final = 65536
_A_TURN: Final = 64


@dataclass(frozen=True, slots=True)
class Line:
    """What happens to packets in one direction."""

    delay: float = 0.0
    """Seconds; a round trip takes both directions' delays."""
    jitter: float = 0.0
    loss: float = 0.0
    """Share of the packets."""
    double: float = 0.0
    late: float = 0.0
    """Share that is overtaken by those behind it."""
    rate: float = 0.0
    """Bits per second; 0: any."""
    queue_seconds: float = 4.0
    largest: int = _LARGEST
    """Bytes of the largest packet that gets through. No ICMP tells the sender."""


CUT: Final = Line(loss=1.0)
"""A black hole."""


@dataclass(slots=True)
class _Way:
    line: Line = field(default_factory=Line)
    free_at: float = 0.0
    last_at: float = 0.0
    carried: int = 0
    carried_bytes: int = 0
    dropped: int = 0


class Network:
    """Namespaces of the names given, each linked with each other."""

    def __init__(self, *names: str) -> None:
        self._names = names
        self._ways = {(one, other): _Way() for one in names for other in names if one != other}
        self._tuns: dict[str, int] = {}
        self._of_address = {bytes((10, 78, 0, number + 1)): name for number, name in enumerate(names)}
        self._addresses = {name: ".".join(map(str, packed)) for packed, name in self._of_address.items()}
        self._random = random.Random()  # noqa: S311 - chooses packets, hides nothing

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        try:
            for name in self._names:
                self._tuns[name] = self._make(name)
        except BaseException:
            self._remove()
            raise
        for name, descriptor in self._tuns.items():
            self._loop.add_reader(descriptor, self._take, name, descriptor)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def address(self, name: str) -> str:
        """Return the IPv4 address of the namespace *name*."""
        return self._addresses[name]

    def namespace(self, name: str) -> str:
        """Return what ``ip netns`` calls it."""
        return f"bad-links-{os.getpid()}-{name}"

    def inside(self, name: str, command: Sequence[str | Path]) -> list[str]:
        """Return *command* as one that runs in the namespace *name*."""
        return ["ip", "netns", "exec", self.namespace(name), *map(str, command)]

    def between(self, one: str, other: str, line: Line, back: Line | None = None) -> None:
        """Use *line* from now on from *one* to *other*, and *back*, or the same, from there."""
        self._ways[one, other].line = line
        self._ways[other, one].line = line if back is None else back

    def carried(self, one: str, other: str) -> tuple[int, int, int]:
        """Return how many packets, and bytes, arrived from *one* at *other*, and how many packets did not."""
        way = self._ways[one, other]
        return way.carried, way.carried_bytes, way.dropped

    def _make(self, name: str) -> int:
        namespace, address = self.namespace(name), self._addresses[name]
        _ip("netns", "add", namespace)
        with ThreadPoolExecutor(1) as thread:
            descriptor = thread.submit(_tun_inside, namespace).result()
        _ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "tun0")
        _ip("-n", namespace, "link", "set", "lo", "up")
        _ip("-n", namespace, "link", "set", "tun0", "up", "mtu", "1500")
        return descriptor

    def _remove(self) -> None:
        for descriptor in self._tuns.values():
            self._loop.remove_reader(descriptor)
            os.close(descriptor)
        self._tuns.clear()
        for name in self._names:
            subprocess.run(["ip", "netns", "del", self.namespace(name)], check=False, capture_output=True)

    def _take(self, name: str, descriptor: int) -> None:
        for _ in range(_A_TURN):
            try:
                packet = os.read(descriptor, _LARGEST)
            except BlockingIOError:
                return
            to = self._of_address.get(packet[16:20]) if packet[0] >> 4 == 4 else None
            if to is not None and to != name:
                self._carry(self._ways[name, to], to, packet)

    def _carry(self, way: _Way, to: str, packet: bytes) -> None:
        line, now, chance = way.line, self._loop.time(), self._random.random
        starts = max(now, way.free_at)
        if len(packet) > line.largest or chance() < line.loss or starts - now > line.queue_seconds:
            way.dropped += 1
            return
        sent = starts
        if line.rate:
            sent = way.free_at = starts + len(packet) * 8 / line.rate
        arrives = sent + line.delay + line.jitter * chance()
        if chance() < line.late:
            arrives += max(0.05, line.delay / 2)
        else:
            arrives = way.last_at = max(arrives, way.last_at)
        for _ in range(2 if chance() < line.double else 1):
            if arrives <= now:
                self._deliver(way, to, packet)
            else:
                self._loop.call_at(arrives, self._deliver, way, to, packet)

    def _deliver(self, way: _Way, to: str, packet: bytes) -> None:
        descriptor = self._tuns.get(to)
        if descriptor is None or way.line.loss >= 1.0:  # Cut meanwhile.
            way.dropped += 1
            return
        way.carried += 1
        way.carried_bytes += len(packet)
        try:
            os.write(descriptor, packet)
        except OSError:  # The device's own queue is full.
            way.dropped += 1


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def _tun_inside(namespace: str) -> int:
    """Make a TUN device in *namespace* and return its descriptor; the calling thread stays there."""
    entry = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        libc = ctypes.CDLL(None, use_errno=True)  # os.setns is Python 3.12's.
        if libc.setns(entry, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {namespace}")
    finally:
        os.close(entry)
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", b"tun0", _TUN_WITHOUT_HEADER))
    return descriptor
