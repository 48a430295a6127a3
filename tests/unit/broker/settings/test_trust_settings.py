"""Settings of trust: what would let anybody on the way say whom to believe is refused, with the remedy."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from broker.settings.trust_settings import REQUIRE, IdentitySource, StatusPolicy, TrustSettings
from provisioning.pki.role import Role

PIN = "ab" * 32
URL = "https://ca.example/anchors.pem"
PLAIN = "http://ca.example/anchors.pem"


def settings(**given: Any) -> TrustSettings:
    return TrustSettings(name="ours", unsafe_no_revocation=True, **given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "ours: anchors: name files or directories of CA certificates, or anchors_url"),
        ({"anchors": "a.pem", "anchors_sha256": [PIN]}, "anchors_url_cafile and anchors_sha256 go with anchors_url"),
        ({"anchors": "a.pem", "anchors_url_cafile": "c.pem"}, "go with anchors_url"),
        ({"anchors_url": URL}, "an https server is verified only with anchors_url_cafile; give it"),
        ({"anchors_url": URL, "anchors_sha256": [PIN]}, "or use http:// with anchors_sha256"),
        ({"anchors_url": PLAIN}, "by http:// anybody may answer, so anchors_sha256 says which"),
        ({"anchors_url": PLAIN, "anchors_url_cafile": "c.pem"}, "by http:// anybody may answer"),
        ({"anchors_url": PLAIN, "anchors_url_cafile": "c.pem", "anchors_sha256": [PIN]}, "by http:// anybody"),
        ({"anchors_url": "ftp://ca.example/a"}, "https://, with anchors_url_cafile; or http://, with anchors_sha256"),
        ({"anchors_url": PLAIN, "anchors_sha256": [f"{PIN}0"]}, "is not the SHA-256 of a certificate: 64 hexa"),
        ({"anchors_url": PLAIN, "anchors_sha256": ["abc"]}, "'abc' is not the SHA-256 of a certificate: 64 hexa"),
    ],
)
def test_an_answer_that_nothing_vouches_for_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as raised:
        settings(**given)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    "given",
    [
        {"anchors": "a.pem"},
        {"anchors_url": URL, "anchors_url_cafile": "c.pem"},
        {"anchors_url": URL, "anchors_url_cafile": "c.pem", "anchors_sha256": [PIN]},
        {"anchors_url": PLAIN, "anchors_sha256": [PIN]},
        {"anchors": "a.pem", "anchors_url": PLAIN, "anchors_sha256": [PIN]},
    ],
)
def test_files_an_own_ca_and_pins_are_reasons(given: dict[str, Any]) -> None:
    assert settings(**given).anchors_url == given.get("anchors_url")


def test_a_pin_is_read_as_tools_print_it() -> None:
    assert settings(anchors_url=PLAIN, anchors_sha256=["AB:" * 31 + "AB"]).anchors_sha256 == (PIN,)


@pytest.mark.parametrize(
    ("source", "crls", "ocsp"),
    [
        ({"crlfile": ["a.crl"]}, True, False),
        ({"crl_urls": ["http://ca.example/a.crl"]}, True, False),
        ({"crl_from_certificates": True}, True, False),
        ({"ocsp_responder": "http://ca.example/ocsp"}, False, True),
        ({"ocsp_from_certificates": True}, False, True),
        ({"feed": True}, False, False),
    ],
)
def test_each_source_of_revocations_is_one_alone(source: dict[str, Any], *, crls: bool, ocsp: bool) -> None:
    made = TrustSettings.model_validate({"name": "ours", "anchors": "a.pem", **source})
    assert (made.has_crls, made.has_ocsp) == (crls, ocsp)


@pytest.mark.parametrize(
    ("policy", "never", "late", "later"),
    [
        ("advisory", True, True, True),
        ("grace 60s", False, True, False),
        ("require", False, False, False),
        (" Require ", False, False, False),
    ],
)
def test_what_is_late_or_never_came_is_accepted_by_the_policy(
    policy: str, *, never: bool, late: bool, later: bool
) -> None:
    terms = settings(anchors="a.pem", crl_policy=policy).crl_policy
    assert isinstance(terms, StatusPolicy)
    assert [terms.allows(overdue) for overdue in (None, 60.0, 61.0)] == [never, late, later]
    assert terms.allows(0.0)


def test_what_is_not_said_of_a_bundle_opens_nothing() -> None:
    with pytest.raises(ValidationError, match=r"ours: no source of revocations; give feed, crlfile, crl_urls or ocsp_"):
        TrustSettings.model_validate({"name": "ours", "anchors": "a.pem"})
    made = TrustSettings.model_validate({"name": "ours", "anchors": "a.pem", "feed": True})
    assert (made.unsafe_no_revocation, made.crl_from_certificates, made.ocsp_from_certificates) == (False,) * 3
    assert (made.client_id, made.any_client_id, made.max_sessions) == ("equal", (), 0)
    assert {made.crl_policy, made.ocsp_policy} == {REQUIRE}
    assert (made.required_eku, made.roles, made.max_depth) == (("clientAuth",), (Role.DEVICE,), 4)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"feed_policy": "advisory"}, "ours: feed_policy: it is about the feed; give feed = true, or leave it out"),
        (
            {"identity": [IdentitySource(source="common-name", group="north")]},
            "ours: trust_domain: identities that are made of certificates need one",
        ),
        ({"username": "meter"}, "ours: username: ignore, equal, or a text with {device}"),
        ({"username": "{group}"}, "ours: username: ignore, equal, or a text with {device}"),
    ],
)
def test_terms_that_would_bind_nobody_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as raised:
        settings(anchors="a.pem", **given)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    "given", [{"feed": True, "feed_policy": "advisory"}, {"username": "{group}/{device}"}, {"groups": ["a", "b"]}]
)
def test_terms_that_bind_somebody_are_taken(given: dict[str, Any]) -> None:
    settings(anchors="a.pem", **given)


def test_any_group_is_named_alone() -> None:
    assert settings(anchors="a.pem", groups=["*"]).any_group
    with pytest.raises(ValidationError, match=r"ours: groups: \* is any group; name no others beside it"):
        settings(anchors="a.pem", groups=["*", "north"])


def test_the_groups_that_are_named_are_those_of_the_bundle_or_of_its_names() -> None:
    names = [IdentitySource(source="common-name", group="north"), IdentitySource(source="spiffe")]
    given = {"anchors": "a.pem", "trust_domain": "plant.example", "identity": names}
    assert settings(**given).named_groups == {"north"}
    assert settings(**given, groups=["south"]).named_groups == {"south"}


@pytest.mark.parametrize(
    ("groups", "identity", "is_open"),
    [
        ([], [], True),
        ([], [{"source": "spiffe"}], True),
        ([], [{"source": "common-name", "pattern": "(?P<group>.+)/(?P<name>.+)"}], True),
        ([], [{"source": "common-name", "group": "north"}, {"source": "spiffe"}], True),
        ([], [{"source": "common-name", "group": "north"}], False),
        (["north"], [{"source": "spiffe"}], False),
        (["*"], [], False),
    ],
)
def test_a_certificate_may_state_any_group_unless_the_settings_say_which(
    groups: list[str], identity: list[dict[str, str]], *, is_open: bool
) -> None:
    """The operator is warned of a bundle whose CA may put its clients among ours."""
    given = {"anchors": "a.pem", "trust_domain": "plant.example", "groups": groups, "identity": identity}
    assert settings(**given).leaves_groups_open == is_open


def test_a_device_belongs_to_a_group_and_nobody_else_need() -> None:
    assert IdentitySource(source="common-name", role=Role.SERVICE).group is None
    assert IdentitySource(source="spiffe").group is None
    with pytest.raises(ValidationError, match=r"group: a device belongs to one; give group, or capture it"):
        IdentitySource(source="common-name")


@pytest.mark.parametrize("pattern", ["(?P<group>.+)", "(?P<name>.+)-(?P<rule>.+)", "(?P<name>"])
def test_a_pattern_captures_a_name_and_nothing_unknown(pattern: str) -> None:
    with pytest.raises(ValidationError):
        IdentitySource(source="common-name", group="north", pattern=pattern)
