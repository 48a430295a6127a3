"""The results of the demo: facts, checks on them, and one verdict.

Rules
-----
1. A check that was never made has not passed: the report lists what was made, and an interrupted demo has no report.
2. A failed *security* check (an intruder got in, or stayed in) is distinguished from other failures, also in the exit
   code.
3. A check that failed because something was *late* does not count against a broker on an overloaded machine: if nothing
   else has failed, such a report is INVALID (docs/decisions/0076). Lost or wrong data counts in any case, and a check
   that passed has passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from device_sim.core_wait import MOST_WAITING
from provisioning.program.version import version_and_build

SCHEMA = 1


class ExitCode(IntEnum):
    """The process's exit codes."""

    OK = 0
    ERROR = 1
    USAGE = 2
    INVALID = 3
    SECURITY = 4
    THRESHOLD = 99


@dataclass(frozen=True, slots=True)
class Check:
    """One condition, whether it held, and the figures behind that."""

    name: str
    passed: bool
    detail: str
    security: bool = False
    late: bool = False
    """Whether a failure would only be due to something missing its time, and not to something that arrived."""


@dataclass(slots=True)
class Report:
    """The checks of one run, in order, and its facts for the JSON form."""

    seed: int
    devices: int
    checks: list[Check] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    invalid: list[str] = field(default_factory=list)
    """Why it says nothing about the broker."""

    def check(self, name: str, passed: bool, detail: str, *, security: bool = False, late: bool = False) -> None:
        """Add a check."""
        self.checks.append(Check(name, passed, detail, security, late))

    def judge_machine(self, waited: Mapping[str, float]) -> None:
        """Record the share of time that each process has *waited* for a core."""
        self.fact("waited_for_a_core", {name: round(share, 3) for name, share in waited.items()})
        failed = [check for check in self.checks if not check.passed]
        name, share = max(waited.items(), key=lambda each: each[1], default=("", 0.0))
        if failed and all(check.late for check in failed) and share > MOST_WAITING:
            self.invalid.append(
                f"something was late, and {name} has waited for a core in {share:.0%} of the time; stop what else is "
                "running, use fewer --devices, or a larger machine"
            )

    def fact(self, name: str, value: Any) -> None:
        """Add a fact."""
        self.facts[name] = value

    @property
    def passed(self) -> bool:
        """Whether all checks have passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def exit_code(self) -> ExitCode:
        """The process's exit code for this report."""
        if self.passed:
            return ExitCode.OK
        if self.invalid:  # All failures were late ones.
            return ExitCode.INVALID
        failed_security = any(check.security and not check.passed for check in self.checks)
        return ExitCode.SECURITY if failed_security else ExitCode.ERROR

    def as_dict(self) -> Mapping[str, Any]:
        """Return the report for a JSON document."""
        return {
            "schema": SCHEMA,
            "fleet_sim": version_and_build(),
            "passed": self.passed,
            "exit_code": int(self.exit_code),
            "invalid": self.invalid,
            "seed": self.seed,
            "devices": self.devices,
            "checks": [
                {"name": check.name, "passed": check.passed, "security": check.security, "detail": check.detail}
                for check in self.checks
            ],
            **self.facts,
        }
