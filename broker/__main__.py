"""``python -m broker``, the same as ``fleet-broker``."""

from __future__ import annotations

import sys

from provisioning.starting import importing

with importing():
    from broker.cli import app
    from provisioning.named_command import named_in


def main() -> None:
    """Run the command line."""
    named_in(app, sys.argv[1:])()


if __name__ == "__main__":
    main()
