"""Reads a topic policy from a TOML file; without one, the default policy.

The format is documented where its users look: in the comments of ``default_policy.toml`` beside this module, which is
the default policy. An error names the file, the key and the remedy; all errors are reported at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from broker.admission.filter_template import FilterTemplate, InvalidFilter
from broker.admission.mosquitto_acl import is_acl
from broker.admission.policy import DeniedPublish, Kind, Rules, Section, TopicPolicy
from provisioning.pki.identity import SCHEME, InvalidIdentity, check_name, parse_uri
from provisioning.pki.open_to_all import written_by_all
from provisioning.pki.role import Role
from provisioning.program.given_file import not_text, unread
from provisioning.program.given_toml import NotToml, toml_of

DEFAULT_POLICY_FILE = Path(__file__).with_name("default_policy.toml")
_LARGEST = 16 * 1024 * 1024
_MOST_FILTERS = 1000
"""Of one list: each of them is looked at for each filter that a client subscribes to."""
_DEPTH_OF_LISTS = 3
"""Keys above ``allow``: role, device, publish."""


class PolicyError(Exception):
    """The policy file is unusable; the text names the file, the key and the remedy."""


def _checked(text: str) -> str:
    FilterTemplate(text)
    return text


_Filter = Annotated[str, AfterValidator(_checked)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Filters(_Model):
    allow: Annotated[tuple[_Filter, ...], Field(max_length=_MOST_FILTERS)] = ()
    deny: Annotated[tuple[_Filter, ...], Field(max_length=_MOST_FILTERS)] = ()


class _Rules(_Model):
    publish: _Filters = _Filters()
    subscribe: _Filters = _Filters()

    def rules(self) -> Rules:
        return Rules(self.publish.allow, self.publish.deny, self.subscribe.allow, self.subscribe.deny)


def _name(text: str) -> str:
    return check_name("name", text)


def _name_or_uri(text: str) -> str:
    return parse_uri(text).uri if text.startswith(SCHEME) else _name(text)


_Name = Annotated[str, AfterValidator(_name)]


class _File(_Model):
    denied_publish: DeniedPublish = DeniedPublish.DROP
    role: dict[Role, _Rules] = {}
    group: dict[_Name, _Rules] = {}
    device: dict[_Name, _Rules] = {}
    identity: dict[Annotated[str, AfterValidator(_name_or_uri)], _Rules] = {}

    def policy(self) -> TopicPolicy:
        sections: list[Section] = []
        for kind in Kind:
            written: dict[str, _Rules] = getattr(self, kind.value)
            sections += [Section(kind, str(name), rules.rules()) for name, rules in written.items()]
        return TopicPolicy(sections, self.denied_publish)


def load_policy(path: Path | None) -> TopicPolicy:
    """Return the policy in the file *path*; None: the default policy. Raises `PolicyError`."""
    return parse_policy(read_policy(path), str(path or DEFAULT_POLICY_FILE.name))


def read_policy(path: Path | None) -> str:
    """Return the text of the file *path*; None: that of the default policy.

    Raises `PolicyError`, also for a file that everybody may write to.
    """
    if path is not None and (why := written_by_all(path)) is not None:
        raise PolicyError(why)
    path = path or DEFAULT_POLICY_FILE
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise PolicyError(unread(path, error)) from error
    if len(content) > _LARGEST:
        raise PolicyError(f"{path}: over {_LARGEST >> 20} MiB; use placeholders instead of a section for each device")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise PolicyError(f"{path}: {not_text(error)}") from error


def parse_policy(text: str, name: str) -> TopicPolicy:
    """Return the policy in *text*, read from the file *name*. Raises `PolicyError`."""
    try:
        values = toml_of(text)
    except NotToml as error:
        if is_acl(text):
            raise PolicyError(
                f"{name}: mosquitto's ACL file, and not TOML: fleet-broker policy convert {name} > policy.toml makes a "
                "topic policy of it"
            ) from None
        raise PolicyError(f"{name}: not TOML: {error}") from error
    try:
        written = _File.model_validate(values)
    except ValidationError as error:
        raise PolicyError("\n".join(f"{name}: {_explain(each)}" for each in error.errors())) from None
    if not (written.role or written.device or written.identity):
        raise PolicyError(
            f"{name}: no client could connect: give at least one [role.…], [device.…] or [identity.…] section "
            "('fleet-broker policy show' prints the default policy)"
        )
    return written.policy()


_KEYS = "publish.allow, publish.deny, subscribe.allow, subscribe.deny"
_EXPECTED = {
    "dict_type": "expected a table",
    "model_type": f"expected keys below it: {_KEYS}",
    "tuple_type": 'expected a list of topic filters: ["…", "…"]',
    "string_type": "expected a topic filter in quotes",
    "too_long": f"more than {_MOST_FILTERS} topic filters; use wildcards and placeholders",
}


def _explain(error: Any) -> str:
    *keys, last = [str(part) for part in error["loc"]]
    key = ".".join(keys if last == "[key]" else [*keys, last])
    if last.isdecimal() and len(keys) > 1:
        key = f"{'.'.join(keys)}[{last}]"
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, InvalidFilter | InvalidIdentity):
        return f"{key}: {cause}"
    kind = error["type"]
    if kind == "extra_forbidden":
        if not keys:
            sections = ", ".join(f"[{each}.…]" for each in Kind)
            return f"{key}: no such section or key; there are denied_publish, {sections}"
        return f"{key}: no such key; there are {'allow, deny' if len(keys) == _DEPTH_OF_LISTS else _KEYS}"
    if last == "[key]":
        return f"{key}: no such role; there are {', '.join(Role)}"
    message = _EXPECTED.get(kind, error["msg"])
    return f"{key}: {message[:1].lower()}{message[1:]}"
