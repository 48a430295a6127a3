"""What `fleet-sim enrol` does: create a fleet with real identities, continue an interrupted one, or end it."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import typer

from device_sim.commands.given_anchors import given_anchors
from device_sim.commands.next_command import next_command
from device_sim.credentials.certification import CertificateAuthority
from device_sim.credentials.enrolling import certify_fleet, end_fleet, enrol_fleet, names_of
from device_sim.credentials.evidence import Given, presenting, ways_of
from device_sim.credentials.fleet_directory import FleetDirectory, FleetUnusable, Origin
from device_sim.credentials.operator_files import expect_operator
from device_sim.explanation import explained
from device_sim.interruption import Interruption, run
from device_sim.report import ExitCode
from device_sim.view import Progress, View
from provisioning.client.enrolment import EnrolmentOperatorClient
from provisioning.client.est import EstClient
from provisioning.pki.identity import check_name
from provisioning.pki.tls import CredentialFiles
from provisioning.program.counted import counted

_GROUP, _TRUST_DOMAIN = "meters", "fleet.internal"
_ANCHORS = "name the file of the trust anchors, ca-bundle.crt of the service"


@dataclass(frozen=True, slots=True)
class Way:
    """How the devices enrol, as the options say: *names* joined by ``+``, and the files that some ways need."""

    names: str
    claim: Path | None
    manufacturer_cert: Path | None
    manufacturer_key: Path | None
    approve: bool


def enrol_or_end(
    directory: Path,
    devices: int,
    group: str | None,
    prefix: str,
    way: Way,
    provisioning: str | None,
    cafile: Path | None,
    cert: Path | None,
    key: Path | None,
    ca_cert: Path | None,
    ca_key: Path | None,
    trust_domain: str | None,
    parallel: int,
    cleanup: bool,
    yes: bool,
) -> None:
    """Create the fleet in *directory*, or continue it; *cleanup*: end it, unasked if *yes*. Raises `typer.Exit`."""
    if yes and not cleanup:
        raise typer.BadParameter("--yes goes with --cleanup: nothing else asks")
    view = View()
    with explained(view, f"What is enrolled is kept: run the same command again to continue in {directory}"):
        if cleanup:
            _end(view, directory, parallel, yes=yes)
            return
        if group is not None:
            check_name("group", group)
        names = names_of(check_name("prefix", prefix), devices)
        authority = _authority("--ca-cert", ca_cert, "--ca-key", ca_key)
        manufacturer = _authority(
            "--manufacturer-cert", way.manufacturer_cert, "--manufacturer-key", way.manufacturer_key
        )
        try:
            given = Given(ways_of(way.names), _pair(way.claim), manufacturer, way.approve)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        fleet, moved = _fleet(directory, authority, provisioning, cafile, _operator(cert, key))
        here = [fleet.entries[name].identity for name in names if name in fleet.entries]
        of_group = _as_before("--group", group, {identity.group for identity in here}, _GROUP)
        domain = _as_before("--trust-domain", trust_domain, {identity.trust_domain for identity in here}, _TRUST_DOMAIN)
        before = len(here)
        if before:
            view.said(f"{before} of {devices} are in {directory} already")

        async def story(_: Interruption) -> None:
            count = _Counted("enrolled", before, devices)
            async with view.watching(count.progress):
                if authority is not None:
                    await certify_fleet(fleet, names, of_group, domain, authority, count.one)
                    return
                await _move(view, fleet, moved)
                await _enrolled(fleet, names, of_group, given, parallel, count.one)

        run(story)
        view.result(f"{len(fleet.devices)} devices in {directory}; next: {next_command(fleet)}")


class _Counted:
    """How many devices are done; *before*, others were already."""

    def __init__(self, what: str, before: int, total: int) -> None:
        self.done = 0
        self._what = what
        self._before = before
        self._total = total
        self._started = time.monotonic()

    def one(self) -> None:
        """Take note that one more is done."""
        self.done += 1

    def progress(self) -> Progress:
        """Return what the user is shown."""
        seconds = time.monotonic() - self._started
        return Progress(self._what, self._before + self.done, self._total, seconds, counted_from=self._before)


async def _enrolled(
    fleet: FleetDirectory, names: Sequence[str], group: str, given: Given, parallel: int, told: Callable[[], None]
) -> None:
    """Enrol the devices *names* of *fleet* with its service; *told* is called for each."""
    url = fleet.origin.provisioning_url or ""
    async with (
        _client(fleet) as operator,
        EstClient(url, fleet.anchors, connections=1, trust_domain=operator.trust_domain) as est,
        presenting(given, group, url, fleet.anchors, operator, parallel) as evidence,
    ):
        await enrol_fleet(fleet, names, operator, est, evidence, parallel, told)


def _as_before(option: str, asked: str | None, before: Collection[str | None], default: str) -> str:
    """Return the value for the devices enrolled now: that of the devices *before* them, if there are any.

    Raises `FleetUnusable` if *asked* differs: it is in existing certificates, which would keep the old value.
    """
    if not before:
        return asked or default
    known = sorted(str(value) for value in before)
    if asked is None and len(known) == 1:
        return known[0]
    if [asked] == known:
        return known[0]
    raise FleetUnusable(
        f"{option} {asked}: these devices were enrolled with {' and '.join(known)}, which is in their certificates; "
        f"leave {option} out, or enrol others beside them with another --prefix"
        if asked is not None
        else f"these devices were enrolled with {option} {' and '.join(known)}: say which the others shall have"
    )


def _end(view: View, directory: Path, parallel: int, *, yes: bool) -> None:
    fleet = FleetDirectory.read(directory, incomplete=True)
    total = sum(not entry.revoked for entry in fleet.entries.values())
    if not yes:  # Not inside the story: while its loop runs, an interrupt does not reach a prompt.
        url, devices = fleet.origin.provisioning_url, len(fleet.devices)
        whom = f"{counted(devices, 'device')} of {directory}"
        question = f"Revoke {whom} and its service at {url}, for ever, and remove their keys?"
        if fleet.origin.imported:
            question = f"Remove the copied keys of {whom}? Nothing is revoked, and what was copied stays where it is"
        elif url is None:
            question = f"Remove the keys of {whom}, for ever?"
        if not _agreed(question):
            view.said(f"{directory} stays as it is; --cleanup --yes does not ask")
            raise typer.Exit(ExitCode.ERROR)
    count = _Counted("revoked", 0, total)

    async def story(_: Interruption) -> None:
        async with AsyncExitStack() as stack:
            operator = None
            if fleet.origin.provisioning_url is not None:
                operator = await stack.enter_async_context(_client(fleet))
                await stack.enter_async_context(view.watching(count.progress))
            await end_fleet(fleet, operator, parallel, count.one)

    run(story)
    view.result(f"{count.done} revoked, {directory} removed" if count.done else f"{directory} removed")


def _agreed(question: str) -> bool:
    """Whether *question* is answered with yes; no answer means no."""
    if sys.stdin is None or sys.stdin.closed:  # As in a program started without standard input.
        return False
    try:
        return typer.confirm(question, err=True)
    except typer.Abort:  # The end of the input, or Ctrl-C.
        typer.echo(err=True)
        return False


def _authority(
    certificate_option: str, certificate: Path | None, key_option: str, key: Path | None
) -> CertificateAuthority | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise typer.BadParameter(f"{certificate_option} and {key_option} go together: name both")
    return CertificateAuthority.load(certificate, key)


def _pair(both: Path | None) -> CredentialFiles | None:
    return None if both is None else CredentialFiles(both, both)


def _operator(certificate: Path | None, key: Path | None) -> CredentialFiles | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise typer.BadParameter("--cert and --key go together: name both")
    # A later run may be started in another directory.
    return CredentialFiles(certificate.absolute(), key.absolute())


async def _move(view: View, fleet: FleetDirectory, where: tuple[Origin, str] | None) -> None:
    """Let *fleet* be enrolled elsewhere, if *where* says so and the operator is known there: a slip changes nothing."""
    if where is None:
        return
    async with _client(fleet, *where) as operator:
        await operator.me()
    with fleet.changing():
        fleet.move(*where)
    view.said(f"{fleet.path} is enrolled as these options say from now on")


def _fleet(
    directory: Path,
    authority: CertificateAuthority | None,
    url: str | None,
    cafile: Path | None,
    operator: CredentialFiles | None,
) -> tuple[FleetDirectory, tuple[Origin, str] | None]:
    """Return the fleet, and where else it is to be enrolled from now on, if the options say so."""
    if FleetDirectory.exists(directory):
        fleet = FleetDirectory.read(directory)
        before = fleet.anchors.read_text()
        if fleet.origin.imported:
            raise FleetUnusable(f"{directory} was imported: add to it with {fleet.adding}, or enrol a fleet elsewhere")
        if (authority is None) != (fleet.origin.provisioning_url is not None):
            raise FleetUnusable(f"{directory} was enrolled the other way: continue with the options it was made with")
        if authority is not None:
            if authority.pem != before:
                raise FleetUnusable(f"{directory} was made from another CA: continue with that one, or enrol another")
            return fleet, None
        origin = Origin(fleet.origin.provisioning_url if url is None else url, operator or fleet.origin.operator)
        anchors = before if cafile is None else given_anchors(cafile, _ANCHORS)
        return fleet, (origin, anchors) if (origin, anchors) != (fleet.origin, before) else None
    service = f"backend-{secrets.token_hex(3)}"
    if authority is not None:
        return FleetDirectory.create(directory, Origin(), authority.pem, service), None
    if url is None or cafile is None or operator is None:
        raise typer.BadParameter(
            "a new fleet needs --provisioning, --cafile, --cert and --key, or --ca-cert and --ca-key"
        )
    return FleetDirectory.create(directory, Origin(url, operator), given_anchors(cafile, _ANCHORS), service), None


def _client(fleet: FleetDirectory, origin: Origin | None = None, anchors: str | None = None) -> EnrolmentOperatorClient:
    """Return an operator of the service of *fleet*, or of another *origin* with other *anchors*."""
    origin = fleet.origin if origin is None else origin
    if origin.provisioning_url is None or origin.operator is None:
        raise FleetUnusable(f"{fleet.path} was made from a CA: there is no service to ask")
    if origin.operator == fleet.origin.operator:
        fleet.expect_operator()
    else:
        expect_operator(origin.operator, "name it with --cert and --key")
    return EnrolmentOperatorClient(origin.provisioning_url, anchors or fleet.anchors, origin.operator)
