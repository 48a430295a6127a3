"""Tokens that exist: what operators see of them, and the end of a single one, over REST and by commands."""

from __future__ import annotations

import json
from pathlib import Path

import httpx

from tests.support.curl import Curl
from tests.support.openssl import OpensslDevice, certificate_facts
from tests.support.provisioning import ProvisioningService

ON_BOTH_STORES = True


def made(api: httpx.Client, **order: object) -> str:
    answer = api.post("/v1/tokens", json=order)
    assert answer.status_code == 201, answer.text
    (item,) = answer.json()["tokens"]
    assert api.get(f"/v1/tokens/{item['id']}").json()["device"] == order.get("device")
    token: str = item["token"]
    return token


def listed(api: httpx.Client, **search: object) -> list[dict[str, object]]:
    """Return every item of every page, two at a time."""
    items, after = [], "0"
    while True:
        answer = api.get("/v1/tokens", params={"limit": "2", "after": after, **search})  # type: ignore[dict-item]
        assert answer.status_code == 200, answer.text
        page = answer.json()
        items += page["items"]
        if page["next"] is None:
            return items
        after = page["next"]


def test_tokens_are_listed_shown_and_voided(own_service: ProvisioningService, tmp_path: Path) -> None:
    device = OpensslDevice(tmp_path, "meter-1")
    with own_service.api() as api:
        used = made(api, device="meter-1", group="north")
        wrong = made(api, device="meter-2", group="north", ttl_seconds=7200)
        for number in range(3):
            made(api, group="south", ttl_seconds=60 + number)
        stranger = Curl(own_service.https, own_service.bundle)
        answer = stranger.est("simpleenroll", device.request(), "--user", f"meter-1:{used}")
        assert answer.status == 200, answer.text
        device.take(answer.body)

        everything = listed(api)
        assert [each["device"] for each in everything] == ["meter-1", "meter-2", None, None, None]
        assert [each["state"] for each in everything] == ["used", "open", "open", "open", "open"]
        assert used not in json.dumps(everything)
        assert [each["device"] for each in listed(api, group="north", state="open")] == ["meter-2"]
        assert [each["state"] for each in listed(api, device="meter-1")] == ["used"]
        assert len(listed(api, expires_before=everything[0]["expires_at"])) == 3
        shown = api.get(f"/v1/tokens/{everything[0]['id']}").json()
        assert shown["serial"] == certificate_facts(device.certificate, "-serial").partition("=")[
            2
        ].strip().lower().lstrip("0")
        for edge in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"):
            for path in ("/v1/tokens", "/v1/certificates"):
                refused = api.get(path, params={"expires_before": edge})
                assert (refused.status_code, refused.json()["code"]) == (400, "INVALID_REQUEST"), refused.text
        assert api.get("/v1/tokens/999").json()["code"] == "TOKEN_NUMBER_UNKNOWN"

        number = everything[1]["id"]
        first = api.delete(f"/v1/tokens/{number}")
        assert (first.status_code, first.json()["state"]) == (200, "void")
        assert api.delete(f"/v1/tokens/{number}").json() == first.json()
        spent = api.delete(f"/v1/tokens/{everything[0]['id']}")
        assert (spent.status_code, spent.json()["code"]) == (409, "TOKEN_SPENT")
        assert f"has bought certificate {shown['serial']}: revoke that instead" in spent.json()["detail"]
    other = OpensslDevice(tmp_path, "meter-2")
    refused = stranger.est("simpleenroll", other.request(), "--user", f"meter-2:{wrong}")
    assert (refused.status, refused.text.partition(":")[0]) == (401, "TOKEN_VOID")
    shown_log = own_service.command("audit", "show", "--dir", str(own_service.dir), "--json").stdout
    voided = [each for each in json.loads(shown_log) if each["action"] == "token voided"]
    assert [(each["subject"], each["details"]["token"]) for each in voided] == [("meter-2", number)]


def test_a_batch_has_its_numbers_in_order(own_service: ProvisioningService) -> None:
    names = [f"meter-{number}" for number in range(2000, 0, -1)]
    with own_service.api() as api:
        items = api.post("/v1/tokens", json={"devices": names}).json()["tokens"]
        by_number = {each["id"]: each["device"] for each in items}
        assert [each["device"] for each in items] == names
        first = api.get("/v1/tokens", params={"limit": "1000"}).json()["items"]
        assert all(by_number[each["id"]] == each["device"] for each in first)
        device = {"device": names[-1]}
        (last,) = api.get("/v1/tokens", params=device).json()["items"]
        assert by_number[last["id"]] == names[-1]


def test_an_enroller_voids_what_an_enroller_makes(own_service: ProvisioningService, tmp_path: Path) -> None:
    with own_service.api() as api:
        made(api, device="broker-1", role="broker", dns_names=["localhost"])
        made(api, device="meter-1")
        token = made(api, device="anna", role="operator", operator_role="enroller")
        anna = OpensslDevice(tmp_path, "anna")
        answer = Curl(own_service.https, own_service.bundle).est(
            "simpleenroll", anna.request(), "--user", f"anna:{token}"
        )
        anna.take(answer.body)
        brokers, meters, _ = (each["id"] for each in listed(api))
    enroller = Curl(own_service.https, own_service.bundle, anna.credential)
    assert enroller.run(f"/v1/tokens/{meters}", "--request", "DELETE").status == 200
    refused = enroller.run(f"/v1/tokens/{brokers}", "--request", "DELETE")
    assert (refused.status, "OPERATOR_ROLE" in refused.text) == (403, True)


def test_the_commands_say_the_same(own_service: ProvisioningService) -> None:
    def token(*arguments: str) -> str:
        where = ("--dir", str(own_service.dir), "--url", own_service.https)
        done = own_service.command("token", *arguments, *where)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with own_service.api() as api:
        made(api, device="meter-1", group="north", ttl_seconds=600)
        made(api, group="south", ttl_seconds=86_400)
    assert [each["group"] for each in json.loads(token("list", "--json"))] == ["north", "south"]
    (soon,) = json.loads(token("list", "--expiring-within", "1h", "--json"))
    assert soon["device"] == "meter-1"
    assert "any new" in token("list", "--group", "south")
    assert json.loads(token("void", str(soon["id"]), "--json"))["state"] == "void"
    assert "void" in token("show", str(soon["id"]))
    assert [each["group"] for each in json.loads(token("list", "--state", "open", "--json"))] == ["south"]
