"""The arguments of `fleet-sim attack`, `revocation`, `delivery` and `attack-table`; what they do is beside this."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from device_sim.attack.against import Against
from device_sim.broker_words import BrokerOption, HostOption, PortOption, named
from device_sim.late_imports import late_imports

AgainstOption = Annotated[
    Against | None,
    typer.Option("--against", help="Start this one and attack it (default: fleetgate).", show_default=False),
]
NameOption = Annotated[
    str | None,
    typer.Option(
        "--server-name",
        help="The name that the broker's certificate bears (default: that of --broker; of an address, localhost).",
        show_default=False,
    ),
]
CafileOption = Annotated[Path | None, typer.Option("--cafile", help="Trust anchors for its certificate, PEM.")]
CaCertOption = Annotated[Path | None, typer.Option("--ca-cert", help="The CA whose devices it lets in, PEM.")]
CaKeyOption = Annotated[Path | None, typer.Option("--ca-key", help="That CA's key, PEM, unencrypted.")]
ProvisioningOption = Annotated[
    str | None,
    typer.Option(
        "--provisioning",
        help="Its provisioning service, https://…: devices of the attack's own are enrolled there, and revoked.",
        show_default=False,
    ),
]
CertOption = Annotated[
    Path | None, typer.Option("--cert", help="With --provisioning: operator certificate.", show_default=False)
]
KeyOption = Annotated[Path | None, typer.Option("--key", help="Its private key.", show_default=False)]
CapabilitiesOption = Annotated[
    Path | None,
    typer.Option(
        "--capabilities",
        help="What the broker claims, TOML; else everything, or with --provisioning what a Fleetgate does.",
    ),
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option("--only", help="Only these cases: numbers, names, patterns; repeat or join by ','."),
]
ListOption = Annotated[bool, typer.Option("--list", help="Show the cases and try none.")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write the outcomes to this JSON file.")]
JunitOption = Annotated[Path | None, typer.Option("--junit", help="Write the outcomes to this JUnit XML file.")]


def attack(
    against: AgainstOption = None,
    broker: BrokerOption = None,
    host: HostOption = None,
    port: PortOption = None,
    server_name: NameOption = None,
    cafile: CafileOption = None,
    ca_cert: CaCertOption = None,
    ca_key: CaKeyOption = None,
    provisioning: ProvisioningOption = None,
    cert: CertOption = None,
    key: KeyOption = None,
    capabilities: CapabilitiesOption = None,
    only: OnlyOption = None,
    show_list: ListOption = False,
    json: JsonOption = None,
    junit: JunitOption = None,
) -> None:
    """Try every way in that a bad device has, and judge how each is refused.

    Exit code 4: one failed; 3: none did, and one could not be judged on this machine; 1: none tried.
    """
    with late_imports():
        from device_sim.attack.attacking import judge
        from device_sim.attack.catalogue import CATALOGUE
        from device_sim.attack.choosing import Given, chosen

    where = named(broker, host, port)
    given = Given(server_name, cafile, ca_cert, ca_key, provisioning, cert, key, capabilities)
    target = chosen(against, where, given, tls12=False)
    judge("attack", CATALOGUE, target, only, show_list, json, junit)


def revocation(
    against: AgainstOption = None,
    broker: BrokerOption = None,
    host: HostOption = None,
    port: PortOption = None,
    server_name: NameOption = None,
    cafile: CafileOption = None,
    ca_cert: CaCertOption = None,
    ca_key: CaKeyOption = None,
    provisioning: ProvisioningOption = None,
    cert: CertOption = None,
    key: KeyOption = None,
    capabilities: CapabilitiesOption = None,
    only: OnlyOption = None,
    show_list: ListOption = False,
    json: JsonOption = None,
    junit: JunitOption = None,
) -> None:
    """Try every way around a revocation, and judge whether it holds.

    Exit code 4: one failed; 3: none did, and one could not be judged on this machine; 1: none tried.
    """
    with late_imports():
        from device_sim.attack.attacking import judge
        from device_sim.attack.choosing import Given, chosen
        from device_sim.attack.revocation_list import chapter

    where = named(broker, host, port)
    given = Given(server_name, cafile, ca_cert, ca_key, provisioning, cert, key, capabilities)
    target = chosen(against, where, given, tls12=True)
    judge("revocation", chapter.cases, target, only, show_list, json, junit)


def delivery(
    against: AgainstOption = None,
    broker: BrokerOption = None,
    host: HostOption = None,
    port: PortOption = None,
    server_name: NameOption = None,
    cafile: CafileOption = None,
    ca_cert: CaCertOption = None,
    ca_key: CaKeyOption = None,
    provisioning: ProvisioningOption = None,
    cert: CertOption = None,
    key: KeyOption = None,
    capabilities: CapabilitiesOption = None,
    only: OnlyOption = None,
    show_list: ListOption = False,
    json: JsonOption = None,
    junit: JunitOption = None,
) -> None:
    """Try what a broker owes to good devices, promise by promise, by MQTT 5 and by 3.1.1.

    Wills, quotas, exactly once, expiry, retained messages, topic aliases, shared subscriptions, identifiers,
    properties, takeovers, matching, order. --list names the clause of each.

    Exit code 99: one failed; 3: none did, and one could not be judged on this machine; 1: none tried.
    """
    with late_imports():
        from device_sim.attack.attacking import judge
        from device_sim.attack.choosing import Given, chosen
        from device_sim.attack.delivery_list import OWED
        from device_sim.report import ExitCode

    where = named(broker, host, port)
    given = Given(server_name, cafile, ca_cert, ca_key, provisioning, cert, key, capabilities)
    target = chosen(against, where, given, tls12=False)
    judge("delivery", OWED, target, only, show_list, json, junit, failed=ExitCode.THRESHOLD)


def attack_table(
    files: Annotated[list[Path], typer.Argument(help="JSON files of `attack`, `revocation` or `delivery`.")],
    every: Annotated[
        bool, typer.Option("--every", help="Of `delivery`, a row also for cases that nobody fails.")
    ] = False,
) -> None:
    """Print one Markdown table that compares several runs."""
    with late_imports():
        from device_sim.attack import report

    documents = []
    for path in files:
        try:
            documents.append(report.read_json(path))
        except OSError as error:
            raise typer.BadParameter(f"{path} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise typer.BadParameter(f"{path} is no outcome of attack, revocation or delivery: {error}") from None
    typer.echo(report.markdown(documents, every=every), nl=False)
