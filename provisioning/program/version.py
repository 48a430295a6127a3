"""The version of the distribution."""

from __future__ import annotations


def product_version() -> str:
    """Return the installed version; ``0+source`` if the code runs from a source tree that is not installed."""
    from importlib.metadata import PackageNotFoundError, version  # Late: neither help nor completion needs it.

    try:
        return version("fleetgate")
    except PackageNotFoundError:
        return "0+source"
