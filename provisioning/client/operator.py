"""Client of the operators' REST API: enrolment tokens, revocation, and the inventory.

Rules
-----
1. Every call presents an operator certificate.
2. Two errors, by what the caller can do: `RequestRefused`, change the request; `ServiceUnavailable`, retry later.
3. A list is read page by page: only one page is in memory, whatever the size of the fleet.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypedDict, TypeVar, Unpack
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from provisioning.client.answer_body import document_of, problem_of
from provisioning.client.connection import NAME_THE_ADDRESS, explain, open_pool
from provisioning.client.genuine_server import trust_domain_of
from provisioning.client.operator_answers import (
    Answer,
    CertificateDetails,
    DepartedOperator,
    DeviceSearch,
    EnrolledDevice,
    GrantedRole,
    IssuedCertificate,
    IssuedToken,
    LeftByOperator,
    ListedOperator,
    Myself,
    OtherForKey,
    ReleasedCertificate,
    RevokedCertificate,
    ServiceStatus,
    StillSuspended,
)
from provisioning.client.whole_answer import ask
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.pki.tls import Credential, read_once

PAGE = 500
_KINDS = ("device", "serial", "token")

AnswerT = TypeVar("AnswerT", bound=Answer)


@dataclass(frozen=True, slots=True)
class RefusedItem:
    """One item of a batch, and why it cannot be done."""

    name: str | int
    """The device's name, the certificate's serial number, or the token's number."""
    code: str
    detail: str


_NO_SUCH_REQUEST: Final = frozenset({"NOT_FOUND", "METHOD_NOT_ALLOWED"})
"""Codes of a request that the service does not have; whatever else is unknown to it has a code of its own."""


class RequestRefused(Exception):
    """The service refused the request; *code* is stable, *detail* is for people."""

    def __init__(self, status: int, code: str, detail: str, items: Sequence[RefusedItem] = ()) -> None:
        super().__init__(f"{code}: {detail}" if code else detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.items = items
        """All items of a batch that cannot be done; nothing of the batch was."""


class ServiceUnavailable(Exception):
    """The service cannot be reached, has an internal error, or answers invalidly."""


class ServiceFails(ServiceUnavailable):
    """The service answers that it cannot do it now, for instance for a full disk, or with an internal error."""


class _Tokens(Answer):
    tokens: list[IssuedToken]


class _Revoked(Answer):
    revoked: list[RevokedCertificate]
    operators: Sequence[DepartedOperator] = ()
    names: Sequence[str] = ()


class _Suspended(Answer):
    suspended: list[RevokedCertificate]
    same_key: Sequence[OtherForKey] = ()


class _Resumed(Answer):
    resumed: list[ReleasedCertificate]
    still_suspended: Sequence[StillSuspended] = ()


class _Operators(Answer):
    items: list[ListedOperator]


class _Counted(Answer):
    counts: dict[str, int]


class _Named(Answer):
    name: str


class Page(Answer):
    """A page of a list, and the cursor of the next one."""

    items: list[dict[str, Any]]
    next: str | None = None


class CertificateSearch(TypedDict, total=False):
    """Which certificates to search for; None is the same as absent."""

    device: str | None
    state: str | None
    group: str | None
    serial: str | None
    fingerprint: str | None
    issuer: str | None
    """The CA's name, or its key identifier in hexadecimal."""
    expires_from: datetime | None
    expires_before: datetime | None


class OperatorClient:
    """An operator's client of the service at *base_url*, trusted by *anchors* (PEM file or text)."""

    def __init__(self, base_url: str, anchors: Path | str, credential: Credential) -> None:
        self._base_url = base_url
        credential = read_once(credential)
        self._pool = open_pool(base_url, anchors, credential)
        self.trust_domain = trust_domain_of(credential)
        """The trust domain of the operator and the service."""

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pool.__aexit__(kind, error, trace)

    async def create_tokens(
        self,
        *,
        device: str | None = None,
        devices: Sequence[str] | None = None,
        group: str | None = None,
        count: int | None = None,
        role: Role = Role.DEVICE,
        ttl_seconds: int | None = None,
        lifetime_seconds: int | None = None,
        dns_names: Sequence[str] | None = None,
        ip_addresses: Sequence[str] | None = None,
        operator_role: str | None = None,
    ) -> list[IssuedToken]:
        """Return new one-time tokens: one for *device*, one per device in *devices*, or *count* for any of *group*.

        *lifetime_seconds* shortens the life of a token's certificate; *operator_role* is the named operators' role.
        """
        request = {
            "device": device,
            "devices": list(devices) if devices is not None else None,
            "group": group,
            "count": count,
            "role": str(role),
            "ttl_seconds": ttl_seconds,
            "lifetime_seconds": lifetime_seconds,
            "dns_names": list(dns_names) if dns_names is not None else None,
            "ip_addresses": list(ip_addresses) if ip_addresses is not None else None,
            "operator_role": operator_role,
        }
        tokens = (await self._call(_Tokens, "POST", "/v1/tokens", request)).tokens
        wanted = len(devices) if devices is not None else count or 1
        if len(tokens) != wanted:
            raise ServiceUnavailable(
                f"the provisioning service at {self._base_url} sent {len(tokens)} tokens, and was asked for {wanted}"
            )
        return tokens

    async def revoke(
        self,
        *,
        device: str | None = None,
        serial: str | None = None,
        devices: Sequence[str] | None = None,
        serials: Sequence[str] | None = None,
        certificate: str | None = None,
        reason: RevocationReason = RevocationReason.UNSPECIFIED,
        invalidity_date: datetime | None = None,
        keep_tokens: bool = False,
        tell: Callable[[DepartedOperator], object] | None = None,
        tell_name: Callable[[str], object] | None = None,
    ) -> list[RevokedCertificate]:
        """Revoke every certificate of *device*, or the one with *serial* (hexadecimal); return those now revoked.

        *certificate*, in PEM, is revoked also if the service has lost it: its CA's signature proves that it is ours.
        *devices* and *serials*, a thousand of each at most, are revoked in one step: all, or none if one is unknown.
        *invalidity_date*, aware, is since when they are known or suspected not to be trusted. Unused tokens and
        approvals of an operator who leaves end, unless *keep_tokens*; *tell* is called with each such operator, and
        *tell_name* with each name under which nobody had enrolled.
        """
        request = {
            **_target(device, serial, devices, serials),
            "certificate": certificate,
            "reason": str(reason),
            "invalidity_date": None if invalidity_date is None else invalidity_date.isoformat(),
            "keep_tokens": keep_tokens or None,
        }
        return _told(await self._call(_Revoked, "POST", "/v1/revocations", request), tell, tell_name)

    async def suspend(
        self,
        *,
        device: str | None = None,
        serial: str | None = None,
        devices: Sequence[str] | None = None,
        serials: Sequence[str] | None = None,
        tell: Callable[[OtherForKey], object] | None = None,
    ) -> list[RevokedCertificate]:
        """Suspend every certificate of *device*, or the one with *serial*; return those now on hold or revoked.

        *devices* and *serials*, a thousand of each at most, are suspended in one step: all, or none if one cannot be.
        *tell* is called with each other certificate for the key of one with a serial number that is good still.
        """
        request = _target(device, serial, devices, serials)
        answer = await self._call(_Suspended, "POST", "/v1/suspensions", request)
        if tell is not None:
            for each in answer.same_key:
                tell(each)
        return answer.suspended

    async def resume(
        self,
        *,
        device: str | None = None,
        serial: str | None = None,
        devices: Sequence[str] | None = None,
        serials: Sequence[str] | None = None,
        tell: Callable[[StillSuspended], object] | None = None,
    ) -> list[ReleasedCertificate]:
        """End the suspension of *device*, or of the certificate with *serial*; return those good again.

        *devices* and *serials*, a thousand of each at most, are resumed in one step: all, or none if one cannot be.
        *tell* is called with each that stays suspended: by itself, of a device; or with its device, of a certificate.
        """
        request = _target(device, serial, devices, serials)
        answer = await self._call(_Resumed, "POST", "/v1/resumptions", request)
        if tell is not None:
            for each in answer.still_suspended:
                tell(each)
        return answer.resumed

    async def decommission(
        self,
        device: str | None = None,
        *,
        devices: Sequence[str] | None = None,
        keep_tokens: bool = False,
        tell: Callable[[DepartedOperator], object] | None = None,
        tell_name: Callable[[str], object] | None = None,
    ) -> list[RevokedCertificate]:
        """Revoke *device* and never admit its name again; return the certificates now revoked.

        *devices*, a thousand at most, are decommissioned in one step: all, or none if one cannot be. *keep_tokens*,
        *tell* and *tell_name* as for `revoke`.
        """
        request = {**_target(device, None, devices, None), "keep_tokens": keep_tokens or None}
        return _told(await self._call(_Revoked, "POST", "/v1/decommissions", request), tell, tell_name)

    async def devices(self, **search: Unpack[DeviceSearch]) -> AsyncIterator[EnrolledDevice]:
        """Yield every enrolled party, or those that match *search*."""
        async for item in self._walk("/v1/devices", _query(search)):
            device = self._read(EnrolledDevice, item)
            if what := device.missed(search):  # The service does not know this filter, and lists all.
                raise ServiceUnavailable(
                    f"the provisioning service at {self._base_url} is older and cannot search by {what}: ask "
                    "without that, or update the service"
                )
            yield device

    async def names(self, kind: str, beginning: str) -> list[str]:
        """Return the names of *kind*, "devices" or "groups", that begin with *beginning*; none if they fill a page."""
        page = await self._call(Page, "GET", f"/v1/{kind}", query={"limit": str(PAGE), "after": beginning or None})
        if page.next is not None and page.next.startswith(beginning):
            return []
        listed = (self._read(_Named, item).name for item in page.items)
        found = [name for name in listed if name.startswith(beginning)]
        if not beginning:
            return found
        try:  # The page is of the names behind it.
            known = await self._call(_Named, "GET", f"/v1/{kind}/{quote(beginning, safe='')}")
        except RequestRefused as refusal:
            if refusal.status != HTTPStatus.NOT_FOUND:
                raise
            return found
        return [known.name, *found]

    async def device(self, name: str) -> EnrolledDevice:
        """Return the party named *name*."""
        return await self._call(EnrolledDevice, "GET", f"/v1/devices/{quote(name, safe='')}")

    async def certificates(self, **search: Unpack[CertificateSearch]) -> AsyncIterator[IssuedCertificate]:
        """Yield every certificate that matches *search*."""
        async for item in self._walk("/v1/certificates", _query(search)):
            yield self._read(IssuedCertificate, item)

    async def count_certificates(self, **search: Unpack[CertificateSearch]) -> dict[str, int]:
        """Return how many certificates match *search*, by state."""
        counts = self._object(await self._send("GET", "/v1/inventory/counts", query=_query(search)))
        return self._read(_Counted, {"counts": counts}).counts

    async def certificate(self, serial: str) -> CertificateDetails:
        """Return the certificate with *serial* (hexadecimal)."""
        return await self._call(CertificateDetails, "GET", f"/v1/certificates/{quote(serial, safe='')}")

    async def operators(self) -> list[ListedOperator]:
        """Return all operators, with their roles."""
        return (await self._call(_Operators, "GET", "/v1/operators")).items

    async def me(self) -> Myself:
        """Return the calling operator."""
        return await self._call(Myself, "GET", "/v1/operators/me")

    async def grant(self, operator: str, role: str, *, keep_tokens: bool = False) -> GrantedRole:
        """Set the role of *operator*: auditor, enroller or admin.

        An auditor's unused tokens and approvals end, unless *keep_tokens*.
        """
        request = {"role": role, "keep_tokens": keep_tokens or None}
        return await self._call(GrantedRole, "PUT", f"/v1/operators/{quote(operator, safe='')}", request)

    async def left_by(self, operator: str, *, since: datetime | None = None) -> LeftByOperator:
        """Return what *operator* leaves behind, or would, with changes of groups' rules *since* then."""
        query = {"since": None if since is None else since.isoformat()}
        return await self._call(LeftByOperator, "GET", f"/v1/operators/{quote(operator, safe='')}/left", query=query)

    async def status(self) -> dict[str, Any]:
        """Return the service's own counts: a `ServiceStatus`, and what a newer service adds."""
        said = self._object(await self._send("GET", "/v1/status"))
        self._read(ServiceStatus, said)
        return said

    async def _walk(self, path: str, filters: Mapping[str, str | None]) -> AsyncIterator[dict[str, Any]]:
        after: str | None = None
        while True:
            page = await self._call(Page, "GET", path, query={**filters, "limit": str(PAGE), "after": after})
            for item in page.items:
                yield item
            if page.next is None:
                return
            if page.next == after:  # It would be the same page for ever.
                raise ServiceUnavailable(
                    f"the provisioning service at {self._base_url} sent a page that follows itself"
                )
            after = page.next

    async def _call(
        self,
        answer: type[AnswerT],
        method: str,
        path: str,
        request: Mapping[str, Any] | None = None,
        query: Mapping[str, str | None] | None = None,
    ) -> AnswerT:
        return self._read(answer, self._object(await self._send(method, path, request, query)))

    async def _send(
        self,
        method: str,
        path: str,
        request: Mapping[str, Any] | bytes | None = None,
        query: Mapping[str, str | None] | None = None,
    ) -> httpx.Response:
        body: dict[str, Any] = {"content": request} if isinstance(request, bytes) else {"json": _given(request)}
        try:
            response = await ask(self._pool, method, path, params=_given(query), **body)
        except httpx.HTTPError as error:
            raise ServiceUnavailable(explain(self._base_url, error)) from error
        except httpx.InvalidURL as error:  # More than 65,536 characters, before anything is sent.
            why = f"the request is too long ({error}): give fewer or shorter values"
            raise RequestRefused(HTTPStatus.REQUEST_URI_TOO_LONG, "", why) from error
        if response.is_success:
            return response
        raise self._refusal(response)

    def _refusal(self, response: httpx.Response) -> RequestRefused | ServiceUnavailable:
        status, reason = response.status_code, response.reason_phrase
        problem = problem_of(response)
        if problem is None:
            problem = {"detail": f"{reason} from {self._base_url}; {NAME_THE_ADDRESS}"}
        code, detail = str(problem.get("code", "")), str(problem.get("detail") or problem.get("title") or reason)
        if status >= httpx.codes.INTERNAL_SERVER_ERROR:
            why = f"{code}: {detail}" if code else f"status {status}"
            return ServiceFails(f"the provisioning service at {self._base_url} failed: {why}")
        if code in _NO_SUCH_REQUEST:
            detail = f"{detail}; the service at {self._base_url} knows no such request: if it is older, update it"
        return RequestRefused(status, code, detail, _items(problem))

    def _object(self, response: httpx.Response) -> dict[str, Any]:
        try:
            content = document_of(response)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise ServiceUnavailable(f"{self._base_url} is no provisioning service: its answer is no JSON object")
        return content

    def _read(self, answer: type[AnswerT], content: dict[str, Any]) -> AnswerT:
        try:
            return answer.model_validate(content)
        except ValidationError as error:
            # Without the input, which may contain a token.
            fields = ", ".join(".".join(map(str, fault["loc"])) for fault in error.errors(include_input=False))
            raise ServiceUnavailable(
                f"the provisioning service at {self._base_url} sent an answer without a valid {fields}"
            ) from None


def _target(
    device: str | None, serial: str | None, devices: Sequence[str] | None, serials: Sequence[str] | None
) -> dict[str, Any]:
    return {
        "device": device,
        "serial": serial,
        "devices": None if devices is None else list(devices),
        "serials": None if serials is None else list(serials),
    }


def _told(
    answer: _Revoked,
    tell: Callable[[DepartedOperator], object] | None,
    tell_name: Callable[[str], object] | None,
) -> list[RevokedCertificate]:
    if tell is not None:
        for each in answer.operators:
            tell(each)
    if tell_name is not None:
        for name in answer.names:
            tell_name(name)
    return answer.revoked


def _items(problem: Mapping[str, Any]) -> list[RefusedItem]:
    items = problem.get("items")
    found = []
    for each in items if isinstance(items, list) else ():
        name = next((each[kind] for kind in _KINDS if kind in each), None) if isinstance(each, dict) else None
        if isinstance(name, str | int):
            found.append(RefusedItem(name, str(each.get("code", "")), str(each.get("detail", ""))))
    return found


def _query(search: CertificateSearch | DeviceSearch) -> dict[str, str | None]:
    return {
        name: value.isoformat() if isinstance(value, datetime) else None if value is None else str(value)
        for name, value in search.items()
    }


def _given(fields: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if fields is None else {name: value for name, value in fields.items() if value is not None}
