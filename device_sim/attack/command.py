"""`fleet-sim attack`, `revocation`, `delivery` and `attack-table`; other modules do the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from device_sim.attack.given import Given
from device_sim.late_imports import late_imports
from provisioning.program.gathered_options import with_options
from provisioning.program.given_file import unread


@with_options(Given)
def attack(given: Given) -> None:
    """Try what a malicious device can do, and check how each attempt is refused.

    Exit code 4: a case failed; 3: none failed, and one could not be judged on this machine; 1: none was tried.

    \b
    Example:
      fleet-sim attack
      fleet-sim attack --broker mqtts://broker:8883 --cafile ca.crt --ca-cert ca.crt --ca-key ca.key
      fleet-sim attack --only 3-expired --json outcomes.json
    """
    with late_imports():
        from device_sim.attack.attacking import judge
        from device_sim.attack.catalogue import CATALOGUE, WEBSOCKET

    judge("attack", (*CATALOGUE, *WEBSOCKET) if given.websocket else CATALOGUE, given)


@with_options(Given)
def revocation(given: Given) -> None:
    """Try to circumvent a revocation in every way, and check that it holds.

    Exit code 4: a case failed; 3: none failed, and one could not be judged on this machine; 1: none was tried.

    \b
    Example:
      fleet-sim revocation
      fleet-sim revocation --against mosquitto --json mosquitto.json
    """
    with late_imports():
        from device_sim.attack.attacking import judge
        from device_sim.attack.revocation_list import chapter

    judge("revocation", chapter.cases, given, tls12=True)


@with_options(Given)
def delivery(given: Given) -> None:
    """Test delivery guarantees, clause by clause, with MQTT 5 and with MQTT 3.1.1.

    Wills, quotas, exactly once, expiry, retained messages, topic aliases, shared subscriptions, subscription
    identifiers, properties, session takeover, topic matching, order. --list names the clause of each case.

    Exit code 99: a case failed; 3: none failed, and one could not be judged on this machine; 1: none was tried.

    \b
    Example:
      fleet-sim delivery --against mosquitto --only 1-will-cut --json mosquitto.json
    """
    with late_imports():
        from device_sim.attack.attacking import judge
        from device_sim.attack.delivery_list import OWED
        from device_sim.report import ExitCode

    judge("delivery", OWED, given, failed=ExitCode.THRESHOLD)


def attack_table(
    files: Annotated[list[Path], typer.Argument(help="JSON files of `attack`, `revocation` or `delivery`.")],
    every: Annotated[
        bool, typer.Option("--every", help="Of `delivery`, a row also for cases that nobody fails.")
    ] = False,
) -> None:
    """Print one Markdown table that compares several runs.

    \b
    Example:
      fleet-sim attack-table fleetgate.json mosquitto.json
    """
    with late_imports():
        from device_sim.attack import report

    documents = []
    for path in files:
        try:
            document = report.read_json(path)
            report.markdown([document])  # Whoever has edited it is told which one it is.
            documents.append(document)
        except OSError as error:
            raise typer.BadParameter(unread(path, error)) from None
        except ValueError as error:
            raise typer.BadParameter(f"{path} is no outcome of attack, revocation or delivery: {error}") from None
        except (AttributeError, LookupError, TypeError):
            raise typer.BadParameter(f"{path} is not whole: make it again by `--json`, and leave it as it is") from None
    typer.echo(report.markdown(documents, every=every), nl=False)
