"""What runs on this host, and on what."""

from __future__ import annotations

import platform
import ssl

from provisioning.program.build import build_identity
from provisioning.program.version import product_version


def what_runs() -> dict[str, str]:
    """Return what differs between hosts, for metrics."""
    return {
        "version": product_version(),
        "build": build_identity(),
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
    }
