from __future__ import annotations

import os
from pathlib import Path

from device_sim.stage.child_log import opened_log


def test_a_log_is_its_user_s_only_whatever_the_umask_and_grows(tmp_path: Path) -> None:
    path = tmp_path / "broker.log"
    before = os.umask(0)
    try:
        for line in (b"one\n", b"two\n"):
            with opened_log(path) as log:
                log.write(line)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_bytes() == b"one\ntwo\n"
