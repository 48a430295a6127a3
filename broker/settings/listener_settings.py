"""Where the broker listens: ``[[listener]]`` tables, each with limits of its own for newcomers."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from broker.settings.limits import Limits
from broker.settings.origins import OriginNames, Origins
from broker.settings.setting_types import MOST, Count, CountOrNone, Host, Port, Real
from provisioning.program.proxy_networks import ProxyNames

_OWN = (
    "max_unadmitted",
    "max_unadmitted_per_address",
    "max_failed_attempts",
    "failed_attempt_recovery",
    "max_connection_rate",
)

_RELOADED = ("websocket_origins", "unsafe_any_websocket_origin", "proxy_protocol_from")


class ListenerSettings(BaseModel):
    """One listener. A limit that is not given is the broker's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    port: Port
    """0 for any free one."""
    host: Host | None = None
    """An address of this machine; None: the broker's `host`."""
    protocol: Literal["mqtts", "wss"] = "mqtts"
    """MQTT over TLS, or over WebSocket over TLS."""
    websocket_origins: OriginNames | None = None
    """Whose web pages may connect, of a wss listener; None: those of the broker's setting of that name."""
    unsafe_any_websocket_origin: bool | None = None
    """None: as the broker's setting of that name, unless this listener names origins."""
    proxy_protocol_from: ProxyNames | None = None
    """Who sends the PROXY protocol's header here; None: as the broker's setting of that name."""
    max_unadmitted: Count | None = None
    max_unadmitted_per_address: Count | None = None
    max_failed_attempts: Count | None = None
    failed_attempt_recovery: Annotated[Real, Field(gt=0, le=MOST)] | None = None
    max_connection_rate: CountOrNone | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        about_pages = {"websocket_origins", "unsafe_any_websocket_origin"} & self.model_fields_set
        if self.protocol != "wss" and about_pages:
            raise ValueError(f"{min(about_pages)} is about web pages: set protocol = 'wss', or remove it")
        check_origins(self.websocket_origins, unsafe_any=bool(self.unsafe_any_websocket_origin))
        return self

    @property
    def place(self) -> tuple[str | None, int, str]:
        """The address and protocol that identify it."""
        return self.host, self.port, self.protocol

    @property
    def lasting(self) -> Self:
        """The part of it that only a restart changes."""
        return self.model_copy(update=dict.fromkeys(_RELOADED))

    def origins(self, common: Origins) -> Origins:
        """Return whose pages may connect here; *common* if this listener has no setting of its own."""
        named, unsafe_any = self.websocket_origins, self.unsafe_any_websocket_origin
        if unsafe_any is None:
            unsafe_any = common.unsafe_any and named is None
        if unsafe_any:
            return Origins(unsafe_any=True)
        return Origins(common.named if named is None else frozenset(named))

    def proxies(self, common: tuple[str, ...]) -> tuple[str, ...]:
        """Return whose PROXY headers are believed here; *common* if this listener has no setting of its own."""
        return common if self.proxy_protocol_from is None else self.proxy_protocol_from

    def limits(self, common: Limits) -> Limits:
        """Return *common* with this listener's own."""
        own = {name: getattr(self, name) for name in _OWN if getattr(self, name) is not None}
        return replace(common, **own) if own else common


def check_origins(named: tuple[str, ...] | None, *, unsafe_any: bool) -> None:
    """Raise ValueError if *named* and *unsafe_any* contradict each other."""
    if named and unsafe_any:
        raise ValueError("unsafe_any_websocket_origin: it admits every page, and websocket_origins some; give one")
