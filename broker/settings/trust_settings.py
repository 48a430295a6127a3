"""Trust settings as written in the configuration: whom to trust, and what to do when the status is unknown.

Values only: `broker.admission` builds the deciding objects from them. An error names the value and what is allowed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import NoDecode

from broker.settings.setting_types import CountOrNone, File, Interval, Name, TrustDomain, Whole, several
from provisioning.client.address import with_host
from provisioning.pki.role import Role
from provisioning.program.durations import seconds_in
from provisioning.program.given_file import named

_SHA256 = re.compile(r"[0-9a-f]{64}")
_GRACE = re.compile(r"grace\s+(.*)")


@dataclass(frozen=True, slots=True)
class StatusPolicy:
    """What happens to a newcomer whose status is not known for sure: how long an outdated answer is still used.

    ``require``: refused. ``grace 12h``: admitted until the answer is that much out of date. ``advisory``: admitted.
    A certificate known to be revoked is refused under any of them.
    """

    grace: float | None = 0.0
    """Seconds; None: for ever, even if there never was an answer."""

    def allows(self, overdue: float | None) -> bool:
        """Whether a status that is *overdue* seconds out of date is acceptable; None: there never was one."""
        return self.grace is None or (overdue is not None and overdue <= self.grace)

    def __str__(self) -> str:
        match self.grace:
            case None:
                return "advisory"
            case 0:
                return "require"
            case seconds:
                return f"grace {seconds:g}s"


REQUIRE = StatusPolicy()
ANY = "*"
"""In groups: any group that a certificate states."""


def _status_policy(value: object) -> object:
    if isinstance(value, str):
        text = value.strip().lower()
        if text in {"require", "advisory"}:
            return StatusPolicy(0.0 if text == "require" else None)
        if (found := _GRACE.fullmatch(text)) and (seconds := seconds_in(found[1])) is not None:
            return StatusPolicy(seconds)
    if value is None or isinstance(value, StatusPolicy):
        return value
    raise ValueError(f"{value!r} is none of: require, advisory, grace <time> with its unit (such as: grace 12h)")


def _http_url(value: str) -> str:
    if not value.startswith("http://"):
        raise ValueError(f"{value!r}: a list or an answer is signed, so it is fetched by plain http://, nothing else")
    with_host(value, repr(value))
    return value


def _anchors_url(value: str) -> str:
    if not value.startswith(("https://", "http://")):
        raise ValueError(f"{value!r}: https://, with anchors_url_cafile; or http://, with anchors_sha256")
    with_host(value, repr(value))
    return value


def _fingerprint(value: str) -> str:
    text = value.replace(":", "").lower()
    if not _SHA256.fullmatch(text):
        raise ValueError(f"{value!r} is not the SHA-256 of a certificate: 64 hexadecimal digits")
    return text


Policy = Annotated[StatusPolicy, BeforeValidator(_status_policy), NoDecode]
Paths = Annotated[tuple[File, ...], BeforeValidator(several), BeforeValidator(named), NoDecode]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
Urls = Annotated[tuple[HttpUrl, ...], BeforeValidator(several), NoDecode]
Fingerprint = Annotated[str, AfterValidator(_fingerprint)]
Source = Literal[
    "spiffe", "san-uri", "san-dns", "san-email", "san-ip", "common-name", "subject", "fingerprint", "public-key"
]


class IdentitySource(BaseModel):
    """Where in a certificate the name is, and what its parts mean."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Source
    pattern: str = "(?P<name>.+)"
    """A regular expression over the whole value; its groups are ``name``, ``group`` and ``role``."""
    group: str | None = None
    """The group if the pattern captures none."""
    role: Role = Role.DEVICE
    """The role if the pattern captures none."""

    @field_validator("pattern")
    @classmethod
    def _captures_a_name(cls, value: str) -> str:
        try:
            known = re.compile(value).groupindex.keys()
        except re.error as error:
            raise ValueError(f"{value!r} is not a regular expression: {error}") from error
        if "name" not in known or known - {"name", "group", "role"}:
            raise ValueError(f"{value!r}: name the part that is the name (?P<name>…); group and role may be named too")
        return value

    @model_validator(mode="after")
    def _a_device_has_a_group(self) -> Self:
        in_uri = self.source == "spiffe"
        if not in_uri and self.group is None and self.role is Role.DEVICE and "(?P<group>" not in self.pattern:
            raise ValueError("group: a device belongs to one; give group, or capture it: (?P<group>…)")
        return self


class StatusSources(BaseModel):
    """Where the status of clients' certificates comes from, besides provisioning's feed, and on which terms."""

    crlfile: Paths = ()
    """CRLs of the trust anchors and CAs below them: files or directories, PEM or DER, read again when they change."""
    crl_urls: Urls = ()
    """The same at http URLs, fetched again before they end."""
    crl_from_certificates: bool = False
    """Fetch also the CRLs that clients' certificates name as distribution points."""
    crl_policy: Policy = REQUIRE
    """What happens to newcomers for whom no list is valid any more: require, grace <time>, advisory."""
    ocsp_responder: HttpUrl | None = None
    """OCSP responder that is asked about every client, when it connects and then from time to time."""
    ocsp_from_certificates: bool = False
    """Ask the responder that the client's certificate names."""
    ocsp_policy: Policy = REQUIRE
    """What happens to newcomers without an answer: require, grace <time>, advisory."""
    unsafe_no_revocation: bool = False
    """Admit without any source of revocations; needed where there is none."""

    @property
    def has_crls(self) -> bool:
        """Whether CRLs are a source of revocations."""
        return bool(self.crlfile or self.crl_urls or self.crl_from_certificates)

    @property
    def has_ocsp(self) -> bool:
        """Whether OCSP is a source of revocations."""
        return bool(self.ocsp_responder or self.ocsp_from_certificates)


class TrustSettings(StatusSources):
    """One ``[[trust]]`` table: the anchors for one kind of clients, and the terms on which they are trusted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """The bundle's name in logs and tools."""
    anchors: Paths = ()
    """Files or directories of CA certificates, root or intermediate, PEM or DER."""
    anchors_url: Annotated[str, AfterValidator(_anchors_url)] | None = None
    """The URL of more anchors: PEM, or EST's answer to ``/cacerts``."""
    anchors_url_cafile: File | None = None
    """Trust anchors, PEM, used alone to verify the server at an https URL."""
    anchors_sha256: tuple[Fingerprint, ...] = ()
    """Only these certificates are accepted from the URL: their SHA-256."""
    anchors_refresh_seconds: Interval = 3600.0
    """How often the URL is fetched."""
    issuers: tuple[str, ...] = ()
    """Only these CAs may have issued a client's certificate: SHA-256 fingerprints, or names as RFC 4514 writes them."""
    max_depth: Whole = Field(default=4, ge=0, le=10)
    """CA certificates between a client's and the anchor; 0: the anchor itself must have issued it."""
    required_eku: tuple[str, ...] = ("clientAuth",)
    """Extended key usages that a client's certificate must have: clientAuth, or object identifiers."""
    roles: tuple[Role, ...] = (Role.DEVICE,)
    """The roles that the bundle's clients may have."""
    groups: tuple[str, ...] = ()
    """Groups they may belong to; empty: any, but from another trust domain only those in identity; ``*``: any."""
    trust_domain: TrustDomain | None = None
    """First part of their identities; where certificates contain their own (spiffe://), the only one accepted."""
    identity: tuple[IdentitySource, ...] = ()
    """Where the name is searched, in this order; empty: the URI spiffe://<trust-domain>/<role>/<group>/<name>."""
    client_id: Literal["equal", "prefix", "assigned"] = "equal"
    """equal: the name, or empty; prefix: also <name>-<anything>, several sessions per device; assigned: only empty."""
    any_client_id: tuple[Name, ...] = ()
    """Names that may use any client identifier."""
    max_sessions: CountOrNone = 0
    """Sessions of all parties of its trust domain, kept ones included; further ones are refused; 0: no limit."""
    username: str = "ignore"
    """ignore; equal: the name; or a text with {device} and {group} that the MQTT user name must equal."""
    feed: bool = False
    """Whether provisioning's feed covers their revocations."""
    feed_policy: Policy | None = None
    """What happens to them while the feed is unavailable; None: as in the broker's feed_policy."""

    @property
    def named_groups(self) -> frozenset[str]:
        """The groups named in the settings, in groups or else in identity."""
        return frozenset(self.groups or filter(None, (each.group for each in self.identity)))

    @property
    def any_group(self) -> bool:
        """Whether its CA may put its clients into any group, whatever their trust domain."""
        return ANY in self.groups

    @property
    def leaves_groups_open(self) -> bool:
        """Whether a certificate may state a group that the settings do not name."""
        if self.groups:
            return False
        return not self.identity or any(
            each.source == "spiffe" or "(?P<group>" in each.pattern for each in self.identity
        )

    @model_validator(mode="after")
    def _anchored(self) -> Self:
        """Refuse a URL where anybody on the network path could say whom to trust."""
        url = self.anchors_url
        if url is None:
            if not self.anchors:
                raise ValueError(f"{self.name}: anchors: name files or directories of CA certificates, or anchors_url")
            if self.anchors_url_cafile is not None or self.anchors_sha256:
                raise ValueError(f"{self.name}: anchors_url_cafile and anchors_sha256 go with anchors_url")
        elif url.startswith("https://") and self.anchors_url_cafile is None:
            raise ValueError(
                f"{self.name}: anchors_url: an https server is verified only with anchors_url_cafile; "
                "give it, or use http:// with anchors_sha256"
            )
        elif url.startswith("http://") and (not self.anchors_sha256 or self.anchors_url_cafile is not None):
            raise ValueError(
                f"{self.name}: anchors_url: by http:// anybody may answer, so anchors_sha256 says which certificates "
                "are taken; without it use https:// and anchors_url_cafile"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not (self.feed or self.has_crls or self.has_ocsp or self.unsafe_no_revocation):
            raise ValueError(
                f"{self.name}: no source of revocations; give feed, crlfile, crl_urls or ocsp_responder, "
                "or set unsafe_no_revocation to trust it without revocation checks"
            )
        if self.feed_policy is not None and not self.feed:
            raise ValueError(f"{self.name}: feed_policy: it is about the feed; give feed = true, or leave it out")
        if self.identity and self.trust_domain is None:
            raise ValueError(f"{self.name}: trust_domain: identities that are made of certificates need one")
        if self.any_group and len(self.groups) > 1:
            raise ValueError(f"{self.name}: groups: {ANY} is any group; name no others beside it, or leave it out")
        if self.username not in {"ignore", "equal"} and "{device}" not in self.username:
            raise ValueError(f"{self.name}: username: ignore, equal, or a text with {{device}}")
        return self
