"""The operators' REST API for enrolment groups: which ways lead into a group, and what its devices get."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from http import HTTPStatus
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from provisioning.api.administration import Administration, EnrolmentAdministration
from provisioning.api.operators import (
    DEFAULT_PAGE,
    Limit,
    Name,
    Operator,
    new_router,
    page_of,
)
from provisioning.enrolment.groups import parse_ways
from provisioning.program.moments import rfc3339
from provisioning.store.authorities import DEFAULT_LINE
from provisioning.store.groups import (
    DEFAULT_PROFILE,
    DEFAULT_SAME_KEY_WINDOW,
    Group,
    NewKey,
    StoredGroup,
    alternative_text,
)

router: Final = new_router()

WayTexts = Annotated[list[Annotated[str, Field(max_length=80)]], Field(max_length=32)]
Seconds = Annotated[int, Field(ge=0, le=10**12)]
"""What a timedelta holds: how long each may be, the services know, and say with units."""


class GroupRules(BaseModel):
    """The rules of a group. Each of ``ways`` is sufficient; ``a+b`` requires both. 0: no limit."""

    model_config = ConfigDict(extra="forbid")

    ways: WayTexts
    profile: Annotated[str, Field(max_length=64)] = DEFAULT_PROFILE
    lifetime_seconds: Seconds = 0
    maximum_devices: Annotated[int, Field(ge=0, le=10**9)] = 0
    certificates_per_minute: Annotated[int, Field(ge=0, le=10**9)] = 0
    same_key_seconds: Seconds = int(DEFAULT_SAME_KEY_WINDOW.total_seconds())
    new_key: NewKey = NewKey.REFUSE
    server_keys: bool = False
    tls_unique: bool = False
    renewal_grace_seconds: Seconds = 0
    webhook_url: Annotated[str, Field(max_length=500)] = ""
    webhook_timeout_seconds: Annotated[int, Field(ge=1, le=30)] = 5
    issuing_line: Annotated[str, Field(min_length=1, max_length=64)] = DEFAULT_LINE


class NewGroup(GroupRules):
    """A group to make."""

    name: Name


class GroupChange(GroupRules):
    """Rules to change; those that are not given stay as they are."""

    ways: WayTexts = []


@router.post("/groups", status_code=HTTPStatus.CREATED)
async def create_group(body: NewGroup, operator: Operator, administration: Administration) -> dict[str, Any]:
    """Make an enrolment group. 409 if there is one of that name."""
    rules = _rules(body, set(GroupRules.model_fields))
    return _item(administration, await administration.groups.create(Group(body.name, **rules), by=operator.device.name))


@router.get("/groups")
async def list_groups(
    administration: Administration, limit: Limit = DEFAULT_PAGE, after: Name | None = None
) -> dict[str, Any]:
    """List configured groups in order of name. ``next`` is the cursor of the page that follows."""
    found = await administration.groups.page(limit=limit + 1, after=after)
    return page_of([_item(administration, each) for each in found], limit)


@router.get("/groups/{name}")
async def show_group(name: str, administration: Administration) -> dict[str, Any]:
    """Show one configured group, and whether it is full: whether it has its maximum of devices."""
    stored, is_full = await administration.groups.look(name)
    return _item(administration, stored, is_full=is_full)


@router.patch("/groups/{name}")
async def change_group(
    name: str, body: GroupChange, operator: Operator, administration: Administration
) -> dict[str, Any]:
    """Change rules of a group. The change applies to later requests, not to certificates that were already issued."""
    rules = _rules(body, body.model_fields_set)
    return _item(administration, await administration.groups.change(name, rules, by=operator.device.name))


def _rules(body: GroupRules, given: set[str]) -> dict[str, Any]:
    lifetime = timedelta(seconds=body.lifetime_seconds)
    values: dict[str, tuple[str, Callable[[], Any]]] = {
        "ways": ("ways", lambda: parse_ways(body.ways)),
        "profile": ("profile", lambda: body.profile),
        "lifetime_seconds": ("lifetime", lambda: lifetime or None),
        "maximum_devices": ("maximum_devices", lambda: body.maximum_devices or None),
        "certificates_per_minute": ("certificates_per_minute", lambda: body.certificates_per_minute or None),
        "same_key_seconds": ("same_key_window", lambda: timedelta(seconds=body.same_key_seconds)),
        "new_key": ("new_key", lambda: body.new_key),
        "server_keys": ("server_keys", lambda: body.server_keys),
        "tls_unique": ("tls_unique", lambda: body.tls_unique),
        "renewal_grace_seconds": ("renewal_grace", lambda: timedelta(seconds=body.renewal_grace_seconds)),
        "webhook_url": ("webhook_url", lambda: body.webhook_url or None),
        "webhook_timeout_seconds": ("webhook_timeout", lambda: timedelta(seconds=body.webhook_timeout_seconds)),
        "issuing_line": ("issuing_line", lambda: body.issuing_line),
    }
    return {rule: value() for field, (rule, value) in values.items() if field in given}


def _item(
    administration: EnrolmentAdministration, stored: StoredGroup, *, is_full: bool | None = None
) -> dict[str, Any]:
    group = stored.group
    return {
        "name": group.name,
        "ways": [alternative_text(each) for each in group.ways],
        "profile": group.profile,
        "profile_known": administration.groups.knows_profile(group),
        "lifetime_seconds": None if group.lifetime is None else int(group.lifetime.total_seconds()),
        "maximum_devices": group.maximum_devices,
        "certificates_per_minute": group.certificates_per_minute,
        "same_key_seconds": int(group.same_key_window.total_seconds()),
        "new_key": group.new_key,
        "server_keys": group.server_keys,
        "tls_unique": group.tls_unique,
        "renewal_grace_seconds": int(group.renewal_grace.total_seconds()),
        "webhook_url": group.webhook_url,
        "webhook_timeout_seconds": int(group.webhook_timeout.total_seconds()),
        "issuing_line": group.issuing_line,
        "created_at": rfc3339(stored.created_at),
        "created_by": stored.created_by,
        "changed_at": rfc3339(stored.changed_at),
        "changed_by": stored.changed_by,
        "full": is_full,
    }
