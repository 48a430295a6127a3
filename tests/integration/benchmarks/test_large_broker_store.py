"""The store that `benchmarks/large_broker_store.py` fills is one that a broker restores, and so of today's schema."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[3]


def test_a_filled_store_is_restored() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/large_broker_store.py", "--sessions", "300"],
        cwd=SOURCE,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (figures["sessions"], figures["retained"]) == (200, 1000), "a third had expired"
