"""The broker's settings, and which belong together.

Names are those that mosquitto users know, if there are any (``cafile``, ``certfile``, ``keyfile``, ``max_keepalive``).
Where values come from, and the errors for wrong ones: `broker.settings.config_loading`, whose `load` is the only
creator of a `BrokerConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from broker.settings.limits import Limits
from broker.settings.listener_settings import ListenerSettings, check_origins
from broker.settings.origins import OriginNames, Origins
from broker.settings.setting_types import (
    LONGEST,
    MOST,
    File,
    FileText,
    Host,
    Interval,
    Name,
    Port,
    Span,
    TrustDomain,
    Whole,
)
from broker.settings.trust_settings import HttpUrl, Policy, StatusPolicy, StatusSources, TrustSettings
from provisioning.client.address import misnamed
from provisioning.pki.identity import InvalidIdentity, parse_uri
from provisioning.program.loopback import is_loopback
from provisioning.program.proxy_networks import ProxyNames

_EVERY: Final = "::"
"""Every address, those of IPv4 too, …"""
_IPV4_EVERY: Final = "0.0.0.0"
"""… and every one of IPv4."""
PREFIX = "FLEET_BROKER_"
"""The prefix of environment variables."""
FILE_VALUES: Final[ContextVar[Mapping[str, Any]]] = ContextVar("FILE_VALUES", default=MappingProxyType({}))
"""What the TOML file says, for the construction that follows; each thread that reads settings has its own."""


class BrokerConfig(StatusSources, BaseSettings):
    """All settings of one broker process."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    name: Name = "broker-1"
    """The broker's name in its own certificate."""
    host: Host = "127.0.0.1"
    port: Port = 8883
    websocket_port: Port | None = None
    """MQTT over WebSocket over TLS, on the same address; None: disabled."""
    websocket_origins: OriginNames = ()
    """Whose web pages may open a WebSocket here, as https://host:port; empty: none. Clients without Origin may."""
    unsafe_any_websocket_origin: bool = False
    """Let any web page connect, with the certificate of its reader's browser."""
    listener: tuple[ListenerSettings, ...] = ()
    """Several listeners, instead of port and websocket_port, which are the short form."""
    proxy_protocol_from: ProxyNames = ()
    """Networks of the load balancers that begin each connection with the PROXY protocol's header; empty: none do."""
    unsafe_plain_port: Port | None = None
    """A listener without TLS on 127.0.0.1, for protocol test tools; all its clients are unsafe_plain_identity."""
    unsafe_plain_identity: str | None = None
    any_client_id: Annotated[tuple[Name, ...], NoDecode] = ()
    """Names of identities that may use any client identifier: bridges, gateways, test tools. As text: by commas."""
    state_dir: File = Path("broker-state")
    unsafe_group_writable_state_dir: bool = False
    """Let the group of state_dir and its contents write there: its members can choose whom the broker trusts."""
    cafile: File
    """Trust anchors for clients' certificates, and for the provisioning service's."""
    certfile: File | None = None
    keyfile: File | None = None
    provisioning: str | None = None
    """Base URL of the provisioning service, which gives the broker its certificate and the revocation feed."""
    token: SecretStr | None = None
    token_file: File | None = None
    trust_domain: TrustDomain | None = None
    """Only identities of this domain are admitted, by default that of the broker's own certificate; while there is none
    yet, only this domain's provisioning service may issue it."""
    policy_file: File | None = None
    """Who may publish and subscribe to what (`broker.admission.policy_file`); None: the default policy."""
    watch_files: bool = True
    """Reload certificate, trust anchors, policy and limits when their files change; SIGHUP does it in any case."""
    revocation_grace: Span = Field(default=300.0, ge=0, le=LONGEST)
    """Seconds without the revocation feed after which newcomers are refused as unavailable."""
    feed_policy: Annotated[Policy | None, NoDecode] = None
    """The same as for CRLs and OCSP: require, grace <time>, advisory; None: grace, with revocation_grace."""
    ocsp_refresh_seconds: Interval = 900.0
    """How long an answer is used, and how often the responder is asked again about connected clients."""
    ocsp_stapling: bool = True
    """Hand the response about the broker's own certificate to clients that ask for it, if it names a responder."""
    ocsp_stapling_responder: HttpUrl | None = None
    """Ask this responder about the broker's own certificate, instead of the one that it names."""
    revoked_session: Literal["discard", "keep"] = "discard"
    """What happens to a client's will and session when its certificate is revoked, or no longer trusted."""
    trust: tuple[TrustSettings, ...] = ()
    """Trust bundles, in the order in which they are searched; empty: cafile, for all clients."""
    crl_check_seconds: Interval = 5.0
    """How often files are checked."""
    crl_refresh_seconds: Interval = 900.0
    """How often URLs are fetched, at least; sooner where nextUpdate is near."""
    unsafe_public_listener: bool = False
    """Allow an address that is not loopback."""
    allow_tls12: bool = False
    hybrid_resumption: bool = False
    """Use ML-KEM in the key exchange even of a resumed TLS session whose first handshake did."""
    admin_socket: FileText | None = None
    """Unix socket of the admin API; unset: state_dir/admin.sock; ``off``: none."""
    admin_port: Port | None = None
    """The admin API over HTTPS on admin_host, for operators' certificates only; None: disabled."""
    admin_host: Host = "127.0.0.1"
    admin_changers: Annotated[tuple[Name, ...], NoDecode] = ()
    """Names of operators who may make changes at admin_port: end sessions, reload; the others may only read."""
    unsafe_public_admin: bool = False
    """Allow an admin_host that is not loopback."""
    metrics_port: Port | None = None
    """Prometheus reads http://metrics_host:metrics_port/metrics; None: disabled."""
    metrics_host: Host = "127.0.0.1"
    unsafe_public_metrics: bool = False
    """Allow a metrics_host that is not loopback: anyone who reaches it can read the figures, unencrypted."""
    presence_events: bool = False
    """Publish who connects and disconnects on $SYS/broker/presence/#, for services."""
    stamp_publisher: bool = False
    """Add the publisher's certificate to each message's user properties; costs the fast path."""
    response_information: str | None = None
    """The Response Information for MQTT 5 clients that ask for it; with {device}, {group}, {client_id}."""
    plugins: dict[str, dict[str, Any]] = {}
    """amqtt's plugins, or your own: the dotted path of each class, with its configuration (docs/plugins.md)."""
    plugin_timeout: Span = Field(default=3.0, ge=0.1, le=60.0)
    """Seconds for a plugin to answer (after that it counts as a refusal), or to handle an event."""
    plugin_verdict_seconds: Span = Field(default=10.0, ge=1.0, le=86_400.0)
    """How long the answer of a topic plugin is cached."""
    plugin_username: Literal["certificate", "connect"] = "certificate"
    """The user name that plugins see: the certificate's, or that in CONNECT, which a plugin must then check."""
    plugin_sees_password: bool = False
    """Whether plugins see CONNECT's password as long as its client is connected: some read a token from it."""
    persistence: bool = True
    """Keep sessions, queued and retained messages in state_dir/broker.db; without it they end with the process."""
    audit_log: File | None = None
    """Where each decision is recorded, as JSON lines in a chain (docs/audit-log.md); None: nowhere."""
    audit_keyfile: File | None = None
    """The key that authenticates it, created if missing; None: state_dir/audit.key."""
    audit_policy: Literal["count", "require"] = "count"
    """While it cannot be written: count: count and log that; require: also, admit nobody."""
    audit_max_bytes: Whole = Field(default=64 * 1024 * 1024, ge=64 * 1024, le=MOST)
    """Size at which a new file is begun."""
    audit_max_files: Whole = Field(default=16, ge=2, le=10_000)
    """How many files are kept; the oldest is deleted first."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    limits: Limits = Limits()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources: `load` puts the file's values below the environment itself."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, FileValues(settings_cls)

    @property
    def listeners(self) -> tuple[ListenerSettings, ...]:
        """Every listener with TLS, from the tables or the short form."""
        if self.listener:
            return self.listener
        wanted = [ListenerSettings(port=self.port)]
        if self.websocket_port is not None:
            wanted.append(ListenerSettings(port=self.websocket_port, protocol="wss"))
        return tuple(wanted)

    @property
    def origins(self) -> Origins:
        """Whose web pages may connect to a listener without a setting of its own."""
        return Origins(frozenset(self.websocket_origins), self.unsafe_any_websocket_origin)

    @property
    def feed_terms(self) -> StatusPolicy:
        """What happens to newcomers while provisioning's feed is unavailable."""
        return StatusPolicy(self.revocation_grace) if self.feed_policy is None else self.feed_policy

    @property
    def database(self) -> Path:
        """Where sessions and messages are kept, with `persistence`."""
        return self.state_dir / "broker.db"

    @property
    def audit_key(self) -> Path:
        """The file with the audit log's key."""
        return self.audit_keyfile or self.state_dir / "audit.key"

    @property
    def crl_files(self) -> tuple[Path, ...]:
        """Every file and directory of CRLs, of all bundles."""
        return self.crlfile + tuple(path for bundle in self.trust for path in bundle.crlfile)

    @property
    def all_crl_urls(self) -> tuple[str, ...]:
        """Every URL of a CRL, of all bundles."""
        return self.crl_urls + tuple(url for bundle in self.trust for url in bundle.crl_urls)

    @field_validator("any_client_id", "admin_changers", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value

    @field_validator("provisioning")
    @classmethod
    def _reachable_safely(cls, value: str | None) -> str | None:
        if value is not None and (wrong := misnamed(value)) is not None:
            raise ValueError(wrong)
        return value

    @field_validator("token")
    @classmethod
    def _given(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value():
            raise ValueError("is empty; give one, or leave it out")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.certfile is None) != (self.keyfile is None):
            raise ValueError("certfile and keyfile: give both or neither")
        if self.certfile is None and self.provisioning is None:
            raise ValueError("certfile: give certfile and keyfile, or provisioning to enrol the broker's certificate")
        if self.feed_policy is not None and "revocation_grace" in self.model_fields_set:
            raise ValueError("feed_policy: it sets the same as revocation_grace; give one of them")
        self._check_bundles()
        known = self.trust or self.provisioning is not None or self.has_crls or self.has_ocsp
        if not known and not self.unsafe_no_revocation:
            raise ValueError(
                "provisioning: without it there is no source of revocations; give crlfile, crl_urls or ocsp_responder, "
                "or set unsafe_no_revocation to run the broker without revocations"
            )
        if (self.unsafe_plain_port is None) != (self.unsafe_plain_identity is None):
            raise ValueError("unsafe_plain_port and unsafe_plain_identity: give both or neither")
        if self.unsafe_plain_identity is not None:
            try:
                parse_uri(self.unsafe_plain_identity)
            except InvalidIdentity as error:
                raise ValueError(f"unsafe_plain_identity: {error}") from error
        if self.token is not None and self.token_file is not None:
            raise ValueError("token: give token or token_file, not both")
        self._check_listeners()
        if self.audit_log is None and (self.audit_keyfile is not None or self.audit_policy == "require"):
            raise ValueError(
                "audit_log: audit_keyfile and audit_policy apply to the audit log only; give audit_log, or remove them"
            )
        return self

    @model_validator(mode="after")
    def _private(self) -> Self:
        """Refuse addresses reachable from other machines, unless explicitly allowed."""
        if not self.unsafe_public_admin and not is_loopback(self.admin_host):
            raise ValueError(
                f"admin_host: {self.admin_host} is not a loopback address; set unsafe_public_admin to allow it"
            )
        if not self.unsafe_public_metrics and not is_loopback(self.metrics_host):
            raise ValueError(
                f"metrics_host: {self.metrics_host} is not a loopback address; set unsafe_public_metrics to allow it"
            )
        return self

    def _check_listeners(self) -> None:
        check_origins(self.websocket_origins, unsafe_any=self.unsafe_any_websocket_origin)
        short = {"port", "websocket_port"} & self.model_fields_set
        if self.listener and short:
            raise ValueError(f"{min(short)}: with [[listener]] tables, set it in those")
        own = [("listener: host", each.host) for each in self.listener if each.host is not None]
        for key, host in [("host:", self.host), *own]:
            if not self.unsafe_public_listener and not is_loopback(host):
                raise ValueError(f"{key} {host} is not a loopback address; set unsafe_public_listener to allow it")
        places: list[tuple[str, int]] = []
        for each in self.listeners:
            host = each.host or self.host
            if any(_overlap(host, other) for other, port in places if port == each.port):
                raise ValueError(f"listener: two of them have {host} port {each.port}; give each a port of its own")
            if each.port:
                places.append((host, each.port))
        for key, host in (
            ("unsafe_plain_port", "127.0.0.1"),
            ("admin_port", self.admin_host),
            ("metrics_port", self.metrics_host),
        ):
            port = getattr(self, key)
            if port and any(_overlap(host, other) for other, taken in places if port == taken):
                raise ValueError(f"{key}: {host} port {port} is taken by another setting; give each a port of its own")
            places.append((host, port))

    def _check_bundles(self) -> None:
        if self.trust and (self.has_crls or self.has_ocsp):
            raise ValueError("crlfile, ocsp_responder and similar settings: with [[trust]] tables, set them in those")
        names = [bundle.name for bundle in self.trust]
        if len(set(names)) < len(names):
            raise ValueError(f"trust: each bundle needs a different name; these are {', '.join(names)}")
        if self.provisioning is None and any(bundle.feed for bundle in self.trust):
            raise ValueError("trust: feed = true needs provisioning, whose feed it is")


class FileValues(PydanticBaseSettingsSource):
    """The TOML file's values, the source with the lowest priority."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        """Return the file's value of one field."""
        del field
        return FILE_VALUES.get().get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return all of them."""
        return dict(FILE_VALUES.get())


def _overlap(host: str, other: str) -> bool:
    """Whether a port that is taken at one of these addresses cannot be opened at the other."""
    both = {host, other}
    if _IPV4_EVERY in both:
        return all(":" not in each or each == _EVERY for each in both)
    return len(both) == 1 or _EVERY in both or both == {"localhost", "127.0.0.1"}
