"""Where the broker listens: ``[[listener]]`` tables, each with limits of its own for newcomers."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from broker.limits import Limits
from broker.setting_types import MOST, Count, CountOrNone, Port, Real

_OWN = (
    "max_unadmitted",
    "max_unadmitted_per_address",
    "max_failed_attempts",
    "failed_attempt_recovery",
    "max_connection_rate",
)


class ListenerSettings(BaseModel):
    """One listener. A limit that is not given is that of the broker."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    port: Port
    """0 for any free one."""
    host: str | None = None
    """An address of this machine; None: the broker's `host`."""
    protocol: Literal["mqtts", "wss"] = "mqtts"
    """MQTT over TLS, or over WebSocket over TLS."""
    max_unadmitted: Count | None = None
    max_unadmitted_per_address: Count | None = None
    max_failed_attempts: Count | None = None
    failed_attempt_recovery: Annotated[Real, Field(gt=0, le=MOST)] | None = None
    max_connection_rate: CountOrNone | None = None

    def limits(self, common: Limits) -> Limits:
        """Return *common* with this listener's own."""
        own = {name: getattr(self, name) for name in _OWN if getattr(self, name) is not None}
        return replace(common, **own) if own else common
