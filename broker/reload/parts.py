"""The parts of a running broker that can be replaced: its certificate, its trust anchors, its policy, its limits.

Rules
-----
1. `load` reads and checks, and changes nothing; it may run in a thread. The error it raises is the reason why the old
   part stays. It returns `Unchanged` if nothing is new.
2. `apply` cannot fail.
3. A new certificate or trust anchor is a new TLS context: it applies from the next handshake, open connections stay,
   and TLS sessions of the old context are not resumed. So nothing is replaced if no byte has changed.
4. What is in use is kept in memory, separately for each part: a context for other anchors presents the certificate that
   was last accepted, not the present content of its file, which may have been refused or is being written; and vice
   versa.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from broker.admission.policy import TopicPolicy
from broker.admission.policy_file import DEFAULT_POLICY_FILE, parse_policy, read_policy
from broker.credentials.own_certificate import NotToday, OwnCertificate, certificate_of, is_for_servers
from broker.door.listener import Listener
from broker.engine.engine import Engine
from broker.reload.policy_change import change, preview, warn_of_reach
from broker.reload.report import Effects, Part
from broker.settings.config import BrokerConfig
from broker.settings.limits import Limits
from broker.settings.origins import Origins
from broker.sources.staple import Staple
from broker.sources.trust_files import anchor_files
from provisioning.pki.serial_number import serial_text
from provisioning.pki.tls import CredentialPem, TlsConfigurationError
from provisioning.program.counted import counted
from provisioning.program.given_file import PEM_BYTES, contents_of
from provisioning.program.moments import shown_time

_RELOADED_SETTINGS = frozenset(
    {
        *("limits", "policy_file", "trust", "crlfile", "crl_urls", "crl_from_certificates", "crl_policy"),
        *("ocsp_responder", "ocsp_from_certificates", "ocsp_policy"),
        *("websocket_origins", "unsafe_any_websocket_origin", "proxy_protocol_from"),
    }
)


@dataclass(frozen=True, slots=True)
class Unchanged:
    """Nothing is new."""

    detail: str = ""


@dataclass(frozen=True, slots=True)
class ProposedAnchors:
    """Trust anchors that a dry run is to try: PEM, for one bundle; None: for ``cafile``."""

    pem: str
    bundle: str | None = None


Candidate = str | ProposedAnchors
"""What a dry run tries: the text of a policy file, or anchors."""


class Reloadable(Protocol):
    """A part."""

    @property
    def part(self) -> Part:
        """Which part it is."""

    def files(self, config: BrokerConfig) -> Sequence[Path]:
        """Return the files whose change triggers a reload."""

    def load(self, config: BrokerConfig, candidate: Candidate | None) -> Any:
        """Return what is new, checked, or `Unchanged`; *candidate* replaces the file's content."""

    async def preview(self, loaded: Any) -> tuple[str, Effects | None]:
        """Describe what is new, and what `apply` would do."""

    async def apply(self, loaded: Any) -> tuple[str, Effects | None]:
        """Replace the part; describe what is new, and the effects."""


class ReloadedPolicy:
    """The topic policy."""

    part = Part.POLICY

    def __init__(self, engine: Engine, text: str, clock: Callable[[], float]) -> None:
        """Begin with the policy in *text*, which the engine has."""
        self._engine = engine
        self._text = text
        self._clock = clock

    def files(self, config: BrokerConfig) -> Sequence[Path]:
        """Return the policy file."""
        return [config.policy_file] if config.policy_file is not None else []

    def load(self, config: BrokerConfig, candidate: Candidate | None) -> tuple[str, TopicPolicy] | Unchanged:
        """Return text and policy. Raises `PolicyError`."""
        text = candidate if isinstance(candidate, str) else read_policy(config.policy_file)
        if text == self._text:
            return Unchanged()
        name = "the proposed policy" if candidate is not None else str(config.policy_file or DEFAULT_POLICY_FILE.name)
        return text, parse_policy(text, name)

    async def preview(self, loaded: tuple[str, TopicPolicy]) -> tuple[str, Effects | None]:
        """Judge every session by the new policy."""
        return self._engine.admission.idle_names(loaded[1]), await preview(self._engine, loaded[1])

    async def apply(self, loaded: tuple[str, TopicPolicy]) -> tuple[str, Effects | None]:
        """Activate the new policy."""
        self._text, policy = loaded
        effects = await change(self._engine, policy, self._clock)
        return warn_of_reach(self._engine.admission), effects


class ReloadedCertificate:
    """The broker's own certificate: the listeners get a new context. For anchors see `broker.reload.trust_change`."""

    part = Part.CERTIFICATE

    def __init__(
        self,
        own: OwnCertificate,
        build: Callable[[CredentialPem], ssl.SSLContext],
        listeners: Sequence[Listener],
        staple: Staple,
    ) -> None:
        """Begin with *own*; *build* creates a context that presents another one, or raises."""
        self._own = own
        self._build = build
        self._listeners = listeners
        self._staple = staple

    def files(self, _config: BrokerConfig) -> Sequence[Path]:
        """Return the files with the certificate and key."""
        return list(dict.fromkeys((self._own.files.certificate, self._own.files.key)))

    def load(
        self, _config: BrokerConfig, _candidate: Candidate | None
    ) -> tuple[CredentialPem, ssl.SSLContext, str] | Unchanged:
        """Return the content of the files, and a context. Raises `TlsConfigurationError`."""
        files = self._own.files
        now = CredentialPem.of(files)
        if now == self._own.credential:
            return Unchanged()
        return now, self._build(now), describe_certificate(now, files.certificate)

    async def preview(self, loaded: tuple[CredentialPem, ssl.SSLContext, str]) -> tuple[str, Effects | None]:
        """Describe the content of the files."""
        return loaded[2], None

    async def apply(self, loaded: tuple[CredentialPem, ssl.SSLContext, str]) -> tuple[str, Effects | None]:
        """Give the listeners the context."""
        credential, context, detail = loaded
        self._own.use(credential)
        self._staple.adopt(context)
        await self._staple.tried()  # A moment, so that no client gets the new certificate without its staple.
        for listener in self._listeners:
            listener.context = context
        return detail, None


@dataclass(frozen=True, slots=True)
class NewLimits:
    """The limits from now on."""

    limits: Limits
    whom: tuple[_Whom, ...]
    """By listener."""
    detail: str


@dataclass(frozen=True, slots=True)
class _Whom:
    """Whom one listener believes."""

    origins: Origins
    """Whose web pages may connect."""
    proxies: tuple[str, ...]
    """The networks that send PROXY headers."""


class ReloadedLimits:
    """The limits, whose web pages may connect, and who sends PROXY headers; also what needs a restart."""

    part = Part.LIMITS

    def __init__(self, engine: Engine, started_with: BrokerConfig, listeners: Sequence[Listener] = ()) -> None:
        """Change *listeners*: those in the settings, in order, followed by the one without TLS, if any."""
        self._engine = engine
        self._started_with = started_with
        self._listeners = listeners
        self._places = [each.place for each in started_with.listeners]
        self._whom = tuple(_whom(started_with))

    def files(self, _config: BrokerConfig) -> Sequence[Path]:
        """Return none: the reloader watches the settings file itself."""
        return []

    def load(self, config: BrokerConfig, _candidate: Candidate | None) -> NewLimits | Unchanged:
        """Return the limits if some differ."""
        old, new = self._engine.limits, config.limits
        changed = [
            f"{each.name} {getattr(old, each.name)} → {getattr(new, each.name)}"
            for each in fields(Limits)
            if getattr(old, each.name) != getattr(new, each.name)
        ]
        # With provisioning, its clients keep using the file of the start.
        reloaded = _RELOADED_SETTINGS if config.provisioning is not None else _RELOADED_SETTINGS | {"cafile"}
        waiting = [
            name
            for name in BrokerConfig.model_fields
            if name not in reloaded and _lasting(config, name) != _lasting(self._started_with, name)
        ]
        whom = self._whom_in(config)
        pairs = list(zip(self._whom, whom, strict=True))
        changed += ["websocket_origins"] * any(old.origins != new.origins for old, new in pairs)
        changed += ["proxy_protocol_from"] * any(old.proxies != new.proxies for old, new in pairs)
        restart = f"restart needed for: {', '.join(waiting)}" if waiting else ""
        if not changed:
            return Unchanged(restart)
        return NewLimits(new, whom, "; ".join(filter(None, (", ".join(changed), restart))))

    def _whom_in(self, config: BrokerConfig) -> tuple[_Whom, ...]:
        """Return whom each running listener believes, by *config*; unchanged for one that is no longer in it."""
        wanted = list(_whom(config))
        places = [each.place for each in config.listeners]
        if places == self._places:
            return tuple(wanted)
        named = dict(zip(places, wanted, strict=True))
        return tuple(named.get(place, was) for place, was in zip(self._places, self._whom, strict=True))

    async def preview(self, loaded: NewLimits) -> tuple[str, Effects | None]:
        """Describe which."""
        return loaded.detail, None

    async def apply(self, loaded: NewLimits) -> tuple[str, Effects | None]:
        """Activate them: for new requests only, not for existing state."""
        self._engine.limit(loaded.limits)
        self._whom = loaded.whom
        for listener, whom in zip(self._listeners, loaded.whom, strict=False):
            if whom.origins != listener.origins:
                listener.origins = whom.origins
            listener.proxies = whom.proxies
        return loaded.detail, None


def _whom(config: BrokerConfig) -> Iterator[_Whom]:
    """Yield whom each listener of *config* believes."""
    for each in config.listeners:
        yield _Whom(each.origins(config.origins), each.proxies(config.proxy_protocol_from))


def files_of(config: BrokerConfig, settings_file: Path | None) -> list[Path]:
    """Return the files that *config* (read from *settings_file* among others) consists of or names."""
    named = (settings_file, config.certfile, config.keyfile, config.policy_file)
    return [*(path for path in named if path is not None), *anchor_files(config)]


def _lasting(config: BrokerConfig, name: str) -> object:
    """Return the part of setting *name* that only a restart changes."""
    return tuple(each.lasting for each in config.listener) if name == "listener" else getattr(config, name)


def describe_certificate(credential: CredentialPem, file: Path) -> str:
    """Return a description of the certificate of *credential*, from *file*.

    Raises `TlsConfigurationError` if no client would accept it: its subclass `NotToday` if only because of the dates.
    """
    certificate = certificate_of(credential)
    if certificate is None:
        raise TlsConfigurationError(f"{file} holds no PEM certificate")
    if not is_for_servers(certificate):
        raise TlsConfigurationError(
            f"{file} is not for servers (no serverAuth): clients would refuse it; give the broker's own certificate"
        )
    now = datetime.now(UTC)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise NotToday(
            f"{file} is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M:%S} "
            f"to {shown_time(certificate.not_valid_after_utc)}; it is {now:%Y-%m-%d %H:%M:%S} here"
        )
    serial = serial_text(certificate.serial_number)
    return f"serial {serial}, until {shown_time(certificate.not_valid_after_utc)}"


def describe_anchors(context: ssl.SSLContext) -> str:
    """Return how many trust anchors *context* has."""
    return counted(len(context.get_ca_certs()), "trust anchor")


def digest(files: Sequence[Path]) -> bytes:
    """Return a value that changes when a byte of *files* does; unreadable files count as empty."""
    summary = hashlib.sha256()
    for path in files:
        try:
            content = contents_of(path, PEM_BYTES)
        except OSError:
            content = b""
        summary.update(hashlib.sha256(content).digest())
    return summary.digest()
