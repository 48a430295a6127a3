"""Which places have a process, where no file has room."""

from __future__ import annotations

import subprocess
import sys


def test_no_disk_is_needed_for_it() -> None:
    """A service with several workers did not start where the disk with temporary files was full."""
    program = """
import os, resource
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
from provisioning.service.living_workers import LivingWorkers
living = LivingWorkers()
living.enter(1)
looks = os.fork()
if looks == 0:
    os._exit(10 * living.has(1) + living.has(2))
print(os.waitstatus_to_exitcode(os.waitpid(looks, 0)[1]))
"""
    ran = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.stderr) == ("10\n", "")
