"""``--json``, the same for the commands of all three programs: the option, and the document that it prints."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_document(document: object) -> None:
    """Print *document* for programs."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")
