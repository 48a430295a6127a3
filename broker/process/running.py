"""The broker as a process: settings, log, event loop, and its final messages and exit codes.

Exit codes: 0 stopped, or the settings are valid; 1 it could not start; 2 the settings are unusable.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TextIO, cast

import structlog
import typer

from broker.admin.unix_socket import AdminSocketError
from broker.admission.policy_file import PolicyError
from broker.audit.head import AuditError
from broker.credentials.own_certificate import CredentialError
from broker.door.listening import ListenError
from broker.plugins.errors import PluginError
from broker.process.preflight import RAISE, doubts, few_descriptors, problems
from broker.process.server import BrokerServer
from broker.process.state_directory import NoDirectory
from broker.process.stopping import GIVEN_UP, LEFTOVER_SECONDS
from broker.settings.config import BrokerConfig
from broker.settings.config_file import ConfigError
from broker.settings.config_loading import load, with_its_file
from broker.store.database_files import StoreError
from provisioning.pki import open_to_all
from provisioning.pki.own_directory import ForeignDirectory
from provisioning.pki.tls import TlsConfigurationError, refuse_unguarded
from provisioning.program import core_dumps, out_of_memory
from provisioning.program.descriptors import take_all
from provisioning.program.ending import Ending
from provisioning.program.event_loop import new_event_loop
from provisioning.program.hung_line import hung
from provisioning.program.journal import failure
from provisioning.program.log_stream import LossyStream
from provisioning.program.logs import fit_for_terminal, heed_libraries, renderer_of, stamp
from provisioning.program.printable import LAID_OUT, printable
from provisioning.program.service_manager import ServiceManager

_USAGE = 2
_NOT_STARTED = (
    AdminSocketError,
    AuditError,
    CredentialError,
    ForeignDirectory,
    ListenError,
    NoDirectory,
    PluginError,
    PolicyError,
    StoreError,
    TlsConfigurationError,
)


def run_broker(given: Mapping[str, Any], config: Path | None, *, only_test: bool) -> None:
    """Run the broker until a signal ends it; *only_test*: only report errors in its settings. Raises `typer.Exit`.

    *given* are the command line's values by name; values that are not settings are ignored.
    """
    flags = {key: value for key, value in given.items() if key in BrokerConfig.model_fields}
    try:
        settings = load(config, flags)
    except ConfigError as error:
        raise _failed(str(error), _USAGE) from None
    named = partial(with_its_file, path=config, flags=flags)
    if only_test:
        _test(settings, named)
        return
    configure_log(settings.log_level)
    take_all()
    _count_descriptors(settings.limits.max_connections)
    core_dumps.forbid()
    try:
        ending = Ending(structlog.get_logger("broker"), GIVEN_UP)
        manager = ServiceManager.named_in(os.environ)
        refuse_unguarded()
        _run(BrokerServer(settings, partial(load, config, flags), config, ending, manager), ending)
    except (PolicyError, TlsConfigurationError) as error:  # Which do not know for which setting the file was read.
        said = str(error)
        raise _failed(named(next((each for each in problems(settings) if each.endswith(said)), said)), 1) from None
    except (PluginError, *_NOT_STARTED) as error:
        raise _failed(named(str(error)), 1) from None


def _count_descriptors(connections: int) -> None:
    """Warn if there are fewer descriptors than the configured number of *connections* needs."""
    if (room := few_descriptors(connections)) is not None:
        log = structlog.get_logger("broker")
        log.warning("too few descriptors", code="FEW_DESCRIPTORS", detail=RAISE, room=room, max_connections=connections)


def _test(settings: BrokerConfig, named: Callable[[str], str]) -> None:
    """Report what is wrong with *settings*, each *named* with the file that it comes from."""
    if found := problems(settings):
        for problem in found:
            _say(failure(f"fleet-broker: {printable(named(problem), also=LAID_OUT)}", sys.stderr))
        raise typer.Exit(_USAGE)
    if settings.plugins:
        from broker.plugins.loading import find_plugins  # Imports amqtt, only if there are plugins.

        try:
            find_plugins(settings.plugins)
        except PluginError as error:
            raise _failed(named(str(error)), _USAGE) from None
    if settings.keyfile is not None and (warning := open_to_all.told_of(settings.keyfile)) is not None:
        _say(f"fleet-broker: warning: keyfile: {printable(warning, also=LAID_OUT)}")
    for doubt in doubts(settings):
        _say(f"fleet-broker: warning: {printable(doubt, also=LAID_OUT)}")
    typer.echo("the settings are valid")


def _say(line: str) -> None:
    typer.echo(hung(line, sys.stderr), err=True)


def _failed(text: str, code: int) -> typer.Exit:
    _say(failure(f"fleet-broker: {printable(text, also=LAID_OUT)}", sys.stderr))
    return typer.Exit(code)


def _run(server: BrokerServer, ending: Ending) -> None:
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        try:
            with out_of_memory.watched(runner.get_loop(), "fleet-broker"):
                runner.run(server.run())
        except _NOT_STARTED as error:
            ending.within(LEFTOVER_SECONDS, 1, f"fleet-broker: {printable(str(error), also=LAID_OUT)}\n")
            raise
        except OSError as error:  # The command line would take some for a closed output pipe, and stay silent.
            ending.within(LEFTOVER_SECONDS, 1, traceback.format_exc())
            raise RuntimeError(f"a part of the broker has failed: {error!r}") from error
        except BaseException:
            ending.within(LEFTOVER_SECONDS, 1, traceback.format_exc())
            raise
        ending.within(LEFTOVER_SECONDS, 0)


_ENCODER = json.JSONEncoder(default=repr)


def _encoded(event: dict[str, Any], **_options: Any) -> str:
    """Return *event* as JSON, with one shared encoder: `json.dumps` with options creates another for each line."""
    return _ENCODER.encode(event)


def configure_log(level: str) -> None:
    """Log to standard error from now on: as JSON lines, or in readable form on a terminal."""
    terminal = sys.stderr.isatty()
    # A log that cannot be written, because the disk is full or its reader hangs, must not stop the broker.
    lines = cast("TextIO", LossyStream(sys.stderr))
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            stamp,
            fit_for_terminal if terminal else structlog.processors.format_exc_info,
            renderer_of(structlog.processors.JSONRenderer(_encoded)),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.WriteLoggerFactory(lines),
        cache_logger_on_first_use=True,
    )
    heed_libraries(lines, {}, watched=terminal)
