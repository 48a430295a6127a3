"""What a caller may put into a URL or a name that a store or its driver has no place for: refused or not found."""

from __future__ import annotations

import pytest

from tests.support.provisioning import ProvisioningService

ON_BOTH_STORES = True
ODD = ("%00", "a%00b", "%ff", "%F0%9F%98%80", "%ED%A0%80", "%25", "'", "%0a")
SEARCHES = (
    "/v1/tokens?device={}",
    "/v1/tokens?group={}",
    "/v1/devices?group={}",
    "/v1/devices?after={}",
    "/v1/devices/{}",
    "/v1/groups?after={}",
    "/v1/groups/{}",
    "/v1/groups/{}/listed",
    "/v1/claims?after={}",
    "/v1/manufacturers?after={}",
    "/v1/manufacturers/{}",
    "/v1/manufacturers/{}/revoked",
    "/v1/manufacturers/odd/revoked?after={}",
    "/v1/approvals?group={}",
    "/v1/certificates?device={}",
    "/v1/certificates?group={}",
    "/v1/certificates?issuer={}",
    "/v1/certificates?fingerprint={}",
    "/v1/certificates?serial={}",
    "/v1/certificates/{}",
    "/v1/inventory/counts?device={}",
    "/v1/renewal-info/{}",
)
BODIES = (
    ("POST", "/v1/tokens", {"device": "{}"}),
    ("POST", "/v1/tokens", {"group": "{}"}),
    ("POST", "/v1/revocations", {"device": "{}"}),
    ("POST", "/v1/revocations", {"devices": ["{}"]}),
    ("POST", "/v1/revocations", {"serials": ["{}"]}),
    ("POST", "/v1/suspensions", {"device": "{}"}),
    ("POST", "/v1/resumptions", {"device": "{}"}),
    ("POST", "/v1/decommissions", {"device": "{}"}),
    ("POST", "/v1/suspensions", {"devices": ["{}"], "serials": ["{}"]}),
    ("POST", "/v1/resumptions", {"devices": ["{}"], "serials": ["{}"]}),
    ("POST", "/v1/decommissions", {"devices": ["{}"]}),
    ("POST", "/v1/groups", {"name": "odd", "ways": ["token"], "profile": "{}"}),
    ("POST", "/v1/groups", {"name": "odd", "ways": ["token"], "issuing_line": "{}"}),
    ("POST", "/v1/groups", {"name": "odd", "ways": ["webhook+token"], "webhook_url": "https://{}"}),
    ("POST", "/v1/claims", {"name": "{}", "group": "{}", "maximum_devices": 1, "life_seconds": 3600}),
    ("POST", "/v1/manufacturers", {"name": "{}", "group": "{}", "certificate": "{}", "name_prefix": "{}"}),
    ("POST", "/v1/groups/odd/listed", {"devices": [{"name": "{}"}]}),
    ("DELETE", "/v1/groups/odd/listed/{}", None),
    ("DELETE", "/v1/claims/{}", None),
    ("DELETE", "/v1/manufacturers/{}", None),
    ("PATCH", "/v1/manufacturers/{}", {"lapsed_lists": "accept"}),
    ("PATCH", "/v1/manufacturers/odd", {"list_urls": ["http://{}"]}),
    ("POST", "/v1/manufacturers/{}/lists", None),
    ("DELETE", "/v1/manufacturers/{}/lists/" + 64 * "0", None),
    ("DELETE", "/v1/manufacturers/odd/lists/{}", None),
    ("POST", "/v1/renewals/hasten", {"group": "{}"}),
    ("PUT", "/v1/operators/{}", {"role": "auditor"}),
)
TEXTS = ("\x00", "a\x00b", "\U0001f600", "\x7f", "'", "%")


@pytest.mark.parametrize("search", SEARCHES)
def test_what_no_store_has_a_place_for_is_found_nowhere(service: ProvisioningService, search: str) -> None:
    with service.api() as api:
        for odd in ODD:
            answer = api.get(search.format(odd))
            assert answer.status_code < 500, (search, odd, answer.text)


@pytest.mark.parametrize(("method", "path", "body"), BODIES, ids=lambda value: str(value)[:40])
def test_nothing_is_made_of_it(service: ProvisioningService, method: str, path: str, body: object) -> None:
    def filled(value: object, text: str) -> object:
        match value:
            case str():
                return value.replace("{}", text)
            case list():
                return [filled(each, text) for each in value]
            case dict():
                return {name: filled(each, text) for name, each in value.items()}
            case _:
                return value

    with service.api() as api:
        for text in TEXTS:
            answer = api.request(method, path.replace("{}", f"%{ord(text[0]):02x}"), json=filled(body, text))
            assert answer.status_code < 500, (path, text, answer.text)
