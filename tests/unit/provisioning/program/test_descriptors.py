"""The descriptors that a service takes for itself, as far as user and kernel allow; each case in its own process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

_CODE = """
import json, resource, sys
from pathlib import Path
from provisioning.program.descriptors import take_all
resource.setrlimit(resource.RLIMIT_NOFILE, tuple(json.loads(sys.argv[1])))
take_all(Path(sys.argv[2]))
print(json.dumps(resource.getrlimit(resource.RLIMIT_NOFILE)))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "kernel", "taken"),
    [
        (300, 1000, "2000", [1000, 1000]),
        (300, 1000, "600", [600, 600]),
        (700, 1000, "600", [700, 1000]),
        (1000, 1000, "2000", [1000, 1000]),
        (300, 1000, "no number", [1000, 1000]),
    ],
)
def test_it_takes_what_both_allow(tmp_path: Path, soft: int, hard: int, kernel: str, taken: list[int]) -> None:
    nr_open = tmp_path / "nr_open"
    nr_open.write_text(f"{kernel}\n")
    arguments = [sys.executable, "-c", _CODE, json.dumps([soft, hard]), str(nr_open)]
    assert json.loads(subprocess.run(arguments, check=True, capture_output=True).stdout) == taken
