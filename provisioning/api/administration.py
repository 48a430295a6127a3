"""What the operators' routes about enrolment call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from provisioning.enrolment.approvals import ApprovalService
from provisioning.enrolment.claims import ClaimService
from provisioning.enrolment.device_list import DeviceListService
from provisioning.enrolment.groups import GroupService
from provisioning.enrolment.left_behind import LeftBehindService
from provisioning.enrolment.manufacturer_lists import ManufacturerListService
from provisioning.enrolment.manufacturers import ManufacturerService
from provisioning.enrolment.renewal_info import RenewalService


@dataclass(frozen=True, slots=True)
class EnrolmentAdministration:
    """The services behind the routes; `app.state.enrolment_services` holds them."""

    groups: GroupService
    claims: ClaimService
    manufacturers: ManufacturerService
    manufacturer_lists: ManufacturerListService
    lists: DeviceListService
    approvals: ApprovalService
    renewals: RenewalService
    left_behind: LeftBehindService


async def _administration_of(request: Request) -> EnrolmentAdministration:
    services: EnrolmentAdministration = request.app.state.enrolment_services
    return services


Administration = Annotated[EnrolmentAdministration, Depends(_administration_of)]
