"""Turns an error into a sentence and an exit code: the one place where the command line does so.

An error that the user can fix becomes one line; a bug keeps its traceback. Which errors those are is only looked up
when one occurs: their modules are most of the simulator, and a successful command need not import them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from device_sim.interruption import Interrupted
from device_sim.report import ExitCode
from device_sim.view import View


def _expected() -> tuple[type[Exception], ...]:
    """Return the classes of errors that the user can fix."""
    from device_sim.credentials.certification import UnusableAuthority
    from device_sim.credentials.credential_file import UnusableCredential
    from device_sim.credentials.fleet_directory import FleetUnusable
    from device_sim.link.link import NotConnected, SubscriptionRefused
    from device_sim.link.tls_dial import NotAdmitted
    from device_sim.results.document import UnreadableReport
    from device_sim.run.control import Unreachable
    from device_sim.run.target import NoReceiver
    from device_sim.stage.foreign_process import ServerMissing
    from device_sim.stage.processes import ChildFailed
    from provisioning.client.est import EnrolmentRefused, EnrolmentUnavailable
    from provisioning.client.operator import RequestRefused, ServiceUnavailable
    from provisioning.pki.identity import InvalidIdentity
    from provisioning.pki.keys import KeyFileError
    from provisioning.pki.tls import TlsConfigurationError

    return (
        ChildFailed, EnrolmentRefused, EnrolmentUnavailable, FleetUnusable, InvalidIdentity, KeyFileError, NoReceiver,
        NotAdmitted, NotConnected, RequestRefused, ServerMissing, ServiceUnavailable, SubscriptionRefused,
        TlsConfigurationError, Unreachable, UnreadableReport, UnusableAuthority,
        UnusableCredential,
        OSError,
    )  # fmt: skip


@contextmanager
def explained(view: View, hint: str = "", also: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn expected errors, and those in *also*, into words and `typer.Exit`; show *hint* after an interruption."""
    try:
        yield
    except Interrupted as error:
        view.failed(error)
        if hint:
            view.said(hint)
        raise typer.Exit(error.exit_code) from None
    except (*_expected(), *also) as error:
        view.failed(error)
        raise typer.Exit(ExitCode.ERROR) from None
    except BaseExceptionGroup as group:
        expected, unexpected = group.split((*_expected(), *also))
        if unexpected is not None or expected is None:
            raise
        # What many were told alike is said once.
        for leaf in {str(each): each for each in _leaves(expected)}.values():
            view.failed(leaf)
        raise typer.Exit(ExitCode.ERROR) from None


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error
