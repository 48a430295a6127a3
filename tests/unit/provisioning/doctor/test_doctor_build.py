"""Whether the doctor notices that another build serves than is installed."""

from __future__ import annotations

from pathlib import Path

from provisioning.directory.in_charge import in_charge
from provisioning.directory.whereabouts import lock_of
from provisioning.doctor.doctor_build import build_finding
from provisioning.doctor.doctor_finding import Verdict
from provisioning.program.build import UNKNOWN
from provisioning.program.version import version_and_build


def test_a_service_of_another_build_is_named_while_it_runs(tmp_path: Path) -> None:
    with in_charge(tmp_path, "https://127.0.0.1:9443", 17, alone=True):
        assert build_finding(tmp_path).verdict is Verdict.OK
        lock = lock_of(tmp_path)
        lock.write_text("https://127.0.0.1:9443\n17\n0123456789ab\n")
        found = build_finding(tmp_path)
        assert (found.verdict, found.remedy) == (
            Verdict.WARNING,
            "restart the service, or use the program of its build",
        )
        assert found.detail == f"process 17 serves with build 0123456789ab, this program is {version_and_build()}"
        lock.write_text(f"https://127.0.0.1:9443\n17\n{UNKNOWN}\n")
        assert build_finding(tmp_path).verdict is Verdict.OK, "it could not tell"
        lock.write_text("https://127.0.0.1:9443\n17\n")
        assert build_finding(tmp_path).verdict is Verdict.OK, "an older service does not say it"
    lock.write_text("https://127.0.0.1:9443\n17\n0123456789ab\n")
    assert build_finding(tmp_path).verdict is Verdict.OK, "it was killed"
