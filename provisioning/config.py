"""The service's settings: flags before environment before file.

Every setting has a flag of `serve` or is read from ``FLEET_PROVISIONING_<NAME>`` or from ``provisioning.toml`` in the
service's directory. Errors name the source of the value; nothing is corrected silently.
"""

from __future__ import annotations

import contextlib
import os
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    HttpUrl,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from provisioning.config_words import explain, no_such
from provisioning.errors import ConfigurationError, InvalidSettings
from provisioning.metrics_exposure import MetricsExposure
from provisioning.program.by_commas import by_commas
from provisioning.program.durations import with_its_unit
from provisioning.program.given_file import SECRET_BYTES, SETTINGS_BYTES, contents_of, named, not_text, text_of, unread
from provisioning.program.given_toml import NotToml, toml_of
from provisioning.program.meant_number import meant_number
from provisioning.program.proxy_networks import ProxyNames
from provisioning.program.setting_variables import NoSettingVariable, named_in_variables

ENVIRONMENT_PREFIX: Final = "FLEET_PROVISIONING_"
SETTINGS_FILE: Final = "provisioning.toml"
Duration = Annotated[timedelta, BeforeValidator(with_its_unit)]
Life = Annotated[timedelta, Field(ge=timedelta(minutes=1), le=timedelta(days=825)), BeforeValidator(with_its_unit)]
"""Of a certificate: what a profile allows (`provisioning.ca.profile`), said of the setting that was written."""
File = Annotated[Path, BeforeValidator(named)]
Whole = Annotated[int, BeforeValidator(meant_number)]
Real = Annotated[float, BeforeValidator(meant_number)]


class ProfileSettings(BaseModel):
    """One ``[profiles.NAME]`` table. What is left out is as built in; what it may hold is checked with the profile."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: str | None = None
    life: Duration | None = None
    backdate: Duration | None = None
    key_types: tuple[str, ...] | None = None
    minimum_rsa_bits: Whole | None = None
    extended_key_usages: tuple[str, ...] | None = None
    organization: str | None = None
    dns_patterns: tuple[str, ...] | None = None
    honoured_attributes: tuple[str, ...] | None = None
    honoured_domains: tuple[str, ...] | None = None
    honoured_networks: tuple[str, ...] | None = None
    shared_host_names: bool | None = None
    crl_url: bool | None = None
    ocsp_url: bool | None = None
    issuer_url: bool | None = None


_FILE: Final[ContextVar[Path | None]] = ContextVar("_FILE", default=None)
"""The source of the settings being made: the library has no argument for it, and making another class takes long."""
_FLAGS: Final[ContextVar[frozenset[str]]] = ContextVar("_FLAGS", default=frozenset())
"""Names of the settings that flags give, of those being made."""
_NOT_FROM_FILE: Final = "unsafe_group_writable_directory"


def _now_read() -> Path | None:
    return _FILE.get()


def _now_given() -> frozenset[str]:
    return _FLAGS.get()


class _FromFile(TomlConfigSettingsSource):
    def _read_file(self, file_path: Any) -> dict[str, Any]:
        return toml_of(text_of(file_path, SETTINGS_BYTES))


class Settings(BaseSettings):
    """Everything that can be configured, with its default."""

    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, extra="forbid", frozen=True)

    directory: File = Path("fleet")
    unsafe_group_writable_directory: bool = False
    """Let the group of the directory, and of what is in it, write there: who is in it may be the CA.

    In the environment only: who may write to the directory may write to its settings, too.
    """
    host: str = "127.0.0.1"
    port: Whole = Field(default=8443, ge=0, le=65535)
    http_port: Whole = Field(default=8080, ge=0, le=65535)
    workers: Whole = Field(default=1, ge=1, le=64)
    """Service processes on the two ports; more than one needs PostgreSQL."""
    proxy_protocol_from: ProxyNames = ()
    """Networks of the load balancers that begin each connection to the HTTPS port with the PROXY protocol's header."""
    http_proxy_protocol_from: ProxyNames = ()
    """The same for the plain HTTP port."""
    public_listener: bool = False
    """Allow a host that is not a loopback address."""
    public_http_url: HttpUrl | None = None
    """Where relying parties reach the plain HTTP port; None: its actual address."""
    server_names: Annotated[tuple[str, ...], NoDecode] = ()
    """DNS names and addresses in the HTTPS server's certificate; none: those that it has, at first this machine's."""
    trust_domain: str = "fleet.internal"
    database_url: SecretStr | None = None
    """None: the SQLite file in the directory."""
    passphrase: SecretStr | None = None
    passphrase_file: File | None = None
    signer: str = "file"
    """Where the keys of new CAs are made: file, or a token's PKCS #11 URI."""
    pkcs11_pin: SecretStr | None = None
    pkcs11_pin_file: File | None = None

    device_life: Life = timedelta(days=30)
    broker_life: Life = timedelta(days=30)
    service_life: Life = timedelta(days=90)
    operator_life: Life = timedelta(days=365)
    provisioning_life: Life = timedelta(days=365)

    profiles: dict[str, ProfileSettings] = {}
    """What certificates of each kind may have, see `provisioning.ca.profile`."""
    key_blocklist: File | None = None
    """Published keys that nobody may enrol, in the badkeys format; None: no list."""

    crl_life: Duration = Field(default=timedelta(days=1), ge=timedelta(seconds=1), le=timedelta(days=366))
    """From thisUpdate to nextUpdate, which are whole seconds."""
    crl_debounce_seconds: Real = Field(default=0.5, ge=0, le=60)
    crl_shards: Whole = Field(default=0, ge=0, le=256)
    """Into how many parts the CRL is divided for certificates issued from now on; 0: one list for all."""
    ocsp_life: Duration = Field(default=timedelta(days=1), ge=timedelta(minutes=1), le=timedelta(days=7))
    """From thisUpdate to nextUpdate. Caches keep an answer for five minutes at most whatever this is."""
    ocsp_signer_life: Duration = Field(default=timedelta(days=7), ge=timedelta(minutes=2), le=timedelta(days=30))
    webhook_cafile: File | None = None
    """Whom an https webhook's certificate must come from; None: our own CAs."""
    token_retention: Duration = Field(default=timedelta(days=90), ge=timedelta(), le=timedelta(days=3650))
    """How long a token that was spent, voided or has expired stays in the store."""
    manufacturer_list_refresh_seconds: Real = Field(default=3600.0, ge=60, le=604_800)
    """How often a manufacturer's list is fetched at least where it has a URL; sooner, where it ends before."""
    manufacturer_list_released_share: Real = Field(default=0.5, ge=0, le=1)
    """What a manufacturer's next list may release of those that the one before named; 1: all of them."""
    feed_heartbeat_seconds: Real = Field(default=5.0, gt=0, le=60)
    feed_stall_seconds: Real = Field(default=30.0, gt=0, le=600)
    """A subscriber that takes no byte for so long is cut off."""
    maximum_body_bytes: Whole = Field(default=1024 * 1024, ge=16 * 1024, le=16 * 1024 * 1024)
    """Ten thousand names of a token batch fit, or 20,000 entries of a manufacturer's list; EST has a smaller limit."""
    handshake_seconds: Real = Field(default=10.0, ge=1, le=300)
    """For a TLS handshake; and for the PROXY header before it, where one is due."""
    body_seconds: Real = Field(default=20.0, gt=0, le=300)
    maximum_connections: Whole = Field(default=10_000, ge=16, le=1_000_000)
    """Of one process, on both ports; half of them from one address. Who has been silent for longest makes room."""
    requests_per_second: Real = Field(default=1000.0, ge=0, le=1_000_000)
    """Of one caller (a client certificate, or an address without one) at this process's HTTPS port; 0: no limit."""
    ocsp_requests_per_second: Real = Field(default=0.0, ge=0, le=1_000_000)
    """Of one address at this process's plain HTTP port; 0: no limit. Lists are files, and have none.

    None by default: a broker whose fleet comes back all at once asks for everybody from one address, and may have to
    refuse whom it gets no answer for.
    """
    request_burst: Whole = Field(default=5000, ge=1, le=1_000_000)
    """How many of them at once."""
    metrics: MetricsExposure = MetricsExposure.OFF
    """Prometheus metrics at /metrics of the plain HTTP port: off, loopback (this machine only) or public."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important lines of the service's log."""

    _read_from: Path | None = PrivateAttr(default_factory=_now_read)
    _of_flags: frozenset[str] = PrivateAttr(default_factory=_now_given)

    @property
    def read_from(self) -> Path | None:
        """The file that was read; None: there was none."""
        return self._read_from

    def source_of(self, name: str) -> str:
        """Return what begins an error about the setting *name*: the variable or file that gives it, and a colon.

        Nothing for a default, nor for a flag, which is before the eyes of whoever gave it.
        """
        if name in self._of_flags or name not in self.model_fields_set:
            return ""
        if (variable := f"{ENVIRONMENT_PREFIX}{name.upper()}") in os.environ:
            return f"{variable}: "
        return "" if self._read_from is None else f"{self._read_from}: "

    @field_validator("host")
    @classmethod
    def _names_an_address(cls, host: str) -> str:
        if not host:  # For the kernel it is every address: nobody would see that it is meant.
            raise ValueError("is empty; give an address of this machine, or leave it out")
        return host

    @field_validator("server_names", mode="before")
    @classmethod
    def _by_commas(cls, value: object) -> object:
        return by_commas(value, "names")

    @field_validator("public_http_url")
    @classmethod
    def _has_room_for_a_path(cls, url: HttpUrl | None) -> HttpUrl | None:
        if url is not None and (url.username or url.password or url.query is not None or url.fragment is not None):
            # It is in every certificate, readable for everybody, with a path appended, and can never be withdrawn.
            raise ValueError("it must have no user, no query and no fragment: every certificate carries it, and a path")
        return url

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the framework's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the same
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources: flags, environment, file."""
        sources: tuple[PydanticBaseSettingsSource, ...] = (init_settings, env_settings)
        if (file := _FILE.get()) is not None:
            from_file = _FromFile(settings_cls, file)
            if _NOT_FROM_FILE in from_file.toml_data:
                variable = f"{ENVIRONMENT_PREFIX}{_NOT_FROM_FILE.upper()}"
                raise ValueError(
                    f"{_NOT_FROM_FILE} counts in the environment only, as {variable}: who may write to the directory "
                    f"may write to {file}, too"
                )
            sources += (from_file,)
        return sources

    @property
    def resolved_database_url(self) -> str:
        """The database's URL for SQLAlchemy."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{(self.directory / 'fleet.db').absolute()}"

    @property
    def is_on_postgresql(self) -> bool:
        """Whether the database is PostgreSQL's, which several processes may share."""
        return self.resolved_database_url.startswith("postgresql")

    def read_passphrase(self) -> bytes:
        """Return the passphrase of the CA keys; raise `ConfigurationError` if none was given or it cannot be read."""
        return self._secret("passphrase", "the CA keys need a passphrase")

    def read_pkcs11_pin(self) -> str:
        """Return the PIN of the token; raise `ConfigurationError` if none was given or it cannot be read."""
        return self._secret("pkcs11_pin", "the token needs its PIN").decode(errors="replace")

    def _secret(self, name: str, need: str) -> bytes:
        value: SecretStr | None = getattr(self, name)
        file: Path | None = getattr(self, f"{name}_file")
        variable, word = f"{ENVIRONMENT_PREFIX}{name.upper()}", name.removeprefix("pkcs11_")
        if file is not None:
            key = f"{self.source_of(f'{name}_file')}{name}_file"
            try:
                source, secret = f"{key}: {file}", contents_of(file, SECRET_BYTES).rstrip(b"\r\n")
            except OSError as error:
                raise ConfigurationError(f"{key}: {unread(file, error)}") from error
        elif value is not None:
            source, secret = variable, value.get_secret_value().encode()
        else:
            raise ConfigurationError(f"{need}: give --{name.replace('_', '-')}-file FILE or set {variable}_FILE")
        if not secret:
            raise ConfigurationError(f"{source} is empty: put the {word} there")
        return secret


def _refuse_unknown_variables() -> None:
    """Raise `InvalidSettings` for a variable that looks like a setting but is none."""
    try:
        for variable, name in named_in_variables(ENVIRONMENT_PREFIX):
            if name not in Settings.model_fields:
                raise InvalidSettings(f"{variable}: {no_such(name, Settings.model_fields)}")
    except NoSettingVariable as error:
        raise InvalidSettings(str(error)) from error


def _settings_file(file: Path) -> Path | None:
    if file.is_file():
        return file
    if os.path.lexists(file):  # The library would ignore it, as if there were no settings.
        raise ConfigurationError(f"{file} leads to no file: write one, or remove it")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        file.stat()  # From Python 3.14 on `Path.is_file` says no of what cannot be reached.
    return None


def load_settings(directory: Path | None, **flags: Any) -> Settings:
    """Return the settings from *flags* (None: not given), the environment, and the file in *directory*.

    Raises `InvalidSettings` naming every setting that is wrong, `ConfigurationError` if the file cannot be read.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    if directory is not None:
        given["directory"] = directory
    file = Path(SETTINGS_FILE)
    _refuse_unknown_variables()
    try:
        where = directory or Settings(**given).directory
        file = where / SETTINGS_FILE
        before, flags_before = _FILE.set(_settings_file(file)), _FLAGS.set(frozenset(given))
        try:
            return Settings(**given)
        finally:
            _FILE.reset(before)
            _FLAGS.reset(flags_before)
    except ValidationError as error:
        known = {"": tuple(Settings.model_fields), "profiles": tuple(ProfileSettings.model_fields)}
        wrong = [explain(each, ENVIRONMENT_PREFIX, file, given, known) for each in error.errors()]
        raise InvalidSettings("; ".join(wrong)) from error
    except UnicodeDecodeError as error:
        raise InvalidSettings(f"{file} is not TOML: {not_text(error)}") from error
    except NotToml as error:
        raise InvalidSettings(f"{file} is not TOML: {error}") from error
    except SettingsError as error:  # It only names the field, in quotes.
        name = next((each for each in Settings.model_fields if f'"{each}"' in str(error)), "profiles")
        remedy = f"a table is JSON in the environment; better write it in {SETTINGS_FILE}"
        raise InvalidSettings(f"{ENVIRONMENT_PREFIX}{name.upper()}: is not JSON; {remedy}") from error
    except ValueError as error:
        raise InvalidSettings(f"configuration: {error}") from error
    except OSError as error:
        whose = "; run this as the user whose it is" if isinstance(error, PermissionError) else ""
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}{whose}") from error
