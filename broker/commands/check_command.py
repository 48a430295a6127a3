"""``fleet-broker check``: whether certificates would be admitted now, by a running broker, or by files alone.

Of one certificate every step is shown; of several one line each, and what to do about each code once: enough to find,
before a fleet moves to this broker, those that would be refused.

Exit codes: 0 all would be admitted; 1 one would be refused or cannot be read, or no answer; 2 wrong usage, or
unusable settings.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from broker.commands.admin_command import RunningBroker
from broker.commands.error_line import USAGE, failed, say_wrong
from provisioning.program.gathered_options import with_options
from provisioning.program.given_file import PEM_BYTES, contents_of
from provisioning.program.hung_line import print_hung
from provisioning.program.json_output import print_document
from provisioning.program.printable import printable

_SET_IN = 4
_MARKS = {True: "ok", False: "NO", None: "?"}
_Answer = dict[str, Any]
_Judge = Callable[[bytes], _Answer]


@with_options(RunningBroker, without={"cafile"}, behind=True)
def check(
    running: RunningBroker,
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="A certificate as PEM, then the CA certificates that the client sends; repeatable."
        ),
    ],
    offline: Annotated[
        bool, typer.Option("--offline", help="Do not ask the broker: decide by --config, or by --cafile alone.")
    ] = False,
    cafile: Annotated[
        Path | None, typer.Option(help="With --offline, or --url: trust anchors.", show_default=False)
    ] = None,
) -> None:
    """Show whether a certificate would be admitted now, step by step; of several, a line each. Nothing is connected.

    \b
    Example:
      fleet-broker check meter-17.crt
      fleet-broker check meter-17.crt --offline --cafile ca-bundle.crt
      fleet-broker check certificates/*.crt --offline --config broker.toml
    """
    # Late, like what follows: `broker.commands.admin_command`, rule 3.
    from broker.admission.policy_file import PolicyError
    from broker.settings.config_file import ConfigError
    from provisioning.pki.tls import TlsConfigurationError

    read = [(file, pem) for file in files if (pem := _certificates_of(file)) is not None]
    answers: list[_Answer] = []
    several = len(files) > 1
    try:
        if read:
            with _judge(running, cafile, offline=offline) as judged:
                for file, pem in read:
                    answers.append({"file": str(file)} | judged(pem))
                    if several and not running.as_json:
                        _print_line(answers[-1])
    except (ConfigError, PolicyError, TlsConfigurationError) as error:
        raise failed(str(error), USAGE) from None
    if running.as_json and answers:
        print_document(answers)  # Also of one: who gives any number of files reads one form.
    elif several and answers:
        _print_end(answers, len(files))
    elif answers:
        _print_verdict(answers[0])
    if len(answers) < len(files) or not all(answer["admitted"] for answer in answers):
        raise typer.Exit(1)


def _certificates_of(file: Path) -> bytes | None:
    """Return the certificates in *file* as PEM, or None and say why not. A key in the same file must not be sent."""
    from broker.admin.explain import InvalidCertificateFile, read_certificates
    from provisioning.pki.pem import pem_of

    try:
        return pem_of(*read_certificates(contents_of(file, PEM_BYTES)))
    except FileNotFoundError:
        say_wrong(f"{file} cannot be read: No such file or directory; what happened to a client: fleet-broker why NAME")
    except OSError as error:
        say_wrong(f"{error.filename} cannot be read: {error.strerror}")
    except InvalidCertificateFile as error:
        say_wrong(f"{file}: {error}")
    return None


@contextmanager
def _judge(running: RunningBroker, cafile: Path | None, *, offline: bool) -> Iterator[_Judge]:
    """Yield who judges certificates in PEM: the files alone, or a running broker."""
    from broker.settings.config_file import ConfigError

    if offline:
        if running.elsewhere is not None:
            raise ConfigError("--offline asks no broker, and --url one: give one of them")
        yield _of_files(cafile, running.config)
        return
    if cafile is not None and running.elsewhere is None:
        raise ConfigError("--cafile goes with --offline, or with --url")
    with replace(running, cafile=cafile).client() as client:
        yield partial(client.post_pem, "/v1/check")


def _of_files(cafile: Path | None, config: Path | None) -> _Judge:
    from cryptography import x509

    from broker.admin.explain import read_certificates, verdict_document
    from broker.admission.admission import Admission
    from broker.admission.bundle import TrustBundle
    from broker.admission.check import ask
    from broker.admission.freshness import Freshness
    from broker.admission.policy_file import load_policy
    from broker.admission.status import RevocationStatus
    from broker.admission.trust import Trust
    from broker.credentials.own_certificate import own_trust_domain
    from broker.settings.config_file import ConfigError
    from broker.settings.config_loading import load
    from broker.sources.trust_files import load_trust, read_anchors
    from provisioning.pki.revocation import RevocationIndex

    trust, trust_domain, policy_file = None, None, None
    if config is not None:
        settings = load(config, {} if cafile is None else {"cafile": cafile})
        trust, policy_file, cafile = load_trust(settings), settings.policy_file, settings.cafile
        trust_domain = settings.trust_domain
        if trust_domain is None:
            trust_domain = own_trust_domain(settings.certfile or settings.state_dir / "broker.pem")
    trusted = trust
    if trusted is None:
        if cafile is None:
            raise ConfigError("--offline needs --cafile, or --config")
        trusted = Trust([TrustBundle("", read_anchors([cafile]))])
    # In the order in which OpenSSL is given them.
    anchors = x509.load_pem_x509_certificates(trusted.anchors_pem(trust_domain).encode())
    status = RevocationStatus(RevocationIndex(), Freshness(0.0, always_acceptable=True))
    admission = Admission(status, load_policy(policy_file), trust_domain, trust=trust)

    def judged(pem: bytes) -> _Answer:
        certificates = read_certificates(pem)
        outcome = ask(certificates, anchors, admission, datetime.now(UTC), status=False)
        answer = verdict_document(certificates, anchors, admission, time.monotonic(), outcome)
        for step in answer["steps"]:
            if step["step"] in {"revocation", "freshness"}:
                step |= {"passed": None, "detail": "not known without a running broker"}
        if answer["admitted"]:
            answer["detail"] += ", unless it is revoked"
        return answer

    return judged


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


def _print_line(answer: _Answer) -> None:
    said = answer["detail"] if answer["admitted"] else f"refused: {answer['code']}: {answer['detail']}"
    print_hung(f"{printable(answer['file'])}: {printable(said)}", _SET_IN)


def _print_end(answers: list[_Answer], files: int) -> None:
    """Print what to do about each code, and how many of *files* would be admitted."""
    remedies = {answer["code"]: answer["remedy"] for answer in answers if not answer["admitted"]}
    for code, remedy in remedies.items():
        print_hung(f"what to do about {code}: {remedy}", _SET_IN)
    sys.stdout.write(f"{sum(answer['admitted'] for answer in answers)} of {files} would be admitted\n")
