from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from broker.settings.config_file import ConfigError
from broker.settings.config_loading import load
from provisioning.authorities.issuing_policy import profiles_of
from provisioning.authorities.own_credentials import server_names_of
from provisioning.ca.profile import MAXIMUM_LIFE, MINIMUM_LIFE
from provisioning.config import Settings, load_settings
from provisioning.errors import ConfigurationError


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PASSPHRASE", "PASSPHRASE_FILE", "PORT", "DIRECTORY"):
        monkeypatch.delenv(f"FLEET_PROVISIONING_{name}", raising=False)


def test_flags_come_before_environment_before_file_before_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_settings(tmp_path).port == 8443
    (tmp_path / "provisioning.toml").write_text('port = 1\ncrl_life = "P2D"\n')
    assert load_settings(tmp_path).port == 1
    assert load_settings(tmp_path).crl_life == timedelta(days=2)
    monkeypatch.setenv("FLEET_PROVISIONING_PORT", "2")
    assert load_settings(tmp_path, port=None).port == 2
    assert load_settings(tmp_path, port=3).port == 3


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("port = 70000", "port"),
        ("port = 'abc'", r"provisioning\.toml: port: give a whole number, without a unit$"),
        ("public_listener = 'perhaps'", r"provisioning\.toml: public_listener: give true or false$"),
        ("host = 1", r"provisioning\.toml: host: give a text, in quotes$"),
        (
            "nonsense = 1",
            r"provisioning\.toml: nonsense: no such setting; see docs/reference/settings-of-provisioning\.md",
        ),
        ("prot = 1", r"provisioning\.toml: prot: no such setting; is port meant\?"),
        ("[profiles.sensor]\nlief = 'P1D'", r"profiles\.sensor\.lief: no such setting; is life meant\?"),
        ("device_life = 'a month'", r"device_life: write a duration .* P30D"),
        ("crl_life = 5", r"provisioning\.toml: crl_life: write a duration with its unit, such as 30d, 12h.* P30D"),
        ("ocsp_life = '300'", "ocsp_life: write a duration with its unit"),
        ("token_retention = true", "token_retention: write a duration with its unit"),
        ("broker_life = '1:30'", "broker_life: write a duration with its unit"),
        ("[profiles.sensor]\nlife = 30", r"profiles\.sensor\.life: write a duration with its unit"),
        ("[profiles.sensor]\nbackdate = 60.0", r"profiles\.sensor\.backdate: write a duration with its unit"),
        ("device_life = '10s'", r"provisioning\.toml: device_life: input should be greater than or equal to 1 minute"),
        ("operator_life = '826d'", r"operator_life: input should be less than or equal to 825 days"),
        ("crl_life = '0s'", r"crl_life: input should be greater than or equal to 1 second"),
        ("crl_life = '-PT5H'", r"crl_life: input should be greater than or equal to 1 second"),
        ("crl_life = '2e9d'", "crl_life: write a duration with its unit"),
        ("crl_life = '999999999999d'", "crl_life: is longer than anybody waits"),
        ("unsafe_group_writable_directory = true", "counts in the environment only, as FLEET_PROVISIONING_UNSAFE_"),
        ("port = true", r"provisioning\.toml: port: give a number, not true or false$"),
        ("requests_per_second = false", "requests_per_second: give a number, not true or false$"),
        ("[profiles.sensor]\nminimum_rsa_bits = true", r"profiles\.sensor\.minimum_rsa_bits: give a number, not true"),
        ("= broken", r"provisioning\.toml is not TOML: "),
        (
            'public_http_url = "ca.example.org"',
            "public_http_url: write the whole URL, with its scheme: http://NAME:PORT$",
        ),
        ('public_http_url = "ftp://x"', "public_http_url: URL scheme should be"),
        ('public_http_url = "http://ca.example.org/?x=1"', "public_http_url.*no query"),
        ('public_http_url = "http://ca.example.org/#x"', "public_http_url.*no fragment"),
        ('public_http_url = "http://anna:hush@ca.example.org/"', "public_http_url.*no user"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "provisioning.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=word):
        load_settings(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30d", timedelta(days=30)), ("12 h", timedelta(hours=12)), ("5m", timedelta(minutes=5)),
        ("1.5h", timedelta(minutes=90)), ("90s", timedelta(seconds=90)), ("PT1.5S", timedelta(seconds=1.5)),
        ("P1DT12H", timedelta(hours=36)),
    ],
)  # fmt: skip
def test_a_duration_is_a_number_with_its_unit_or_iso_8601(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: timedelta
) -> None:
    (tmp_path / "provisioning.toml").write_text(f'crl_life = "{text}"\n')
    assert load_settings(tmp_path).crl_life == expected
    monkeypatch.setenv("FLEET_PROVISIONING_CRL_LIFE", "7")
    with pytest.raises(ConfigurationError, match=r"^FLEET_PROVISIONING_CRL_LIFE: write a duration with its unit"):
        load_settings(tmp_path)


@pytest.mark.parametrize(
    "setting", ["directory", "passphrase_file", "pkcs11_pin_file", "key_blocklist", "webhook_cafile"]
)
def test_a_path_that_is_empty_is_refused_wherever_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    (tmp_path / "provisioning.toml").write_text(f'{setting} = ""\n')
    if setting != "directory":  # Of which the file is in one.
        with pytest.raises(ConfigurationError, match=rf"provisioning\.toml: {setting}: is empty; name a file"):
            load_settings(tmp_path)
    (tmp_path / "provisioning.toml").unlink()
    monkeypatch.setenv(f"FLEET_PROVISIONING_{setting.upper()}", "")
    with pytest.raises(ConfigurationError, match=rf"^FLEET_PROVISIONING_{setting.upper()}: is empty; name a file"):
        load_settings(None)


def test_a_life_has_the_bounds_that_its_profile_has(tmp_path: Path) -> None:
    for text, bound in (("1m", MINIMUM_LIFE), ("825d", MAXIMUM_LIFE)):
        (tmp_path / "provisioning.toml").write_text(f'device_life = "{text}"\n')
        assert profiles_of(load_settings(tmp_path))["device"].life == bound


def test_where_the_wrong_setting_stands_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "provisioning.toml").write_text("port = 70000\n")
    monkeypatch.setenv("FLEET_PROVISIONING_PORT", "70001")
    with pytest.raises(ConfigurationError, match=r"^--port: input should be less"):
        load_settings(tmp_path, port=70002)
    with pytest.raises(ConfigurationError, match=r"^FLEET_PROVISIONING_PORT: input should be less"):
        load_settings(tmp_path)
    monkeypatch.delenv("FLEET_PROVISIONING_PORT")
    with pytest.raises(ConfigurationError, match=rf"^{tmp_path}/provisioning\.toml: port: input should be less"):
        load_settings(tmp_path)


def test_a_variable_that_is_no_setting_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEET_PROVISIONING_PUBLIC_LISTNER", "true")
    with pytest.raises(ConfigurationError, match="PUBLIC_LISTNER: no such setting; is public_listener meant"):
        load_settings(tmp_path)


@pytest.mark.parametrize("variable", ["fleet_provisioning_prot", "Fleet_Provisioning_PORT"])
def test_a_variable_that_is_not_in_capitals_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "8884")
    with pytest.raises(ConfigurationError, match=f"^{variable}: write it in capitals, {variable.upper()}$"):
        load_settings(tmp_path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "provisioning.toml").symlink_to("/proc/self/mem")  # Reading its beginning fails, for root too.
    with pytest.raises(ConfigurationError, match=r"provisioning\.toml cannot be read: "):
        load_settings(tmp_path)
    # From Python 3.14 on `Path.is_file` says no of what cannot be reached, as if there were no settings.
    with pytest.raises(ConfigurationError, match=r"provisioning\.toml cannot be read: File name too long"):
        load_settings(tmp_path / ("x" * 300))


def test_the_passphrase_comes_from_a_file_or_the_environment_and_is_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        ConfigurationError, match="give --passphrase-file FILE or set FLEET_PROVISIONING_PASSPHRASE_FILE"
    ):
        load_settings(tmp_path).read_passphrase()
    monkeypatch.setenv("FLEET_PROVISIONING_PASSPHRASE", "from the environment")
    settings = load_settings(tmp_path)
    assert settings.read_passphrase() == b"from the environment"
    assert "from the environment" not in repr(settings)
    file = tmp_path / "passphrase"
    file.write_bytes(b"from the file\r\n")
    assert load_settings(tmp_path, passphrase_file=file).read_passphrase() == b"from the file"
    file.write_bytes(b"\n")
    with pytest.raises(ConfigurationError, match="is empty"):
        load_settings(tmp_path, passphrase_file=file).read_passphrase()


@pytest.mark.parametrize(
    ("setting", "read"),
    [("passphrase_file", Settings.read_passphrase), ("pkcs11_pin_file", Settings.read_pkcs11_pin)],
)
def test_a_file_of_a_secret_that_is_missing_is_told_with_what_names_it_and_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, read: Callable[[Settings], object]
) -> None:
    gone = tmp_path / "gone"
    said = re.escape(f"{setting}: {gone} cannot be read: No such file or directory; name one that is there")
    with pytest.raises(ConfigurationError, match=f"^{said}$"):
        read(load_settings(tmp_path, **{setting: gone}))
    (tmp_path / "provisioning.toml").write_text(f'{setting} = "{gone}"\n')
    with pytest.raises(ConfigurationError, match=rf"^{tmp_path}/provisioning\.toml: {said}$"):
        read(load_settings(tmp_path))
    monkeypatch.setenv(f"FLEET_PROVISIONING_{setting.upper()}", str(gone))
    with pytest.raises(ConfigurationError, match=rf"^FLEET_PROVISIONING_{setting.upper()}: {said}$"):
        read(load_settings(tmp_path))


def test_an_empty_host_is_refused_and_is_not_every_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "is empty; give an address of this machine, or leave it out"
    (tmp_path / "provisioning.toml").write_text('host = ""\npublic_listener = true\n')
    with pytest.raises(ConfigurationError, match=rf"^{tmp_path}/provisioning\.toml: host: {said}$"):
        load_settings(tmp_path)
    with pytest.raises(ConfigurationError, match=f"^--host: {said}$"):
        load_settings(tmp_path, host="")
    monkeypatch.setenv("FLEET_PROVISIONING_HOST", "")
    with pytest.raises(ConfigurationError, match=f"^FLEET_PROVISIONING_HOST: {said}$"):
        load_settings(tmp_path)


def test_a_name_that_no_certificate_may_hold_is_refused_with_its_setting() -> None:
    with pytest.raises(ConfigurationError, match=r"server_names: '\*\.example\.org' is not a host name"):
        server_names_of(Settings(server_names=("localhost", "*.example.org")))
    assert server_names_of(Settings(server_names=("::1", "ca.example.org"))) == ("::1", "ca.example.org")


@pytest.mark.parametrize("text", ["ca.example.org, localhost", '["ca.example.org", "localhost"]'])
def test_a_list_in_the_environment_is_written_by_commas_or_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("FLEET_PROVISIONING_SERVER_NAMES", text)
    assert load_settings(tmp_path).server_names == ("ca.example.org", "localhost")


@pytest.mark.parametrize("text", ["10.0.0.0/8, ::1", '["10.0.0.0/8", "::1"]'])
@pytest.mark.parametrize("name", ["proxy_protocol_from", "http_proxy_protocol_from"])
def test_networks_of_proxies_are_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    assert getattr(load_settings(tmp_path), name) == ()
    monkeypatch.setenv(f"FLEET_PROVISIONING_{name.upper()}", text)
    assert getattr(load_settings(tmp_path), name) == ("10.0.0.0/8", "::1/128")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[x", "FLEET_PROVISIONING_PROXY_PROTOCOL_FROM: is not JSON: write the networks by commas"),
        ("::/0", "FLEET_PROVISIONING_PROXY_PROTOCOL_FROM.*: ::/0 would let everybody claim to be any client"),
        ("10.0.0.1/8", "FLEET_PROVISIONING_PROXY_PROTOCOL_FROM.*: 10.0.0.1/8 is an address in a network: write 10.0.0"),
    ],
)
def test_what_is_no_network_of_proxies_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, why: str
) -> None:
    monkeypatch.setenv("FLEET_PROVISIONING_PROXY_PROTOCOL_FROM", text)
    with pytest.raises(ConfigurationError, match=why):
        load_settings(tmp_path)


@pytest.mark.parametrize(("name", "text"), [("SERVER_NAMES", "[x"), ("PROFILES", "sensor")])
def test_what_is_no_json_in_the_environment_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.setenv(f"FLEET_PROVISIONING_{name}", text)
    with pytest.raises(ConfigurationError, match=f"FLEET_PROVISIONING_{name}: .*JSON"):
        load_settings(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SERVICE_HOST", "10.0.0.1"),
        ("SERVICE_PORT_HTTPS", "8443"),
        ("PORT", "tcp://10.0.0.1:8443"),
        ("PORT_8443_TCP_ADDR", "10.0.0.1"),
    ],
)
def test_what_kubernetes_makes_for_a_service_of_our_name_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"FLEET_PROVISIONING_{name}", value)
    with pytest.raises(ConfigurationError, match=f"FLEET_PROVISIONING_{name}: Kubernetes .* enableServiceLinks: false"):
        load_settings(tmp_path)
    monkeypatch.setenv(f"FLEET_BROKER_{name}", value)
    with pytest.raises(ConfigError, match=f"FLEET_BROKER_{name}: Kubernetes .* enableServiceLinks: false"):
        load(None, {})


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "provisioning.toml").write_bytes('trust_domain = "caf\u00e9.example"'.encode("latin-1"))
    with pytest.raises(ConfigurationError, match=r"provisioning\.toml is not TOML: line \d+ is not UTF-8; save it"):
        load_settings(tmp_path)
