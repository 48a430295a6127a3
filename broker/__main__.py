"""``python -m broker``, the same as ``fleet-broker``."""

from __future__ import annotations

from provisioning.starting import importing

with importing():
    from broker.cli import app


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
