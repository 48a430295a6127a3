"""Who may read the metrics: a setting, so separate from the code that makes them."""

from __future__ import annotations

from enum import StrEnum


class MetricsExposure(StrEnum):
    """Who may read the metrics on the plain port."""

    OFF = "off"
    LOOPBACK = "loopback"
    PUBLIC = "public"
