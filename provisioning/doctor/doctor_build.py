"""Whether the running service is what is installed: an upgrade takes effect with the next start. On what it runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from provisioning.directory import whereabouts
from provisioning.doctor.doctor_finding import Finding, failed, ok, warning
from provisioning.pki import guards
from provisioning.program.build import UNKNOWN, build_identity
from provisioning.program.runtime import what_runs
from provisioning.program.version import version_and_build


def openssl_findings() -> Iterator[Finding]:
    """Yield why the service cannot start with this Python's OpenSSL, if it cannot."""
    if (why := guards.missing()) is not None:
        what, _, remedy = why.rpartition("; ")
        yield failed("openssl", what, remedy)


def build_finding(directory: Path) -> Finding:
    """Compare this program's build with the one that serves *directory*."""
    running = whereabouts.build_of(directory)
    told = {running, build_identity()}
    # Either may be unknown, without sources or with one that cannot be read: that is no upgrade.
    if len(told) == 1 or told & {None, UNKNOWN} or whereabouts.served(directory) is None:
        facts = what_runs()
        return ok("build", f"{version_and_build()}, Python {facts['python']}, {facts['openssl']}")
    return warning(
        "build",
        f"process {whereabouts.process_of(directory)} serves with build {running}, this program is "
        f"{version_and_build()}",
        "restart the service, or use the program of its build",
    )
