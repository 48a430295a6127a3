"""The distribution's version, also where it runs from a source tree that was never installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("fleetgate")
except PackageNotFoundError:
    VERSION = "0+source"
