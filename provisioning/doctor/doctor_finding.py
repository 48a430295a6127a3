"""The result of one of the doctor's checks: severity, finding and remedy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """A finding's severity."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check, and, unless all is well, the remedy."""

    check: str
    verdict: Verdict
    detail: str
    remedy: str = ""


def ok(check: str, detail: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(check, Verdict.OK, detail)


def warning(check: str, detail: str, remedy: str) -> Finding:
    """Return a finding of what will be wrong."""
    return Finding(check, Verdict.WARNING, detail, remedy)


def failed(check: str, detail: str, remedy: str) -> Finding:
    """Return a finding of what is wrong."""
    return Finding(check, Verdict.FAILED, detail, remedy)
