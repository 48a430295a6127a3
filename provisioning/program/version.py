"""The version of the distribution, and with the build, which tells hosts of one version apart."""

from __future__ import annotations

from provisioning.program.build import build_identity


def product_version() -> str:
    """Return the installed version; ``0+source`` if the code runs from a source tree that is not installed."""
    from importlib.metadata import PackageNotFoundError, version  # Late: neither help nor completion needs it.

    try:
        return version("fleetgate")
    except PackageNotFoundError:
        return "0+source"


def version_and_build() -> str:
    """Return both, for people."""
    return f"{product_version()} build {build_identity()}"
