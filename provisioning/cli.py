"""The command line: found an authority, run the service, and the operator's commands.

Rules
-----
1. An error is one line that names the problem and the remedy; the exit code is 0 done, 1 refused or failed, 2 misused
   or configured with an invalid setting.
2. Flags come before the environment, the environment before the file (`provisioning.config`).
3. Results go to stdout, everything else to stderr.
4. A command is imported when it is named, and what it needs when it is called (`tests/unit/test_command_lines.py`).
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

from provisioning.commands.ceremony_command import PassphraseFile, PinFile, now
from provisioning.commands.service_command import fail, say, warn_of_doubts, warn_of_open
from provisioning.errors import ConfigurationError, Refused
from provisioning.program import command_line, interruption
from provisioning.program.build import build_identity, read_ahead
from provisioning.program.command_group import command_group
from provisioning.program.json_output import Json, print_document
from provisioning.program.moments import shown_minute
from provisioning.program.starting import importing
from provisioning.program.version import product_version, version_and_build
from provisioning.program.version_option import version_option

if TYPE_CHECKING:
    from provisioning.authorities.ceremony_transcript import Transcript
    from provisioning.config import Settings
    from provisioning.directory.files import AuthorityFiles
    from provisioning.program.service_manager import ServiceManager

_CREDIBLE_YEAR: Final = 2025
"""No machine that runs this has an earlier one, unless nobody has set its clock yet."""
Directory = Annotated[
    Path | None, typer.Option("--dir", help="The service's directory (default: fleet).", show_default=False)
]
PublicHttpUrl = Annotated[
    str | None,
    typer.Option(help="Where relying parties reach the plain HTTP port, as written into certificates."),
]


def run(make: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a service's coroutine."""
    import asyncio

    from provisioning.program.event_loop import new_event_loop
    from provisioning.program.out_of_memory import watched

    with asyncio.Runner(loop_factory=new_event_loop) as runner, watched(runner.get_loop(), "fleet-provisioning"):
        runner.run(make())


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn an error that a person can act on into one line, and exit code 1, or 2 for invalid settings."""
    try:
        yield
    except (ConfigurationError, Refused) as error:
        raise fail(error) from error
    except KeyboardInterrupt as error:
        say("fleet-provisioning: stopped")
        raise typer.Exit(interruption.EXIT_CODE) from error


def settings_of(directory: Path | None, **flags: object) -> Settings:
    """Return the settings for a command."""
    from provisioning.config import load_settings  # Late: `service_command`, rule 3.

    return load_settings(directory, **flags)


def init(
    directory: Directory = None,
    trust_domain: Annotated[
        str | None, typer.Option(help="First part of every identity (default: fleet.internal).", show_default=False)
    ] = None,
    passphrase_file: PassphraseFile = None,
    server_name: Annotated[
        list[str] | None,
        typer.Option(
            help="DNS name or IP address of the HTTPS server; repeatable (default: localhost, 127.0.0.1, ::1).",
            show_default=False,
        ),
    ] = None,
    public_http_url: PublicHttpUrl = None,
    signer: Annotated[
        str | None,
        typer.Option(
            help="Where the CA keys are made: file, or pkcs11:token=LABEL?module-path=FILE (default: file).",
            show_default=False,
        ),
    ] = None,
    pin_file: PinFile = None,
    witness: Annotated[
        list[str] | None,
        typer.Option(help="A witness of the key ceremony, for its transcript; repeatable.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Found a certificate authority: root and issuing CA, the server's and the first operator's credentials.

    \b
    Example:
      fleet-provisioning init --dir /var/lib/fleet --passphrase-file /etc/fleet/passphrase --server-name ca.example.org
    """
    # Each command imports what it needs: `--help` and the API commands start without the server.
    with importing():
        import asyncio

        from provisioning.authorities.authority import found, founding
        from provisioning.authorities.own_credentials import DEFAULT_SERVER_NAMES
        from provisioning.authorities.workshop import told_of_left
        from provisioning.directory.doubts import about_founding
        from provisioning.program import termination
        from provisioning.program.logs import configure_logging

    transcript = founding(now, witness or ())

    async def founded(settings: Settings) -> AuthorityFiles:
        if (when := now()).year < _CREDIBLE_YEAR:
            raise ConfigurationError(
                f"the clock says {shown_minute(when)}, and all certificates would end by it: "
                "set the clock (timedatectl set-ntp true), then found the authority"
            )
        with termination.cancelled_by_sigterm():
            return await found(settings, server_name or settings.server_names or DEFAULT_SERVER_NAMES, now, transcript)

    configure_logging(least="error")  # What it does it says at its end, and what is in its way there.
    with explained():
        settings = settings_of(
            directory,
            trust_domain=trust_domain,
            passphrase_file=passphrase_file,
            public_http_url=public_http_url,
            signer=signer,
            pkcs11_pin_file=pin_file,
        )
        warn_of_open(settings.passphrase_file, settings.pkcs11_pin_file)
        for left in told_of_left(settings.directory.absolute()):
            say(f"fleet-provisioning: warning: {left}")
        try:
            files = asyncio.run(founded(settings))
        except asyncio.CancelledError as error:
            say("fleet-provisioning: stopped")
            raise typer.Exit(termination.EXIT_CODE) from error
        warn_of_doubts(settings)
        for doubt in about_founding(settings, server_name or settings.server_names or ()):
            say(f"fleet-provisioning: warning: {doubt}")
    opened_with = {"--passphrase-file": passphrase_file, "--pkcs11-pin-file": pin_file}
    _say_founded(settings.trust_domain, files, transcript, opened_with, as_json=as_json)


def _say_founded(
    trust_domain: str,
    files: AuthorityFiles,
    transcript: Transcript,
    opened_with: Mapping[str, Path | None],
    *,
    as_json: bool,
) -> None:
    """Print where what was founded is, and the command that serves it: with the options it is *opened_with*."""
    from provisioning.directory.files import ISSUING_CA, OPERATOR

    if as_json:
        made = {"directory": files.directory, "trust_anchors": files.bundle, "operator_key": files.key(OPERATOR)}
        certificates = {"operator": files.certificate(OPERATOR), "issuing_ca": files.certificate(ISSUING_CA)}
        made["transcript"] = transcript.path_in(files.directory)
        paths = {name: str(path) for name, path in (made | certificates).items()}
        print_document({"trust_domain": trust_domain} | paths | {"transcript_sha256": transcript.digest})
        return
    flags = "".join(f" {flag} {shlex.quote(str(path))}" for flag, path in opened_with.items() if path is not None)
    sys.stdout.write(
        f"Founded the authority of {trust_domain} in {files.directory}\n"
        f"  trust anchors for devices and brokers  {files.bundle}\n"
        f"  first operator                         {files.certificate(OPERATOR)}, {files.key(OPERATOR)}\n"
        f"  issuing CA                             {files.certificate(ISSUING_CA)}\n"
        f"  transcript of the key ceremony         {transcript.path_in(files.directory)}\n"
        f"Next: fleet-provisioning serve --dir {shlex.quote(str(files.directory))}{flags}\n"
    )


def serve(
    directory: Directory = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on (default: 127.0.0.1).", show_default=False)
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="HTTPS port, 0 for a free one (default: 8443).", show_default=False)
    ] = None,
    http_port: Annotated[
        int | None,
        typer.Option(help="Plain HTTP port for CRLs and CA certificates, 0 for a free one (default: 8080)."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Service processes on these ports, on PostgreSQL only (default: 1).", show_default=False),
    ] = None,
    public_listener: Annotated[
        bool | None,
        typer.Option("--public-listener", help="Allow a host that is not a loopback address.", show_default=False),
    ] = None,
    passphrase_file: PassphraseFile = None,
    public_http_url: PublicHttpUrl = None,
    pin_file: PinFile = None,
    log_level: Annotated[
        str | None,
        typer.Option(
            help="debug, info, warning or error (default: info).",
            autocompletion=lambda: ["debug", "info", "warning", "error"],
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print that line as JSON.")] = False,
) -> None:
    """Run the service until SIGINT or SIGTERM. One line on stdout says when and where it accepts connections.

    SIGHUP reloads profiles, lifetimes, key_blocklist and webhook_cafile from provisioning.toml.

    \b
    Example:
      fleet-provisioning serve --dir /var/lib/fleet --host 0.0.0.0 --public-listener \\
        --public-http-url http://ca.example.org:8080
    """
    read_ahead()
    with importing():
        from provisioning.directory.files import AuthorityFiles
        from provisioning.program import core_dumps
        from provisioning.program.descriptors import take_all
        from provisioning.program.logs import configure_logging
        from provisioning.program.service_manager import ServiceManager
        from provisioning.service.server import serve as serve_until_stopped

    manager = ServiceManager.named_in(os.environ)

    def again() -> Settings:
        return settings_of(
            directory,
            host=host,
            port=port,
            http_port=http_port,
            workers=workers,
            public_listener=public_listener,
            passphrase_file=passphrase_file,
            public_http_url=public_http_url,
            pkcs11_pin_file=pin_file,
            log_level=log_level,
        )

    with explained():
        settings = again()
        configure_logging(least=settings.log_level)
        take_all()
        core_dumps.forbid()
        AuthorityFiles(settings.directory).check_there()  # First: a port that is taken is not what is wrong then.
        if settings.workers == 1:
            run(lambda: serve_until_stopped(settings, again, manager, as_json=as_json))
            return
        code = _serve_with_workers(settings, again, manager, as_json=as_json)
    if code:
        raise typer.Exit(code)


def _serve_with_workers(
    settings: Settings, again: Callable[[], Settings], manager: ServiceManager, *, as_json: bool
) -> int:
    """Run the settings' number of workers until they have ended; return the exit code."""
    from provisioning.connections.listening import bound_for, check_public
    from provisioning.program.logs import configure_logging
    from provisioning.service.reloading import LastGood
    from provisioning.service.server import check_workers, say_ready, serve_as_worker
    from provisioning.service.worker_place import WorkerPlace
    from provisioning.service.workers import Supervisor

    last_good = LastGood(settings, again)
    build_identity()  # No thread of ours may be at work when the workers are forked.

    def work(place: WorkerPlace) -> int:
        configure_logging(place.number, least=settings.log_level)
        try:
            with explained():
                run(lambda: serve_as_worker(settings, again, place, last_good.read))
        except typer.Exit as end:
            return end.exit_code
        return 0

    check_public(settings)
    check_workers(settings)
    with bound_for(settings, settings.workers) as places:
        on_ready = partial(say_ready, places[0], as_json=as_json)
        return Supervisor(places, work, on_ready, on_hangup=last_good.reload, manager=manager).run()


def version(as_json: Json = False) -> None:
    """Print version and build."""
    if as_json:
        print_document({"name": "fleet-provisioning", "version": product_version(), "build": build_identity()})
        return
    sys.stdout.write(f"fleet-provisioning {version_and_build()}\n")


def about(*, version: Annotated[bool, version_option("fleet-provisioning")] = False) -> None:
    """Enrol devices, issue, renew and revoke their certificates, publish CRLs and a live revocation feed."""
    del version  # Has been answered, if it was asked.


_COMMANDS: Final = "provisioning.commands"
app = command_group(
    name="fleet-provisioning",
    callback=about,
    late={
        "init": init,
        "serve": serve,
        "revoke": f"{_COMMANDS}.lifecycle_commands:revoke",
        "suspend": f"{_COMMANDS}.lifecycle_commands:suspend",
        "resume": f"{_COMMANDS}.lifecycle_commands:resume",
        "decommission": f"{_COMMANDS}.lifecycle_commands:decommission",
        "status": f"{_COMMANDS}.operator_commands:status",
        "doctor": f"{_COMMANDS}.doctor_command:doctor",
        "version": version,
        "token": f"{_COMMANDS}.token_commands:token_app",
        "device": f"{_COMMANDS}.operator_commands:device_app",
        "certificate": f"{_COMMANDS}.certificate_commands:certificate_app",
        "audit": f"{_COMMANDS}.audit_commands:audit_app",
        "ca": f"{_COMMANDS}.ca_commands:ca_app",
        "operator": f"{_COMMANDS}.operator_role_commands:operator_app",
        "group": f"{_COMMANDS}.group_commands:group_app",
        "claim": f"{_COMMANDS}.claim_commands:claim_app",
        "manufacturer": f"{_COMMANDS}.manufacturer_commands:manufacturer_app",
        "listed": f"{_COMMANDS}.listed_commands:listed_app",
        "approval": f"{_COMMANDS}.approval_commands:approval_app",
        "renewal": f"{_COMMANDS}.renewal_commands:renewal_app",
    },
)


def main() -> NoReturn:
    """Run the command line and exit."""
    command_line.run(app, "fleet-provisioning")
