"""What a broker does each second, at once: `broker.upkeep.upkeep.see_to` serves clients in between."""

from __future__ import annotations

from broker.engine.engine import Engine


def do_what_is_due(engine: Engine, now: float) -> None:
    """Do everything that is due at *now*."""
    for _ in engine.duties(now):
        pass
    engine.turn.request()
