"""How late the event loop is: the delay that all connected clients experience, on top of everything else.

A task sleeps for a twentieth of a second and measures how much longer it took. The figure is the worst of the last few
measurements, fading: an overload shows at once, and disappears a second after it has ended. The listeners accept fewer
newcomers while it is above `max_loop_lag` (`broker.door.listener`).

While there are no newcomers and nothing is late, it measures only twice a second: ten thousand idle devices should cost
the broker nothing, and twenty measurements a second are a fifth of a percent of a core.
"""

from __future__ import annotations

import asyncio

from broker.metrics import Metrics
from broker.timing.beat import left_until

_LOOK_SECONDS = 0.05
_IDLE_SECONDS = 0.5
_IDLE_LAG = 0.02
"""Seconds of lag below which the loop counts as idle."""
_FADES_TO = 0.8
"""The share of a figure left after a twentieth of a second: a tenth is left after half a second."""


async def measure_lag(metrics: Metrics) -> None:
    """Keep `Metrics.loop_lag`; runs until it is cancelled."""
    loop = asyncio.get_running_loop()
    accepted = metrics.connections_accepted
    quiet = False
    while True:
        now = loop.time()
        pause = left_until(now, _IDLE_SECONDS) if quiet else _LOOK_SECONDS  # Idle, it is woken with all others.
        due = now + pause
        await asyncio.sleep(pause)
        fading = _FADES_TO ** (pause / _LOOK_SECONDS)
        metrics.loop_lag = max(loop.time() - due, metrics.loop_lag * fading)
        quiet = metrics.connections_accepted == accepted and metrics.loop_lag < _IDLE_LAG
        accepted = metrics.connections_accepted
