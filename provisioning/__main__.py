"""``python -m provisioning``: the same program as ``fleet-provisioning``."""

from __future__ import annotations

from provisioning.program.starting import importing

with importing():
    from provisioning.cli import main

if __name__ == "__main__":
    main()
