"""``--test-config`` looks into the files: each typical mistake, told with key, file and remedy, all at once."""

from __future__ import annotations

import os
import re
import resource
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from structlog.testing import capture_logs

from broker.admission.foreign_groups import unnamed_groups, warn_of_groups
from broker.admission.policy_file import DEFAULT_POLICY_FILE
from broker.audit.files import opened_files
from broker.audit.head import AuditError
from broker.process import state_directory
from broker.process.preflight import doubts, problems
from broker.process.state_directory import NoDirectory
from broker.settings.config_file import ConfigError, read_file
from broker.settings.config_loading import load, with_its_file
from broker.settings.limits import Limits
from broker.sources.trust_files import read_anchors
from broker.store.sqlite import SqliteStore
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from provisioning.pki.tls import TlsConfigurationError
from provisioning.program.file_identity import identity
from tests.support.crl import crl
from tests.support.pki import DOMAIN, SERVER, Pki, shared_device, shared_pki
from tests.support.somebody_else import as_somebody_else


@pytest.fixture
def good(tmp_path: Path) -> dict[str, Any]:
    pki = shared_pki()
    files = pki.broker().write(tmp_path)
    return {
        "certfile": files.certificate,
        "keyfile": files.key,
        "cafile": pki.write_anchors(tmp_path),
        "state_dir": tmp_path / "state",
        "unsafe_no_revocation": True,
    }


def test_good_files_are_good_and_nothing_is_made(good: dict[str, Any]) -> None:
    assert problems(load(None, good)) == []
    assert not good["state_dir"].exists()


def test_a_list_that_has_expired_is_doubted_and_no_problem(good: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "good.crl").write_bytes(crl(shared_pki().issuing))
    (tmp_path / "old.crl").write_bytes(crl(shared_pki().issuing, age=timedelta(days=2)))
    config = load(None, good | {"crlfile": f"{tmp_path}/good.crl,{tmp_path}/old.crl,{tmp_path}/none.crl"})
    assert len(problems(config)) == 1
    (doubt,) = doubts(config)
    assert doubt.startswith(f"crlfile: {tmp_path}/old.crl has expired on 20")
    assert "crl_policy require decides" in doubt


@pytest.mark.parametrize(("chosen", "room"), [(200, 150), (150, None), (Limits().max_connections, None)])
def test_more_connections_than_there_may_be_descriptors_are_doubted(
    good: dict[str, Any], monkeypatch: pytest.MonkeyPatch, chosen: int, room: int | None
) -> None:
    """The start warns of it (FEW_DESCRIPTORS), and raises the limit before: what counts is the hard one."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (20, 300))
    said = [each for each in doubts(load(None, good | {"limits": {"max_connections": chosen}})) if "descr" in each]
    wanted = f"limits.max_connections: {chosen}, and this user may have descriptors for {room} here; raise the hard"
    assert [each[: len(wanted)] for each in said] == ([] if room is None else [wanted])


def test_a_database_with_which_it_would_not_start_is_told_and_one_without_its_log_is_doubted(
    good: dict[str, Any],
) -> None:
    good["state_dir"].mkdir(mode=0o700)
    database = good["state_dir"] / "broker.db"
    database.write_bytes(b"no database" * 1000)
    (problem,) = problems(load(None, good))
    assert problem.startswith(f"state_dir: {database} cannot be used as the broker's database: file is not a database")
    assert problems(load(None, good | {"persistence": False})) == []
    database.unlink()
    SqliteStore(database).close()
    of_this_file = f"{identity(database)} 1:2.3\n"
    database.with_suffix(".lock").write_text(of_this_file)
    assert problems(load(None, good)) == []
    (doubt,) = doubts(load(None, good))
    assert doubt.startswith("state_dir: broker.db-wal is gone since the broker was killed")
    assert database.with_suffix(".lock").read_text() == of_this_file
    assert list(doubts(load(None, good | {"persistence": False}))) == []


def test_response_information_that_is_no_topic_is_told(good: dict[str, Any]) -> None:
    assert problems(load(None, good | {"response_information": "fleet/{group}/{device}/replies"})) == []
    (problem,) = problems(load(None, good | {"response_information": "fleet/{nobody}"}))
    assert problem.startswith("response_information: ")
    assert "{nobody} is not a placeholder; the placeholders are {device}, {group}, {client_id}" in problem


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cafile": "none.pem"}, r"cafile: .*none\.pem cannot be read: No such file or directory"),
        ({"cafile": "nonsense"}, r"cafile: .*nonsense holds no certificate, neither PEM nor DER"),
        (
            {"certfile": "none.pem"},
            r"certfile, keyfile: .*none\.pem cannot be read: No such .*; name one that is there$",
        ),
        (
            {"keyfile": "none.key"},
            r"certfile, keyfile: .*none\.key cannot be read: No such .*; name one that is there$",
        ),
        ({"certfile": "nonsense"}, r"certfile, keyfile: .*do not belong together, or are not a PEM pair"),
        ({"keyfile": "other.key"}, r"certfile, keyfile: .*do not belong together"),
        ({"crlfile": "none.crl"}, r"crlfile: .*none\.crl cannot be read: No such file or directory"),
        ({"crlfile": "nonsense"}, r"crlfile: .*nonsense is not a usable CRL .*; give one in PEM or DER"),
        ({"policy_file": "none.toml"}, r"policy_file: .*none\.toml cannot be read: No such file or directory"),
        ({"state_dir": "nonsense"}, r"state_dir: .*nonsense is not a directory; name another"),
    ],
)
def test_a_mistake_is_told(good: dict[str, Any], tmp_path: Path, change: dict[str, str], said: str) -> None:
    (tmp_path / "nonsense").write_text("root:x:0:0:root:/root:/bin/sh\n")
    other = Pki().device("other").write(tmp_path, "other")
    assert other.key.name == "other.key"
    changed = {key: tmp_path / value for key, value in change.items()}
    (problem,) = problems(load(None, good | changed))
    assert re.match(said, problem), problem


def test_all_mistakes_are_told_at_once(good: dict[str, Any], tmp_path: Path) -> None:
    gone = dict.fromkeys(("cafile", "certfile", "crlfile", "policy_file"), tmp_path / "gone")
    keys = [problem.partition(":")[0] for problem in problems(load(None, good | gone))]
    assert keys == ["policy_file", "cafile", "certfile, keyfile", "crlfile"]


def test_a_certificate_that_has_expired_is_told(good: dict[str, Any], tmp_path: Path) -> None:
    pki = shared_pki()
    identity = Identity(DOMAIN, Role.BROKER, "old")
    expired = pki.certify(
        identity, purposes=SERVER, not_before=pki.now - timedelta(days=9), not_after=pki.now - timedelta(days=1)
    )
    files = expired.write(tmp_path, "old")
    (problem,) = problems(load(None, good | {"certfile": files.certificate, "keyfile": files.key}))
    assert re.match(r"certfile: .*old\.crt has expired on \d{4}-\d\d-\d\d; renew it", problem)


def test_a_certificate_that_is_not_for_servers_is_told(good: dict[str, Any], tmp_path: Path) -> None:
    files = shared_device("meter-1").write(tmp_path)
    (problem,) = problems(load(None, good | {"certfile": files.certificate, "keyfile": files.key}))
    assert re.match(r"certfile: .* is not for servers \(no serverAuth\)", problem)


def test_a_new_broker_needs_its_token(good: dict[str, Any], tmp_path: Path) -> None:
    del good["certfile"], good["keyfile"], good["unsafe_no_revocation"]
    enrolling = good | {"provisioning": "https://127.0.0.1:8443", "token_file": tmp_path / "token"}
    (problem,) = problems(load(None, enrolling))
    assert re.match(r"token_file: .*token cannot be read; a new broker needs its token to enrol", problem)
    (tmp_path / "token").touch()
    (problem,) = problems(load(None, enrolling))
    assert re.match(r"token_file: .*token is empty; a new broker needs its token to enrol", problem)
    good["state_dir"].mkdir()
    (good["state_dir"] / "broker.pem").touch()  # It has enrolled before: the token was spent.
    assert problems(load(None, enrolling)) == []


def test_a_state_directory_where_others_write_is_told(good: dict[str, Any]) -> None:
    good["state_dir"].mkdir()
    good["state_dir"].chmod(0o770)
    (problem,) = problems(load(None, good))
    assert problem.startswith(f"state_dir: {good['state_dir']} has mode 0770: others may write to it")
    assert problem.endswith("a directory below the volume's own, or unsafe_group_writable_state_dir")
    assert problems(load(None, good | {"unsafe_group_writable_state_dir": True})) == []
    good["state_dir"].chmod(0o777)
    (problem,) = problems(load(None, good | {"unsafe_group_writable_state_dir": True}))
    assert problem.endswith(f"chmod -R go-w {good['state_dir']}")
    good["state_dir"].chmod(0o750)
    assert problems(load(None, good)) == []


@pytest.mark.parametrize("key", ["cafile", "policy_file"])
def test_a_file_that_everybody_may_write_to_is_told(good: dict[str, Any], tmp_path: Path, key: str) -> None:
    (policy := tmp_path / "policy.toml").write_bytes(DEFAULT_POLICY_FILE.read_bytes())
    good["policy_file"] = policy
    assert problems(load(None, good)) == []
    Path(good[key]).chmod(0o646)
    found = problems(load(None, good))
    assert f"{good[key]} has mode 0646, everybody on this machine may write to it" in found[0]
    assert f"chmod o-w {good[key]}" in found[0]
    Path(good[key]).chmod(0o664)
    assert problems(load(None, good)) == []


def test_a_directory_of_anchors_and_a_file_of_settings_that_everybody_may_write_to_are_refused(tmp_path: Path) -> None:
    (anchors := tmp_path / "anchors").mkdir()
    shared_pki().write_anchors(anchors)
    assert read_anchors([anchors])
    anchors.chmod(0o1777)
    with pytest.raises(TlsConfigurationError, match="anchors has mode 1777, everybody on this machine may write to it"):
        read_anchors([anchors])
    (settings := tmp_path / "broker.toml").write_text("port = 1\n")
    assert read_file(settings) == {"port": 1}
    settings.chmod(0o602)
    with pytest.raises(ConfigError, match=r"broker\.toml has mode 0602, everybody"):
        read_file(settings)


@pytest.mark.parametrize("below", [".", "deeper"])
def test_a_file_where_the_state_is_to_be_is_said_at_the_start_too(tmp_path: Path, below: str) -> None:
    (place := tmp_path / "a-file").touch()
    config = load(None, {"cafile": "ca.pem", "provisioning": "https://localhost:8443", "state_dir": place / below})
    with pytest.raises(NoDirectory, match=f"state_dir: {place} is not a directory; name another"):
        state_directory.enter(config)


def test_a_place_where_this_user_may_not_even_look_is_said_and_no_traceback(
    good: dict[str, Any], tmp_path: Path
) -> None:
    """As a folder for keys with mode 0710 is: crlfile, audit_log, admin_socket and state_dir ended with a traceback."""
    (closed := tmp_path / "closed").mkdir(mode=0)
    too_long = tmp_path / ("y" * 300)
    for place in (closed / "a" / "b", too_long):
        wrong = {"audit_log": place, "audit_keyfile": place, "admin_socket": str(place), "crlfile": str(place)}
        with as_somebody_else():
            told = problems(load(None, good | wrong | {"state_dir": closed / "a" / "state"}))
        keys = {each.partition(":")[0] for each in told}
        assert keys >= {*wrong, "state_dir"}, told
    config = load(None, good | {"state_dir": too_long})
    assert [each.partition(":")[0] for each in problems(config)] == ["state_dir"]
    state_directory.enter(config)  # The store, which needs something in it, says why it cannot.


@pytest.mark.parametrize(("key", "problem"), [("audit_log", "is a directory; name a file"), ("admin_socket", "is a")])
def test_a_directory_in_place_of_a_file_is_said(good: dict[str, Any], tmp_path: Path, key: str, problem: str) -> None:
    (said,) = problems(load(None, good | {key: str(tmp_path)}))
    assert said.startswith(f"{key}: {tmp_path} {problem}")


@pytest.mark.parametrize(
    ("domains", "section", "idle"),
    [
        ([None, "plant.example"], "identity.backend", False),
        ([DOMAIN], "device.meter-1", False),
        (["plant.example"], "identity.backend", True),
        (["plant.example"], 'identity."spiffe://plant.example/service/backend"', False),
    ],
)
def test_a_bare_name_where_no_bundle_vouches_for_parties_of_our_own_is_told(
    good: dict[str, Any], tmp_path: Path, domains: list[str | None], section: str, idle: bool
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(f'[{section}]\npublish.allow = ["a"]\n[device.bad]\npublish.deny = ["#"]\n')
    bundle = {"anchors": [str(good["cafile"])], "unsafe_no_revocation": True}
    bundles = [
        bundle | {"name": f"b{number}", "trust_domain": domain, "groups": ["plant"]}
        for number, domain in enumerate(domains)
    ]
    said = problems(load(None, good | {"policy_file": policy, "trust": bundles}))
    complaint = f"policy_file: a bare name matches no client here: [{section}]; no trust bundle is of the "
    assert [each.startswith(complaint) for each in said] == [True] * idle, said
    foreign = Pki().certify(Identity("x", Role.BROKER, "b"), uris=[], purposes=SERVER).write(tmp_path, "foreign")
    files = {"certfile": foreign.certificate, "keyfile": foreign.key}
    said = problems(load(None, good | files | {"policy_file": policy, "trust": bundles}))
    assert [each for each in said if "it has none" in each] == said
    assert bool(said) is ('identity."' not in section and None not in domains)


def test_a_role_that_another_ca_may_give_and_a_certificate_without_a_name_are_doubted(
    good: dict[str, Any], tmp_path: Path
) -> None:
    """The start warned of both (ROLE_SHARED, OWN_CERTIFICATE_NAMELESS), and --test-config was silent."""
    assert list(doubts(load(None, good))) == []
    bundle = {"anchors": [str(good["cafile"])], "unsafe_no_revocation": True}
    plant = bundle | {"name": "plant", "trust_domain": "plant.example", "roles": ["service"]}
    nameless = Pki().certify(Identity("x", Role.BROKER, "b"), purposes=SERVER).write(tmp_path, "nameless")
    files = {"certfile": nameless.certificate, "keyfile": nameless.key}
    config = load(None, good | files | {"trust": [plant, bundle | {"name": "ours"}]})
    assert problems(config) == []
    role, name = doubts(config)
    assert role.startswith("trust bundle plant: roles: those with role service have what the topic policy allows to")
    assert name.startswith(
        f"{nameless.certificate} names no host: clients that look for the server's name in subjectAltName"
    )


def test_anchors_without_a_ca_are_told(good: dict[str, Any], tmp_path: Path) -> None:
    """The settings were valid, and the broker did not start with them."""
    leaf = tmp_path / "leaf.pem"
    leaf.write_bytes(shared_device("meter-1").certificate.public_bytes(Encoding.PEM))
    told = problems(load(None, good | {"cafile": leaf}))
    assert f"cafile: {leaf} holds no CA's certificate: name the file with those of the CAs that certify" in told[0]


def test_an_audit_log_that_the_start_would_not_continue_is_told(good: dict[str, Any], tmp_path: Path) -> None:
    log, key = tmp_path / "audit.log", tmp_path / "audit.key"
    config = load(None, good | {"audit_log": log, "audit_keyfile": key})
    assert problems(config) == []
    files = opened_files(log, key, 1 << 20, 4)
    files.append([(0.0, {"event": "admitted"})])
    files.close()
    assert problems(config) == []
    for content, said in (("0" * 64, "audit.log.head was changed, or was written with another key"), ("x", "64 hexad")):
        key.write_text(content)
        (told,) = problems(config)
        assert said in told
        with pytest.raises(AuditError):
            opened_files(log, key, 1 << 20, 4)


def test_an_address_that_the_start_could_not_use_is_told_unless_it_is_only_in_use(good: dict[str, Any]) -> None:
    public = {"unsafe_public_listener": True, "unsafe_public_admin": True, "unsafe_public_metrics": True}
    elsewhere = {"host": "240.0.0.1", "admin_host": "240.0.0.2", "metrics_host": "2001:db8::1"}
    ports = {"port": 0, "websocket_port": 0, "admin_port": 0, "metrics_port": 0}
    told = problems(load(None, good | public | elsewhere | ports))
    assert [each.partition(":")[0] for each in told] == [*ports]
    assert all("set an address of this machine" in each for each in told)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert problems(load(None, good | {"port": taken.getsockname()[1]})) == []


CAPTURED = {"source": "common-name", "pattern": "(?P<group>[a-z]+)-(?P<name>.+)"}


@pytest.mark.parametrize(
    ("terms", "own", "named"),
    [
        ({}, DOMAIN, "none"),
        ({}, None, "none"),
        ({"identity": [CAPTURED, {"source": "san-dns", "group": "plant"}]}, DOMAIN, "plant"),
        ({"identity": [{"source": "common-name", "group": "plant"}]}, DOMAIN, None),
        ({"groups": ["plant"]}, DOMAIN, None),
        ({"groups": ["*"]}, DOMAIN, None),
        ({"roles": ["service"]}, DOMAIN, None),
        ({"trust_domain": DOMAIN}, DOMAIN, None),
    ],
)
def test_a_bundle_of_another_trust_domain_that_names_no_groups_is_told(
    good: dict[str, Any], tmp_path: Path, terms: dict[str, Any], own: str | None, named: str | None
) -> None:
    bundle = {"anchors": [str(good["cafile"])], "unsafe_no_revocation": True}
    plant = bundle | {"name": "plant", "trust_domain": "plant.example"} | terms
    files = {}
    if own is None:
        held = Pki().certify(Identity("x", Role.BROKER, "b"), uris=[], purposes=SERVER).write(tmp_path, "nameless")
        files = {"certfile": held.certificate, "keyfile": held.key}
    config = load(None, good | files | {"trust": [plant, bundle | {"name": "ours"}]})
    said = problems(config)
    complaint = f"trust bundle plant: groups: its CA is of another trust domain, plant.example, so .*only, {named}; .*"
    assert [bool(re.match(complaint, each)) for each in said] == [True] * (named is not None), said
    with capture_logs() as logs:
        warn_of_groups(own, config.trust)
    told = [(entry["code"], entry["log_level"]) for entry in logs]
    expected = [("GROUPS_UNNAMED", "warning")] if named else []
    if terms.get("groups") == ["*"]:
        expected = [("ANY_GROUP", "warning")]
    elif "roles" in terms:
        expected = [("GROUPS_UNNAMED", "info")]  # Few services have a group; whose has one is refused too.
    assert told == expected
    assert unnamed_groups(None, load(None, good | {"trust": [plant]}).trust) == [], "there is nobody to keep apart"


def test_a_problem_is_named_with_the_file_that_it_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "broker.toml"
    path.write_text('certfile = "a"\nkeyfile = "b"\n')
    said = "certfile, keyfile: a and b do not belong together"
    assert with_its_file(said, path, {}) == f"{path}: {said}"
    assert with_its_file("policy_file: c cannot be read", path, {}) == "policy_file: c cannot be read"
    assert with_its_file(said, path, {"keyfile": "b"}) == said
    assert with_its_file(said, None, {}) == said
    os.mkfifo(tmp_path / "pipe")
    assert with_its_file(said, tmp_path / "pipe", {}) == said, "nobody writes to it any more"
    monkeypatch.setenv("FLEET_BROKER_CERTFILE", "a")
    assert with_its_file(said, path, {}) == said
