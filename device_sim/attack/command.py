"""`fleet-sim attack`: which target, which cases, what is written where; and the exit code."""

from __future__ import annotations

import asyncio
import platform
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from device_sim.attack import capabilities as claims
from device_sim.attack import report, revocation_list
from device_sim.attack.capabilities import CapabilityError
from device_sim.attack.case import Case
from device_sim.attack.catalogue import CATALOGUE, NoSuchCase, pick
from device_sim.attack.fleetgate_target import fleetgate
from device_sim.attack.issuer import Issuer
from device_sim.attack.mosquitto_target import mosquitto
from device_sim.attack.nats_target import nats_server
from device_sim.attack.rabbitmq_target import rabbitmq
from device_sim.attack.run import run, worst
from device_sim.attack.target import Impossible, SigningRegistrar, Target
from device_sim.attack.verdict import Outcome, Verdict
from device_sim.foreign_process import ServerMissing
from device_sim.interruption import Interrupted, Interruption
from device_sim.interruption import run as run_story
from device_sim.processes import ChildFailed
from device_sim.report import ExitCode
from device_sim.tls_dial import Endpoint
from provisioning.client.operator import RequestRefused, ServiceUnavailable
from provisioning.pki.keys import KeyFileError
from provisioning.pki.tls import TlsConfigurationError

_WIDTH = 200
_EXPECTED = (
    CapabilityError, ChildFailed, Impossible, KeyFileError, RequestRefused, ServerMissing, ServiceUnavailable,
    TlsConfigurationError, OSError,
)  # fmt: skip


class Against(StrEnum):
    """What to start and attack, if it is not running already."""

    FLEETGATE = "fleetgate"
    MOSQUITTO = "mosquitto"
    NATS_SERVER = "nats-server"
    RABBITMQ = "rabbitmq"


_START = {
    Against.FLEETGATE: fleetgate,
    Against.MOSQUITTO: mosquitto,
    Against.NATS_SERVER: nats_server,
    Against.RABBITMQ: rabbitmq,
}


AgainstOption = Annotated[Against, typer.Option("--against", help="Start this one and attack it.")]
HostOption = Annotated[str | None, typer.Option("--host", help="Attack the broker at this numeric address instead.")]
PortOption = Annotated[int, typer.Option("--port", min=1, max=65535, help="Its port.")]
NameOption = Annotated[str, typer.Option("--server-name", help="The name that its certificate bears.")]
CafileOption = Annotated[Path | None, typer.Option("--cafile", help="Trust anchors for its certificate, PEM.")]
CaCertOption = Annotated[Path | None, typer.Option("--ca-cert", help="The CA whose devices it lets in, PEM.")]
CaKeyOption = Annotated[Path | None, typer.Option("--ca-key", help="That CA's key, PEM, unencrypted.")]
CapabilitiesOption = Annotated[
    Path | None, typer.Option("--capabilities", help="What the broker claims, TOML; without it, everything.")
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option("--only", help="Only these cases: numbers, names, patterns; repeat or join by ','."),
]
ListOption = Annotated[bool, typer.Option("--list", help="Show the cases and try none.")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write the outcomes to this JSON file.")]
JunitOption = Annotated[Path | None, typer.Option("--junit", help="Write the outcomes to this JUnit XML file.")]


def attack(
    against: AgainstOption = Against.FLEETGATE,
    host: HostOption = None,
    port: PortOption = 8883,
    server_name: NameOption = "localhost",
    cafile: CafileOption = None,
    ca_cert: CaCertOption = None,
    ca_key: CaKeyOption = None,
    capabilities: CapabilitiesOption = None,
    only: OnlyOption = None,
    show_list: ListOption = False,
    json: JsonOption = None,
    junit: JunitOption = None,
) -> None:
    """Try every way in that a bad device has, and judge how each is refused. Exit code 4: one got in."""
    foreign = _foreign(host, port, server_name, cafile, ca_cert, ca_key, capabilities)
    _judge("attack", CATALOGUE, foreign or _started(against), only, show_list, json, junit)


def revocation(
    against: AgainstOption = Against.FLEETGATE,
    host: HostOption = None,
    port: PortOption = 8883,
    server_name: NameOption = "localhost",
    cafile: CafileOption = None,
    ca_cert: CaCertOption = None,
    ca_key: CaKeyOption = None,
    capabilities: CapabilitiesOption = None,
    only: OnlyOption = None,
    show_list: ListOption = False,
    json: JsonOption = None,
    junit: JunitOption = None,
) -> None:
    """Try every way around a revocation, and judge whether it holds. Exit code 4: one worked."""
    foreign = _foreign(host, port, server_name, cafile, ca_cert, ca_key, capabilities)
    cases = tuple(revocation_list.chapter.cases)
    _judge("revocation", cases, foreign or _started(against, tls12=True), only, show_list, json, junit)


def attack_table(
    files: Annotated[list[Path], typer.Argument(help="JSON files of `attack` or `revocation`, one a broker.")],
) -> None:
    """Print one Markdown table that compares several runs."""
    documents = []
    for path in files:
        try:
            documents.append(report.read_json(path))
        except (OSError, ValueError) as error:
            raise typer.BadParameter(f"{path} is no outcome of attack or revocation: {error}") from None
    typer.echo(report.markdown(documents), nl=False)


Opened = Callable[[Path], AbstractAsyncContextManager[Target]]


def _started(against: Against, *, tls12: bool = False) -> Opened:
    start = _START[against]
    return lambda directory: start(directory, tls12=tls12)


def _foreign(
    host: str | None,
    port: int,
    server_name: str,
    cafile: Path | None,
    ca_cert: Path | None,
    ca_key: Path | None,
    file: Path | None,
) -> Opened | None:
    if host is None:
        if cafile or ca_cert or ca_key or file:
            raise typer.BadParameter("--cafile, --ca-cert, --ca-key, --capabilities: for a broker given by --host")
        return None
    if cafile is None or ca_cert is None or ca_key is None:
        raise typer.BadParameter("--host: give --cafile, --ca-cert and --ca-key too")
    anchors, certificate, key = cafile, ca_cert, ca_key

    @asynccontextmanager
    async def opened(_directory: Path) -> AsyncIterator[Target]:
        claimed = claims.load(file) if file is not None else claims.EVERYTHING
        issuer = Issuer.load(certificate, key)
        registrar = SigningRegistrar(issuer, claimed.revocation)
        yield Target(claimed, Endpoint(host, port, server_name), anchors, issuer, registrar)

    return opened


def _judge(
    kind: str,
    catalogue: Sequence[Case],
    opened: Opened,
    only: list[str] | None,
    show_list: bool,
    json: Path | None,
    junit: Path | None,
) -> None:
    out = console(sys.stdout)
    err = console(sys.stderr)
    try:
        cases = pick(catalogue, only or ())
    except NoSuchCase as error:
        raise typer.BadParameter(str(error)) from None
    if show_list:
        for case in cases:
            out.print(f"{case.name:28}{case.description}  [{' or '.join(case.expected)}]", soft_wrap=True, markup=False)
        return

    def told(outcome: Outcome) -> None:
        if err.is_terminal:
            err.print(report.line(outcome), soft_wrap=True, markup=False, highlight=False)

    async def story(_interruption: Interruption) -> Verdict:
        with tempfile.TemporaryDirectory(prefix=f"fleet-sim-{kind}-") as directory:
            async with opened(Path(directory)) as target:
                target.capabilities.check_cases(case.name for case in (*CATALOGUE, *revocation_list.chapter.cases))
                name = target.capabilities.name
                outcomes = await run(target, cases, told)
        report.show(out, f"{kind} {name}", outcomes)
        if json is not None:
            await asyncio.to_thread(report.write_json, json, report.as_dict(kind, name, outcomes, environment()))
        if junit is not None:
            await asyncio.to_thread(report.write_junit, junit, kind, name, outcomes)
        return worst(outcomes)

    raise typer.Exit(_told_to_the_end(story, err))


def _told_to_the_end(story: Callable[[Interruption], Coroutine[Any, Any, Verdict]], err: Console) -> int:
    """Run *story* and return the exit code; say in a sentence what a user can do something about."""
    try:
        verdict = run_story(story)
    except Interrupted as error:
        err.print(f"fleet-sim: {error}", style="red", markup=False)
        return error.exit_code
    except _EXPECTED as error:
        err.print(f"fleet-sim: {error}", style="red", markup=False, soft_wrap=True)
        return ExitCode.ERROR
    return ExitCode.SECURITY if verdict is Verdict.FAIL else ExitCode.OK


def console(file: object) -> Console:
    """Return a console on *file*, wide where that is no terminal."""
    terminal = getattr(file, "isatty", lambda: False)()
    return Console(file=file, width=None if terminal else _WIDTH)  # type: ignore[arg-type]


def environment() -> dict[str, str]:
    """Return what a reader of the outcome must know of this machine."""
    return {
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
