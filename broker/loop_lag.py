"""How late the event loop is: what everybody who is connected waits at the moment, on top of everything else.

A task sleeps for a twentieth of a second and looks how much longer it took. The figure is the worst of the last few
looks, fading: an overload is seen at once, and over when it has been over for a second. The listeners let fewer
newcomers in while it is above `max_loop_lag` (`broker.listener`).
"""

from __future__ import annotations

import asyncio

from broker.metrics import Metrics

_LOOK_SECONDS = 0.05
_FADES_TO = 0.8
"""What is left of a figure at the next look: a tenth after half a second."""


async def measure_lag(metrics: Metrics) -> None:
    """Keep `Metrics.loop_lag`; runs until it is cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _LOOK_SECONDS
        await asyncio.sleep(_LOOK_SECONDS)
        metrics.loop_lag = max(loop.time() - due, metrics.loop_lag * _FADES_TO)
