"""Why a client is not connected: ``fleet-broker why`` shows what happened, ``fleet-broker check`` what would happen.

Exit codes: 0 known, or would be admitted; 1 unknown, would be refused, or no answer; 2 wrong usage.
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from broker.commands.admin_command import Config, Json, Socket, StateDir, admin_client, print_json
from provisioning.program.given_file import PEM_BYTES, contents_of
from provisioning.program.hung_line import print_hung
from provisioning.program.printable import LAID_OUT, printable

_SET_IN = 4
_ABOUT_TLS = (
    "what to do: a client that TLS refuses, for example for an expired certificate, has proved no identity: ask about "
    "its address, or what would happen to its certificate: fleet-broker check FILE"
)
_MARKS = {True: "ok", False: "NO", None: "?"}


def why(
    about: Annotated[str, typer.Argument(help="Client identifier, device, serial number or address.")],
    socket: Socket = None,
    state_dir: StateDir = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show what recently happened to a client, why, and what to do about it.

    \b
    Example:
      fleet-broker why meter-17
      fleet-broker why 192.0.2.7
    """  # noqa: D301 - the help formatter\'s mark for "keep these lines"
    with admin_client(socket, state_dir, config) as client:
        answer = client.get("/v1/why", about=about)
    if as_json:
        print_json(answer)
    else:
        _print_answer(answer)
    if not answer["events"] and not answer["sessions"]:
        raise typer.Exit(1)


def check(
    file: Annotated[
        Path, typer.Argument(help="The certificate as PEM, then the CA certificates that the client sends.")
    ],
    offline: Annotated[
        bool, typer.Option("--offline", help="Do not ask the broker: decide by --config, or by --cafile alone.")
    ] = False,
    cafile: Annotated[Path | None, typer.Option(help="Trust anchors, with --offline.", show_default=False)] = None,
    socket: Socket = None,
    state_dir: StateDir = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show whether a certificate would be admitted now, step by step. Nothing is connected.

    \b
    Example:
      fleet-broker check meter-17.crt
      fleet-broker check meter-17.crt --offline --cafile ca-bundle.crt
    """  # noqa: D301 - the help formatter\'s mark for "keep these lines"
    # Late, like what follows: `broker.commands.admin_command`, rule 3.
    from cryptography.hazmat.primitives.serialization import Encoding

    from broker.admin.explain import InvalidCertificateFile, read_certificates
    from broker.admission.policy_file import PolicyError
    from broker.settings.config_loading import ConfigError
    from provisioning.pki.tls import TlsConfigurationError

    try:
        # Only the certificates: a key in the same file must not be sent.
        pem = b"".join(each.public_bytes(Encoding.PEM) for each in read_certificates(contents_of(file, PEM_BYTES)))
        if offline:
            answer = _check_offline(pem, cafile, config)
        else:
            with admin_client(socket, state_dir, config) as client:
                answer = client.post_pem("/v1/check", pem)
    except OSError as error:
        raise _failed(f"{error.filename} cannot be read: {error.strerror}") from None
    except InvalidCertificateFile as error:
        raise _failed(f"{file}: {error}") from None
    except (ConfigError, PolicyError, TlsConfigurationError) as error:
        raise _failed(str(error)) from None
    if as_json:
        print_json(answer)
    else:
        _print_verdict(answer)
    if not answer["admitted"]:
        raise typer.Exit(1)


def _check_offline(pem: bytes, cafile: Path | None, config: Path | None) -> dict[str, Any]:
    from broker.admin.explain import read_certificates, verdict_document
    from broker.admission.admission import Admission
    from broker.admission.check import ask
    from broker.admission.freshness import Freshness
    from broker.admission.policy_file import load_policy
    from broker.admission.status import RevocationStatus
    from broker.own_certificate import own_trust_domain
    from broker.settings.config_loading import ConfigError, load
    from broker.sources.trust_files import load_trust, read_anchors
    from provisioning.pki.revocation import RevocationIndex

    trust, trust_domain, policy_file = None, None, None
    if config is not None:
        settings = load(config, {} if cafile is None else {"cafile": cafile})
        trust, policy_file, cafile = load_trust(settings), settings.policy_file, settings.cafile
        trust_domain = settings.trust_domain
        if trust_domain is None:
            trust_domain = own_trust_domain(settings.certfile or settings.state_dir / "broker.pem")
    if trust is not None:
        anchors = [anchor.certificate for bundle in trust.bundles for anchor in bundle.anchors]
    elif cafile is not None:
        anchors = read_anchors([cafile])
    else:
        raise ConfigError("--offline needs --cafile, or --config")
    status = RevocationStatus(RevocationIndex(), Freshness(0.0, always_acceptable=True))
    admission = Admission(status, load_policy(policy_file), trust_domain, trust=trust)
    certificates = read_certificates(pem)
    outcome = ask(certificates, anchors, admission, datetime.now(UTC), status=False)
    answer = verdict_document(certificates, anchors, admission, time.monotonic(), outcome)
    for step in answer["steps"]:
        if step["step"] in {"revocation", "freshness"}:
            step |= {"passed": None, "detail": "not known without a running broker"}
    if answer["admitted"]:
        answer["detail"] += ", unless it is revoked"
    return answer


def _print_answer(answer: dict[str, Any]) -> None:
    about = answer["about"]
    for session in answer["sessions"]:
        if session["connected"]:
            since = session["connected_since"].replace("T", " ").replace("Z", " UTC")
            sys.stdout.write(
                f"{printable(session['client_id'])} is connected from {session['address']} since {since}\n"
            )
        else:
            sys.stdout.write(f"{printable(session['client_id'])} is away; its session is kept\n")
    if not answer["sessions"]:
        sys.stdout.write(f"{printable(about)} is not connected\n")
    if not answer["events"]:
        remembered = answer["remembered"]
        sys.stdout.write(
            f"nothing else is known of it; the broker remembers {remembered} event{'' if remembered == 1 else 's'}\n"
        )
        if not answer["sessions"]:
            print_hung(f"    {_ABOUT_TLS}", _SET_IN)
    _print_events(answer["events"])
    if answer["nearby"]:
        sys.stdout.write("\nrefused at the same address, before anybody was named; it may be the same device:\n")
        _print_events(answer["nearby"])


def _print_events(events: list[dict[str, Any]]) -> None:
    last_of = {event["code"]: index for index, event in enumerate(events)}
    for index, event in enumerate(events):
        often = f" x{event['times']} since {_clock(event['first'])}" if event["times"] > 1 else ""
        client_id, identity = event["client_id"] or "", event["identity"] or ""
        who = printable(client_id or identity)
        if event["event"] == "refused" and client_id and identity and client_id != identity.rpartition("/")[2]:
            who += f", asked for by {printable(identity)},"
        serial = f" serial {event['serial']}" if event["serial"] else ""
        head = f"{_clock(event['last'])}  {event['event']:<8}  {event['code']}{often}"
        print_hung(f"{head.rstrip()}  {who} from {event['address']}{serial}".replace("   from", "  from"), _SET_IN)
        if event["detail"]:
            print_hung(f"    {printable(event['detail'])}", _SET_IN)
        if event["remedy"] and last_of[event["code"]] == index:
            print_hung(f"    what to do: {event['remedy']}", _SET_IN)


def _print_verdict(answer: dict[str, Any]) -> None:
    sys.stdout.write(f"{printable(answer['subject'])}, serial {answer['serial']}\n")
    for step in answer["steps"]:
        code = f"{step['code']}: " if step["code"] and step["passed"] is False else ""
        begin = f"  {_MARKS[step['passed']]:<3} {step['step']:<11} "
        print_hung(f"{begin}{code}{printable(step['detail'])}", len(begin))
    if answer["admitted"]:
        sys.stdout.write(f"{answer['detail']}\n")
    else:
        print_hung(f"refused: {answer['code']}: {printable(answer['detail'])}", _SET_IN)
        print_hung(f"what to do: {answer['remedy']}", _SET_IN)


def _clock(moment: str) -> str:
    return moment.replace("T", " ").replace("Z", "")


def _failed(message: str) -> typer.Exit:
    typer.echo(f"fleet-broker: {printable(message, also=LAID_OUT)}", err=True)
    return typer.Exit(1)
