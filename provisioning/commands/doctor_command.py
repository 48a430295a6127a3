"""``fleet-provisioning doctor``: finds problems, and names the remedies.

The command imports the store and the CA: `--help` starts without them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from provisioning.commands.ceremony_command import PassphraseFile, PinFile
from provisioning.commands.service_command import Directory, fail
from provisioning.errors import ConfigurationError
from provisioning.program.hung_line import print_hung
from provisioning.program.json_output import Json, print_document
from provisioning.program.printable import printable

_SET_IN: Final = 23

if TYPE_CHECKING:
    from provisioning.config import Settings
    from provisioning.doctor.doctor_finding import Finding


def doctor(
    directory: Directory = None,
    passphrase_file: PassphraseFile = None,
    pin_file: PinFile = None,
    as_json: Json = False,
) -> None:
    """Check files, keys, certificates, clock, database, CRLs and ports, and show remedies. Changes nothing.

    Exit code 1 if anything has failed.

    \b
    Example:
      fleet-provisioning doctor --dir /var/lib/fleet --passphrase-file /etc/fleet/passphrase
    """
    import asyncio

    from provisioning.config import load_settings
    from provisioning.doctor.doctor_finding import Verdict
    from provisioning.program.logs import configure_logging

    configure_logging(least="error")  # It reports its findings itself.
    try:
        settings = load_settings(directory, passphrase_file=passphrase_file, pkcs11_pin_file=pin_file)
    except ConfigurationError as error:
        raise fail(error) from error
    findings = asyncio.run(_all(settings, _keep if as_json else _show))
    if as_json:
        print_document([asdict(finding) for finding in findings])
    failed = sum(finding.verdict is Verdict.FAILED for finding in findings)
    if failed:
        sys.stdout.flush()  # So that in a shared file or pipe the summary comes last.
        raise fail(f"{failed} of {len(findings)} checks failed")


async def _all(settings: Settings, tell: Callable[[Finding], None]) -> list[Finding]:
    from provisioning.doctor.doctor import examine

    findings = []
    async for finding in examine(settings, datetime.now(UTC)):
        tell(finding)  # At once: the next check may wait for a server.
        findings.append(finding)
    return findings


def _keep(_finding: Finding) -> None:
    """Show nothing yet: JSON is one document."""


def _show(finding: Finding) -> None:
    print_hung(f"{finding.verdict:<8} {finding.check:<13} {printable(finding.detail)}", _SET_IN)
    if finding.remedy:
        print_hung(f"{'':<22} remedy: {printable(finding.remedy)}", _SET_IN)
