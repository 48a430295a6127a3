"""The pages of reference and the decision on dependencies say what the code says: settings, defaults, flags, codes."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from http import HTTPStatus
from typing import Any

import pytest
import typer
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from pydantic_settings import BaseSettings

from broker.admin.http_messages import Request
from broker.admin.metrics_page import MetricsPage
from broker.admin.sessions import KICKED
from broker.admission.refusal import RefusalCode
from broker.cli import app as broker_app
from broker.revocation.issuing_authorities import IssuingAuthorities
from broker.settings.config import BrokerConfig
from broker.settings.limits import Limits
from broker.settings.listener_settings import ListenerSettings
from broker.settings.trust_settings import TrustSettings
from provisioning.cli import app as provisioning_app
from provisioning.config import ProfileSettings, Settings
from provisioning.enrolment.problems import STATUSES
from provisioning.errors import Code
from provisioning.pki.crl import CrlProblem
from tests.support.pki import shared_device
from tests.support.provisioning import REPOSITORY
from tests.support.wire import MemoryBroker, own_certificate

DOCS = REPOSITORY / "docs"
REFERENCE = DOCS / "reference"
DEPENDENCIES = DOCS / "decisions" / "0010-runtime-dependencies.md"


def page(name: str) -> str:
    """Return the text of the page of reference called *name*."""
    return (REFERENCE / f"{name}.md").read_text(encoding="utf-8")


LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
SETTINGS = "| setting | default | flag | meaning |"


def table(first_line: str, text: str) -> list[list[str]]:
    """Return the rows below the table head *first_line*, cell by cell, without code marks."""
    rows = []
    _, _, rest = text.partition(f"{first_line}\n")
    assert rest, f"no table {first_line!r}"
    for line in rest.splitlines()[1:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def defaults(settings: type[BaseSettings]) -> dict[str, str]:
    return {
        name: "required" if field.is_required() else shown(field.default)
        for name, field in settings.model_fields.items()
        if name != "limits"
    }


def shown(value: object) -> str:
    match value:
        case None:
            return "\N{EN DASH}"
        case bool():
            return str(value).lower()
        case timedelta(days=days):
            return "1 day" if days == 1 else f"{days} days"
        case _:
            return str(value)


def flags(app: typer.Typer, *commands: str) -> set[str]:
    group: Any = typer.main.get_command(app)
    return {
        option
        for name in commands
        for parameter in group.commands[name].params
        for option in parameter.opts
        if option.startswith("--")
    }


@dataclass(frozen=True)
class LogCall:
    """A line of code that logs something."""

    where: str
    level: str
    given: Mapping[str | None, ast.expr]
    """What it says besides the event, by name; None: all that a mapping holds."""


def log_calls(package: str) -> Iterator[LogCall]:
    for path in sorted((REPOSITORY / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                level, logger = node.func.attr, ast.unparse(node.func.value)
                if logger in {"log", "self._log"} and level in LEVELS:
                    given = {keyword.arg: keyword.value for keyword in node.keywords}
                    yield LogCall(f"{path.relative_to(REPOSITORY)}:{node.lineno}", level, given)


def literal(value: ast.expr | None) -> str | None:
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None


def test_settings_of_provisioning_are_those_of_the_code() -> None:
    rows = table(SETTINGS, page("settings-of-provisioning"))
    assert {name: default for name, default, *_ in rows} == defaults(Settings)
    documented = {flag for _, _, flag, _ in rows if flag}
    assert documented == flags(provisioning_app, "serve", "init") - {"--server-name", "--witness", "--json", "--help"}


def test_settings_of_the_broker_are_those_of_the_code() -> None:
    rows = table(SETTINGS, page("settings-of-the-broker"))
    assert {name: default for name, default, *_ in rows if name != "limits"} == defaults(BrokerConfig)
    documented = {flag for _, _, flag, _ in rows if flag}
    assert documented == flags(broker_app, "run") - {"--config", "--test-config", "--help"}


def test_keys_of_a_profile_are_those_of_the_code() -> None:
    rows = table("| key | built in | meaning |", page("settings-of-provisioning"))
    assert [name for name, *_ in rows] == list(ProfileSettings.model_fields)


def test_settings_of_a_listener_are_those_of_the_code() -> None:
    rows = table("| in `[[listener]]` | default | meaning |", page("settings-of-the-broker"))
    assert {name: default for name, default, _ in rows} == {
        name: "required" if field.is_required() else shown(field.default)
        for name, field in ListenerSettings.model_fields.items()
    }


def test_settings_of_a_trust_bundle_are_those_of_the_code() -> None:
    rows = table("| in `[[trust]]` | default | meaning |", (DOCS / "trust-bundles.md").read_text(encoding="utf-8"))
    documented = {name.strip(" `"): default for names, default, _ in rows for name in names.split(",")}
    code = {
        name: "required" if field.is_required() else shown(field.default)
        for name, field in TrustSettings.model_fields.items()
    }
    code["roles"] = "device"
    lists = {name for name in code if name.startswith(("crl", "ocsp"))}  # Explained above, defaults too.
    assert documented == {name: "" if name in lists else default for name, default in code.items()}


def test_limits_are_those_of_the_code() -> None:
    rows = table("| limit | default | bounds |", page("settings-of-the-broker"))
    assert {name: default for name, default, _ in rows} == {f.name: shown(f.default) for f in fields(Limits)}


def test_refusals_of_the_broker_are_those_of_the_code() -> None:
    rows = table("| code | told | means |", page("codes"))
    assert {code for code, *_ in rows} == set(RefusalCode)


def test_other_codes_of_the_broker_are_those_of_the_code() -> None:
    rows = table("| code | means |", page("codes"))
    # The operators' port has the one, and the broker's store the other, too.
    shared = (REPOSITORY / "provisioning" / name for name in ("connections/door.py", "program/log_growth.py"))
    paths = [*(REPOSITORY / "broker").rglob("*.py"), *shared]
    source = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    logged = set(re.findall(r'code(?:=|": |: str = )"([A-Z_]+)"', source))
    said = set(re.findall(r'(?:\.(?:lost|_close|_end|disconnect)\(\s*|return )"([A-Z_]+)",', source)) | {KICKED}
    assert {code for code, _ in rows} == (logged | said | set(CrlProblem)) - set(RefusalCode)


def test_codes_of_the_admin_api_are_those_of_the_code() -> None:
    rows = table("| admin code | HTTP | means |", page("admin-api"))
    source = "\n".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "broker" / "admin").rglob("*.py"))
    found = re.findall(r'problem\((?:HTTPStatus\.)?(\w+), "([A-Z_]+)"', source)
    statuses = {code: int(status) if status.isdigit() else HTTPStatus[status].value for status, code in found}
    assert {code: int(status) for code, status, _ in rows} == statuses


def test_requests_of_the_admin_api_are_those_of_the_code() -> None:
    rows = table("| request | what it does |", page("admin-api"))
    source = (REPOSITORY / "broker" / "admin" / "api.py").read_text(encoding="utf-8")
    routes = re.findall(r'"(/v1/[\w/]+)": \{"(\w+)":', source)
    assert {request for request, _ in rows} == {f"{method} {path}" for path, method in routes}


async def test_metrics_of_the_broker_are_those_of_the_code() -> None:
    text = page("metrics")
    rows = table("| metric | type | labels | meaning |", text)
    documented = {name: kind for names, kind, *_ in rows for name in re.findall(r"\w+", names)}
    request = Request("GET", "/metrics", {}, b"", "me", "application/openmetrics-text")
    engine = MemoryBroker().engine
    served = MetricsPage(engine, own_certificate(shared_device("meter-1")), IssuingAuthorities(engine))
    body = (await served.handle(request)).body
    assert isinstance(body, bytes)
    families = text_string_to_metric_families(body.decode())
    shown = {
        each.name.removeprefix("fleet_broker_"): each.type for each in families if each.name.startswith("fleet_broker")
    }
    shown["info"] = shown.pop("fleet_broker")
    assert documented == {name: kind.replace("gaugehistogram", "gauge histogram") for name, kind in shown.items()}
    rules = (REPOSITORY / "deploy" / "prometheus" / "alerts.yml").read_text(encoding="utf-8")
    watched = set(re.findall(r"\bfleet_broker_(\w+?)(?:_total|_bucket|_gcount)?\b", rules))
    assert watched - documented.keys() == set()
    assert len(watched) > 8


def test_refusals_of_provisioning_are_those_of_the_code() -> None:
    rows = table("| code | HTTP | means |", page("codes"))
    assert {code: int(status) for code, status, _ in rows} == {code.value: STATUSES[code].value for code in Code}


def test_other_codes_of_provisioning_are_those_of_the_code() -> None:
    rows = table("| log code of provisioning | means |", page("codes"))
    logged = {code for each in log_calls("provisioning") if (code := literal(each.given.get("code"))) is not None}
    refusals = {code.value for code in Code}
    assert {code for code, _ in rows} - refusals == logged - refusals
    assert {code for code, _ in rows} <= logged


@pytest.mark.parametrize("package", ["provisioning", "broker"])
def test_every_warning_and_error_in_the_log_has_a_code(package: str) -> None:
    calls = [each for each in log_calls(package) if each.level in {"warning", "error", "exception", "critical"}]
    assert len(calls) > 30
    # Some pass on all facts of an event, its code among them.
    assert [each.where for each in calls if "code" not in each.given and None not in each.given] == []


def test_every_dependency_has_its_reason() -> None:
    project: Mapping[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {_name(each) for each in project["dependencies"]}
    text = DEPENDENCIES.read_text(encoding="utf-8")
    assert {row[0] for row in table("| dependency | licence | used for | why not our own |", text)} == names
    for extra, requirements in project["optional-dependencies"].items():
        assert f"`{extra}` ({_name(requirements[0])}," in text


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9-]+", requirement)
    assert found is not None
    return found[0]


def test_a_table_that_is_missing_is_noticed() -> None:
    with pytest.raises(AssertionError):
        table("| no | such |", "")


def test_the_page_on_backups_says_of_each_schema_what_it_notes() -> None:
    versions = REPOSITORY / "provisioning" / "store" / "migrations" / "versions"
    there = {found[1] for path in versions.iterdir() if (found := re.match(r"r(\d{4})_", path.name))}
    told = re.findall(r"^\| (\d{4}) \|", (REPOSITORY / "docs" / "backup.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert told == sorted(each for each in there if each >= told[0])
