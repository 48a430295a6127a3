"""Keeps a soak's figures in a JSON file, however the soak ends: by itself, by a failure, or by Ctrl-C after an hour."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_at_the_end(rounds: Sequence[Mapping[str, float]], place: Path) -> Iterator[None]:
    """Write *rounds*, which grow meanwhile, to *place* when the block ends.

    A figure that could not be had, NaN in `soak_figures`, is null: JSON knows no NaN.
    """
    try:
        yield
    finally:
        found = [{name: None if math.isnan(value) else value for name, value in each.items()} for each in rounds]
        place.write_text(json.dumps({"rounds": found}, indent=1, allow_nan=False) + "\n")
