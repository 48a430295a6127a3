"""``python -m broker``, the same as ``fleet-broker``."""

from __future__ import annotations

from typing import NoReturn

from provisioning.program.starting import importing

with importing():
    from broker.cli import app
    from provisioning.program import command_line


def main() -> NoReturn:
    """Run the command line and exit."""
    command_line.run(app, "fleet-broker")


if __name__ == "__main__":
    main()
