"""Capability files: what is claimed, and that a misspelt claim is an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_sim.attack.capabilities import EVERYTHING, CapabilityError, Feature, load
from device_sim.attack.catalogue import CATALOGUE
from device_sim.attack.fleetgate_target import CAPABILITIES as FLEETGATE
from device_sim.attack.mosquitto_target import CAPABILITIES as MOSQUITTO
from device_sim.attack.report import read_json
from device_sim.attack.revocation_list import chapter

ALL_NAMES = [case.name for case in (*CATALOGUE, *chapter.cases)]


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "broker.toml"
    path.write_text(text)
    return path


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    capabilities = load(
        written(
            tmp_path,
            """
            name = "other"
            supports = ["mqtt5", "revocation"]
            [limits]
            handshake = 4
            [expected]
            "5-revoked" = ["tls certificate_revoked"]
            [revocation]
            crl_file = "/tmp/crl.pem"
            reload = ["kill", "-HUP", "17"]
            """,
        )
    )
    assert capabilities.name == "other"
    assert capabilities.supports == {Feature.MQTT5, Feature.REVOCATION}
    assert (capabilities.limits.handshake, capabilities.limits.connect) == (4.0, 15.0)
    assert capabilities.expected == {"5-revoked": ("tls certificate_revoked",)}
    assert capabilities.revocation is not None
    assert capabilities.revocation.reload == ("kill", "-HUP", "17")
    assert capabilities.missing({Feature.QOS2, Feature.MQTT5, Feature.REGISTRY}) == ["qos2", "registry"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("supports = []", "name: field required"),
        ('name = "x"\nsupports = ["mqtt6"]', "supports.0: input should be 'mqtt5'"),
        ('name = "x"\nsupports = []\nlimit = 3', "limit: extra inputs are not permitted"),
        ('name = "x"\nsupports = []\n[limits]\nhandshake = 0', "limits.handshake: input should be greater than 0"),
        ("name = ", "is not TOML"),
    ],
)
def test_a_wrong_file_is_explained(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(CapabilityError, match=words):
        load(written(tmp_path, text))


def test_another_encoding_is_told_with_its_line(tmp_path: Path) -> None:
    (path := tmp_path / "broker.toml").write_bytes('name = "x"\n# ä'.encode("latin-1"))
    with pytest.raises(CapabilityError, match="is not TOML: line 2 is not UTF-8; save it in that encoding"):
        load(path)


def test_what_is_nested_too_deeply_is_no_outcome_of_an_attack(tmp_path: Path) -> None:
    """It ended attack-table with a traceback."""
    (path := tmp_path / "outcome.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="too much in it"):
        read_json(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match=r"none.toml cannot be read: No such file"):
        load(tmp_path / "none.toml")


def test_an_expectation_for_no_case_is_an_error(tmp_path: Path) -> None:
    capabilities = load(written(tmp_path, 'name = "x"\nsupports = []\n[expected]\n"5-revokd" = ["closed"]'))
    with pytest.raises(CapabilityError, match="capabilities of x: no such case: 5-revokd; see --list"):
        capabilities.check_cases(ALL_NAMES)


def test_what_we_ship_names_existing_cases() -> None:
    for capabilities in (FLEETGATE, MOSQUITTO, EVERYTHING):
        capabilities.check_cases(ALL_NAMES)
