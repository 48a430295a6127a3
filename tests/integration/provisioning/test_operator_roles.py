"""Three operators, three roles, over the API and from the command line."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from provisioning.client.enrolment import EnrolmentOperatorClient
from provisioning.client.operator import RequestRefused
from provisioning.client.operator_answers import DepartedOperator
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from tests.support.enrolled import Enrolled, enrol
from tests.support.provisioning import ProvisioningService

ON_BOTH_STORES = True

KEY_COMPROMISE = RevocationReason.KEY_COMPROMISE


async def refused(call: object) -> RequestRefused:
    with pytest.raises(RequestRefused) as caught:
        await call  # type: ignore[misc]
    return caught.value


async def test_each_operator_may_do_what_his_role_says_and_no_more(own_service: ProvisioningService) -> None:
    service = own_service

    def operator(name: str, role: str) -> Enrolled:
        (enrolled,) = enrol(service, name, role="operator", operator_role=role)
        return enrolled

    anna = await asyncio.to_thread(operator, "anna", "auditor")
    bert = await asyncio.to_thread(operator, "bert", "enroller")
    async with (
        EnrolmentOperatorClient(service.https, service.bundle, service.operator) as admin,
        EnrolmentOperatorClient(service.https, service.bundle, anna.credential) as auditor,
        EnrolmentOperatorClient(service.https, service.bundle, bert.credential) as enroller,
    ):
        assert [(each.name, each.role) for each in await admin.operators()] == [
            ("admin", "admin"),
            ("anna", "auditor"),
            ("bert", "enroller"),
        ]
        assert (await auditor.me()).role == "auditor"
        assert (await auditor.status())["devices"]["active"] == 4  # The service itself has a certificate too.
        error = await refused(auditor.create_tokens(device="meter-1"))
        assert (error.status, error.code) == (403, "OPERATOR_ROLE")
        assert error.detail.startswith(
            "anna has the role auditor; POST /v1/tokens needs the role enroller: an admin can"
        )
        await enroller.create_tokens(device="meter-1")
        for call in (
            enroller.create_tokens(device="broker-1", role=Role.BROKER),
            enroller.create_tokens(device="carl", role=Role.OPERATOR, operator_role="admin"),
            enroller.revoke(device="anna"),
            enroller.suspend(device="anna"),
            enroller.grant("bert", "admin"),
        ):
            error = await refused(call)
            assert (error.code, "needs the role admin" in error.detail) == ("OPERATOR_ROLE", True)
        await admin.grant("anna", "enroller")  # From her next request on, with the certificate that she has.
        await auditor.create_tokens(device="meter-2")
        assert (await refused(admin.grant("admin", "auditor"))).code == "LAST_ADMIN"
        for name, client in (("anna", auditor), ("bert", enroller)):
            await admin.grant(name, "admin")
            await client.create_claim(f"of-{name}", group="west", maximum_devices=5, life_seconds=3600)
            await client.list_devices("west", [(f"of-{name}", "ab" * 32), ("of-both", "cd" * 32)])
        await enroller.create_group("west", {"ways": ["listed+token"]})
        await enroller.change_group("west", {"ways": ["listed"], "webhook_url": "https://hook.example/"})
        assert (await admin.grant("anna", "auditor")).tokens_voided == 1
        left = list[DepartedOperator]()
        kept = await admin.decommission(device="bert", keep_tokens=True, tell=left.append)
        assert ([each.device for each in kept], left.pop().tokens_left) == (["bert"], 1)
        await admin.revoke(devices=["bert"], tell=left.append)
        assert [(each.name, each.tokens_voided, each.tokens_left) for each in left] == [("bert", 1, 0)]
        assert {each.state async for each in admin.tokens(device="meter-1")} == {"void"}
        error = await refused(admin.revoke(device="bert", reason=KEY_COMPROMISE, keep_tokens=True))
        assert (error.status, error.code) == (400, "INVALID_REQUEST")

        def said(*arguments: str) -> str:
            return service.command(*arguments, "--dir", str(service.dir), "--url", service.https, check=True).stderr

        grant = "operator", "grant", "anna", "--role", "auditor"
        assert "anna leaves behind what lets others in: 1 claim" in await asyncio.to_thread(said, *grant)
        for name, end, entries in (("anna", grant, "1 entry"), ("bert", ("revoke", "--device", "bert"), "2 entries")):
            ended = await asyncio.to_thread(said, *end, "--end-claims", "--end-listed")
            assert f"fleet-provisioning: 1 claim that {name} made has ended\n" in ended
            assert f"{entries} that {name} put on the list of west" in " ".join(ended.split())
            assert "; if that is not to stay: claim end" not in ended
        listed = [each async for each in admin.listed_devices("west")]
        assert [(each.added_by, each.also_by, each.ended_at is None) for each in listed] == [
            ("anna", None, False), ("bert", None, False), ("bert", "anna", False),
        ]  # fmt: skip
        where = "--dir", str(service.dir), "--url", service.https
        shown = await asyncio.to_thread(service.command, "operator", "left", "bert", *where, check=True)
        *_, ways, webhook = [line.split() for line in shown.stdout.splitlines()]
        assert (ways[-4:], webhook[-5:]) == (
            ["west", "ways", "token+listed", "listed"], ["west", "webhook", "url", "-", "https://hook.example/"],
        )  # fmt: skip
        assert [(each.name, each.ended_at is not None) async for each in admin.claims()] == [
            ("of-anna", True),
            ("of-bert", True),
        ]


def test_operators_from_the_command_line(own_service: ProvisioningService, tmp_path: Path) -> None:
    service = own_service
    where = ("--dir", str(service.dir), "--url", service.https)
    token = tmp_path / "anna.token"
    create = ("token", "create", "--role", "operator", "--operator-role", "enroller", "--output", str(token), *where)
    done = service.command(*create, "--device", "anna")
    assert (done.returncode, done.stdout) == (0, "")
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.read_text().startswith("fgt_")
    assert "never overwritten" in service.command(*create, "--device", "anna").stderr
    token.unlink()
    assert service.command(*create, "--device", "not a name").returncode == 1
    assert not token.exists(), "nothing was written, so nothing is left"
    listed = service.command("operator", "list", "--json", *where)
    assert [(each["name"], each["role"]) for each in json.loads(listed.stdout)] == [
        ("admin", "admin"),
        ("anna", "enroller"),
    ]
    assert "LAST_ADMIN" in service.command("operator", "grant", "admin", "--role", "auditor", *where).stderr
    assert "admin" in service.command("operator", "me", *where).stdout
    assert service.command("operator", "grant", "anna", "--role", "king", *where).returncode == 2


def test_others_may_connect_only_if_that_was_said(own_service: ProvisioningService) -> None:
    ports = ("--dir", str(own_service.dir), "--port", "0", "--http-port", "0")
    done = own_service.command("serve", "--host", "0.0.0.0", *ports)
    assert done.returncode == 1
    assert "host: 0.0.0.0 is not a loopback address, so others can connect" in done.stderr
    done = own_service.command("serve", "--host", "192.0.2.1", "--public-listener", *ports)
    assert "host: cannot listen on 192.0.2.1: Cannot assign requested address; give an address" in done.stderr
