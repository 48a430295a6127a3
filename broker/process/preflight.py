"""What ``--test-config`` checks beyond the settings: the files that they name, and whether the broker could use them.

Nothing is kept open, written, or requested over the network. Each problem names the key, the file and the remedy; all
of them are reported at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from broker.admin.unix_socket import socket_path
from broker.admission.bare_names import idle_names
from broker.admission.foreign_groups import unnamed_groups
from broker.admission.foreign_roles import shared_rules
from broker.admission.policy_file import PolicyError, load_policy
from broker.admission.response_information import ResponseInformation
from broker.audit.head import AuditError, check_key
from broker.credentials.clients_context import refuse_no_authority
from broker.credentials.own_certificate import (
    NAMELESS,
    NAMELESS_REMEDY,
    host_names,
    is_for_servers,
    own_trust_domain,
    read_certificate,
)
from broker.door.listening import ListenError
from broker.process import state_directory
from broker.process.entrances import places
from broker.revocation.revoked_services import RevokedServices
from broker.settings.config import BrokerConfig
from broker.settings.limits import Limits
from broker.sources.anchor_copy import AnchorsNotFetched
from broker.sources.trust_files import load_trust, read_anchors, trust_of_cafile
from broker.store import soundness
from broker.store.database_files import StoreError
from provisioning.pki import guards
from provisioning.pki.crl import CrlRefused, parse, split
from provisioning.pki.own_directory import ForeignDirectory
from provisioning.pki.tls import ClientCertificate, CredentialFiles, TlsConfigurationError, server_context
from provisioning.program import read_only
from provisioning.program.descriptors import most_allowed, room_for
from provisioning.program.given_file import LIST_BYTES, contents_of, unread
from provisioning.program.moments import shown_minute
from provisioning.program.unbound_socket import unbound

RAISE = "raise the hard limit (LimitNOFILE of the unit, ulimit -Hn), or lower limits.max_connections"
_ASKS = ClientCertificate.REQUIRED


def problems(config: BrokerConfig) -> list[str]:
    """Return what would prevent a broker with *config* from starting, or from being useful."""
    found: list[str] = []
    for look in (
        _openssl,
        _policy,
        _responses,
        _anchors,
        _groups,
        _credential,
        _lists,
        _token,
        _state,
        _store,
        _places,
    ):
        found += look(config)
    return found


def _said(key: str, work: Callable[[], object]) -> Iterator[str]:
    try:
        work()
    except AnchorsNotFetched:
        raise
    except (ForeignDirectory, PolicyError, StoreError, TlsConfigurationError) as error:
        yield f"{key}: {error}"


def _openssl(_config: BrokerConfig) -> Iterator[str]:
    if (why := guards.missing()) is not None:
        yield why


def _policy(config: BrokerConfig) -> Iterator[str]:
    unusable = list(_said("policy_file", lambda: load_policy(config.policy_file)))
    yield from unusable
    own, known = _own_domain(config)
    if unusable or not config.trust or not known:
        return
    idle = idle_names(load_policy(config.policy_file), own, {bundle.trust_domain for bundle in config.trust})
    if idle:
        yield f"policy_file: {idle}"


def _responses(config: BrokerConfig) -> Iterator[str]:
    if config.response_information is not None:
        try:
            ResponseInformation(config.response_information)
        except PolicyError as error:
            yield str(error)


def _own_domain(config: BrokerConfig) -> tuple[str | None, bool]:
    """Return the broker's own trust domain, if any, and whether that is known: before it enrols it is not."""
    certificate = config.certfile or config.state_dir / "broker.pem"
    own = config.trust_domain or own_trust_domain(certificate)
    return own, own is not None or _is_there(certificate)


def _anchors(config: BrokerConfig) -> Iterator[str]:
    unusable = list(_said("cafile", lambda: read_anchors([config.cafile])))
    yield from unusable
    if not unusable and not config.trust:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_verify_locations(cadata=trust_of_cafile(config).anchors_pem(None))
        yield from _said("cafile", lambda: refuse_no_authority(context, config.cafile))
    if config.trust:
        with contextlib.suppress(AnchorsNotFetched):  # A first start fetches them; here nothing is requested.
            yield from _said("trust", lambda: load_trust(config))
        for bundle in config.trust:
            if bundle.anchors_url_cafile is not None:
                where = f"trust bundle {bundle.name}: anchors_url_cafile"
                yield from _said(where, partial(read_anchors, [bundle.anchors_url_cafile]))


def _groups(config: BrokerConfig) -> Iterator[str]:
    own, known = _own_domain(config)
    yield from unnamed_groups(own, config.trust) if known else ()


def _credential(config: BrokerConfig) -> Iterator[str]:
    if config.certfile is None or config.keyfile is None:
        return
    files = CredentialFiles(config.certfile, config.keyfile)
    anchors = files.certificate if list(_anchors(config)) else config.cafile  # Unusable ones were reported already.
    unfit = list(_said("certfile, keyfile", lambda: server_context(files, anchors, client_certificate=_ASKS)))
    yield from unfit
    own = None if unfit else read_certificate(config.certfile)
    now = datetime.now(UTC)
    if own is not None and own.not_valid_after_utc <= now:
        yield f"certfile: {config.certfile} has expired on {own.not_valid_after_utc:%Y-%m-%d}; renew it"
    if own is not None and own.not_valid_before_utc > now:
        yield f"certfile: {config.certfile} is valid from {own.not_valid_before_utc:%Y-%m-%d}; compare the clocks"
    if own is not None and not is_for_servers(own):
        yield f"certfile: {config.certfile} is not for servers (no serverAuth): clients would refuse it; give another"


def _lists(config: BrokerConfig) -> Iterator[str]:
    for path in config.crl_files:
        try:
            if path.is_dir():
                continue
            content = contents_of(path, LIST_BYTES)
        except OSError as error:
            yield f"crlfile: {unread(path, error)}"
            continue
        try:
            for der in split(content):
                parse(der)
        except CrlRefused as error:
            yield f"crlfile: {path} is not a usable CRL ({error.detail}); give one in PEM or DER"


def _store(config: BrokerConfig) -> Iterator[str]:
    if config.persistence and _may_write(config.state_dir):  # Otherwise `_state` has said why.
        yield from _said("state_dir", lambda: soundness.look(config.database))


def _may_write(place: Path) -> bool:
    return os.access(place, os.W_OK | os.X_OK)


def doubts(config: BrokerConfig) -> Iterator[str]:
    """Yield what the broker can start with, and is probably a mistake: what it warns of at a start, as far as known.

    Only for settings in which `problems` finds none.
    """
    yield from _reach(config)
    yield from _nameless(config)
    connections = config.limits.max_connections
    if (room := few_descriptors(connections, most_allowed())) is not None:
        yield f"limits.max_connections: {connections:,}, and this user may have descriptors for {room:,} here; {RAISE}"
    if config.persistence and _may_write(config.state_dir):
        with contextlib.suppress(StoreError):  # Told by `problems`, as the errors below.
            if (doubt := soundness.look(config.database, inside=False)) is not None:
                yield f"state_dir: {doubt}"
    now = datetime.now(UTC)
    for path in config.crl_files:
        with contextlib.suppress(OSError, CrlRefused):
            for der in split(contents_of(path, LIST_BYTES)):
                if (until := parse(der).next_update) <= now:
                    yield (
                        f"crlfile: {path} has expired on {shown_minute(until)}: while it has, crl_policy "
                        f"{config.crl_policy} decides about its CA's certificates; put a newer one there"
                    )


def few_descriptors(connections: int, limit: int | None = None) -> int | None:
    """Return for how many of the configured number of *connections* there are descriptors, if those are too few.

    The default of `max_connections` is more than a small broker needs. *limit*: as in `room_for`.
    """
    room = room_for(connections, limit)
    return room if room < connections != Limits().max_connections else None


def _reach(config: BrokerConfig) -> Iterator[str]:
    own, known = _own_domain(config)
    if known:
        yield from shared_rules(own, config.trust, load_policy(config.policy_file))


def _nameless(config: BrokerConfig) -> Iterator[str]:
    path = config.certfile or config.state_dir / "broker.pem"
    own = read_certificate(path)
    if own is not None and not host_names(own):
        yield f"{path} names no host: {NAMELESS}; {NAMELESS_REMEDY}"


def _places(config: BrokerConfig) -> Iterator[str]:
    """Yield each address that this machine does not have, or this user may not use.

    One that is in use may be that of the broker for whose next start the settings are.
    """
    wanted = [*places(config)]
    wanted += [("admin_port", config.admin_host, config.admin_port)] if config.admin_port is not None else []
    wanted += [("metrics_port", config.metrics_host, config.metrics_port)] if config.metrics_port is not None else []
    for setting, host, port in wanted:
        try:
            with unbound(host) as trial:  # Bound, and closed: nobody can connect.
                trial.bind((host, port))
        except (OSError, TypeError) as error:
            if not isinstance(error, OSError) or error.errno != errno.EADDRINUSE:
                yield str(ListenError.of(setting, host, port, error))


def _token(config: BrokerConfig) -> Iterator[str]:
    enrolled = _is_there(config.state_dir / "broker.pem")
    if config.token_file is None or enrolled:
        return
    if not os.access(config.token_file, os.R_OK):
        yield f"token_file: {config.token_file} cannot be read; a new broker needs its token to enrol"
    elif config.token_file.is_file() and not config.token_file.stat().st_size:  # A pipe must not be drained here.
        yield f"token_file: {config.token_file} is empty; a new broker needs its token to enrol"


def _state(config: BrokerConfig) -> Iterator[str]:
    place = state_directory.existing(config.state_dir)
    if not os.path.isdir(place):  # noqa: PTH112 - as in `state_directory`
        yield f"state_dir: {place} is not a directory; name another"
    elif (found := read_only.told(place)) is not None:
        yield f"state_dir: {found}"
    elif not _may_write(place):
        yield f"state_dir: {place} cannot be written by this user; make this user its owner, or name another"
    elif (why := _impossible(config.state_dir)) is not None:
        yield f"state_dir: {config.state_dir} cannot be used: {why}; name another"
    elif place == config.state_dir:
        yield from _said("state_dir", lambda: state_directory.check(config))
        yield from _said("state_dir", lambda: RevokedServices(config.state_dir))
    yield from _files_made(config)


def _files_made(config: BrokerConfig) -> Iterator[str]:
    """Yield what is wrong with the places of the files that the broker makes, outside its state directory."""
    if config.audit_log is not None:
        yield from _place("audit_log", config.audit_log)
        if not _is_there(config.audit_key):
            yield from _place("audit_keyfile", config.audit_key)
        elif not os.access(config.audit_key, os.R_OK):
            yield f"audit_keyfile: {config.audit_key} cannot be read by this user; make it its owner, or name another"
        else:
            try:
                check_key(config.audit_log, config.audit_key)
            except AuditError as error:
                yield str(error)
    socket = socket_path(config.admin_socket, config.state_dir)
    if socket is not None and config.admin_socket is not None:
        yield from _place("admin_socket", socket)
    if socket is not None and _is_there(socket) and not os.path.isdir(socket) and not socket.is_socket():  # noqa: PTH112 - the same
        yield f"admin_socket: {socket} is not a socket; move it away, or name another"


def _place(key: str, path: Path) -> Iterator[str]:
    """Yield why this user can make no file at *path*, for the setting *key*."""
    if os.path.isdir(path):  # noqa: PTH112 - as in `state_directory`
        yield f"{key}: {path} is a directory; name a file"
    elif not _may_write(folder := state_directory.existing(path.parent)):
        yield f"{key}: {folder} cannot be written by this user; let it write there, or name another place"
    elif (why := _impossible(path)) is not None:
        yield f"{key}: {path} cannot be used: {why}; name another place"


def _impossible(path: Path) -> str | None:
    """Return why nothing can be made at *path* in a folder where this user may write; None: it can."""
    try:
        path.lstat()
    except FileNotFoundError:
        return None
    except OSError as error:  # A name that is too long.
        return error.strerror
    return None


def _is_there(path: Path) -> bool:
    """Whether there is something at *path*; not, if this user may not look."""
    return os.path.exists(path)  # noqa: PTH110 - Path.exists raises then
