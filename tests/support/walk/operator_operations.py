"""An operator whose certificate is taken from him while he works: his tokens, his approvals, his open connections.

Theory
------
What an operator has promised ends with him: a token that nobody has used, an approval that nobody was certified for.
Whoever dismisses him may keep both, and while he is only suspended his tokens are void. What he does at the same moment
is done before, or not at all. So each operation has an operator of its own, who makes one thing of each kind, is ended
while he makes more, and then tries every door.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import httpx
from cryptography import x509

from provisioning.pki.keys import generate_key, spki_fingerprint
from provisioning.pki.tls import CredentialPem, client_context
from tests.support.walk.fleet_operations import check, issued
from tests.support.walk.fleet_oracle import WAITS, Key, Rules, Token
from tests.support.walk.race import CUT, Race, insist
from tests.support.walk.walk import ASKED, PLAIN, World, operation

_KEPT: Final = {"keep_tokens": True}
_ENDS: Final[dict[str, tuple[str, dict[str, Any], str]]] = {
    "key stolen": ("/v1/revocations", {"reason": "keyCompromise"}, "CERTIFICATE_REVOKED"),
    "revoked": ("/v1/revocations", {"reason": "privilegeWithdrawn"}, "CERTIFICATE_REVOKED"),
    "revoked, and kept": ("/v1/revocations", {"reason": "affiliationChanged", **_KEPT}, "CERTIFICATE_REVOKED"),
    "decommissioned": ("/v1/decommissions", {}, "CERTIFICATE_REVOKED"),
    "decommissioned, and kept": ("/v1/decommissions", _KEPT, "CERTIFICATE_REVOKED"),
    "suspended": ("/v1/suspensions", {}, "CERTIFICATE_SUSPENDED"),
}
"""How: the path, what it says more, and what he is told from then on."""


class Operator:
    """An admin with a certificate of his own, and a connection that he keeps."""

    def __init__(self, world: World, name: str) -> None:
        self._world, self.name = world, name
        self.token = ordered(world, name, role="operator", operator_role="admin")
        key = Key(generate_key())
        answer = world.reality.enrol(name, key, self.token)
        assert isinstance(answer, x509.Certificate), answer
        self._context = client_context(
            world.reality.service.bundle, CredentialPem(world.reality.pem_of(key, answer)), allow_tls12=True
        )
        self._kept = self._come()
        assert self.says("/v1/status") == ""

    def _come(self) -> httpx.Client:
        https = self._world.reality.service.https
        return httpx.Client(base_url=https, verify=self._context, timeout=30, trust_env=False)

    def says(self, path: str) -> str:
        """Ask over the kept connection; return the code of the refusal."""
        return _code(self._kept.get(path))

    def makes(self, path: str, **request: Any) -> tuple[str, dict[str, Any]]:
        """Ask for a change over a connection of its own; return the code of the refusal, and the answer."""
        try:
            with self._come() as client:
                answer = client.post(path, json=request)
        except httpx.HTTPError:
            return CUT, {}
        return _code(answer), answer.json()

    def orders(self, name: str, rules: Rules = PLAIN, **more: str) -> Token | str:
        """Return a token, or the code of the refusal."""
        code, document = self.makes("/v1/tokens", device=name, **more)
        return code or _token(document, name, rules)

    def close(self) -> None:
        self._kept.close()


@contextmanager
def _at_work(world: World) -> Iterator[Operator]:
    operator = Operator(world, f"operator-{world.payload().decode()}")
    try:
        yield operator
    finally:
        operator.close()


def _code(answer: httpx.Response) -> str:
    return "" if answer.is_success else str(answer.json()["code"])


def _token(document: dict[str, Any], name: str, rules: Rules) -> Token:
    (made,) = document["tokens"]
    return Token(made["token"], made["id"], rules, name)


def ordered(world: World, name: str, **more: str) -> Token:
    """Return a token that the first operator has made."""
    code, document = world.reality.operate("/v1/tokens", device=name, **more)
    check(code, frozenset())
    return _token(document, name, PLAIN)


@operation(5)
def end_operator(world: World, choices: random.Random) -> str | None:
    """End an operator while he makes tokens, and see which of his doors are open afterwards."""
    if not world.sessions.serves:
        return None
    number, how = world.payload().decode(), choices.choice(sorted(_ENDS))
    device, asker = f"hers-{number}", f"asked-{number}"
    key = Key(generate_key())
    with _at_work(world) as operator:
        before = operator.orders(device, group=PLAIN.group)
        friend = operator.orders(f"friend-{number}", role="operator", operator_role="admin")
        assert isinstance(before, Token), before
        assert isinstance(friend, Token), friend
        _approve(world, operator, asker, key)
        path, more, told = _ENDS[how]
        race = Race()
        race.add("end", lambda: insist(world, path, device=operator.name, **more))
        makes: dict[str, Callable[[], Any]] = {
            "token": lambda: operator.orders(f"late-{number}", group=PLAIN.group),
            "admin": lambda: operator.orders(f"late-friend-{number}", role="operator", operator_role="admin"),
            "reason": lambda: operator.makes("/v1/revocations", device=device, reason="superseded")[0],
        }
        for each in choices.sample(sorted(makes), 2):
            race.add(each, makes[each])
        if dies := choices.random() < 0.2:
            race.add("the end of the service", lambda: world.reality.restart_service(signal.SIGKILL))
        ends = race.run()
        assert ends["end"] == "", ends
        # Whoever was let in just before his end may find that nobody is promised the name any more.
        may_be = {told, CUT, ""} | (set() if "kept" in how else {"DEVICE_UNKNOWN"})
        for each in ("token", "admin", "reason"):
            code = ends.get(each, "")
            assert isinstance(code, Token) or code in may_be, f"{each}: {code}"
        _check_out(operator, told, dies=dies)
    late = [each for each in (ends.get("token"),) if isinstance(each, Token)]
    # What he has revoked before his end is revoked: a name that nobody has yet, and with it its token.
    revoked = ends.get("reason") == "" or (ends.get("reason") == CUT and _is_known(world, device))
    _spend(world, before, void=revoked or "kept" not in how)
    for token in late:
        _spend(world, token, void="kept" not in how)
    for made in (friend, ends.get("admin")):
        if isinstance(made, Token):
            _refused(world, made)
    _ask(world, asker, key, waits="kept" not in how and how != "suspended")
    _refused(world, operator.token, spent=True)
    if how == "suspended":  # For good, or his tokens would be open again.
        check(world.reality.operate("/v1/decommissions", device=operator.name)[0], frozenset())
    world.fleet.events = world.reality.stored_sequence()
    return f"{operator.name} {how}{', and the service died' if dies else ''}: {len(late)} more"


def _check_out(operator: Operator, told: str, *, dies: bool) -> None:
    for path in ("/v1/status", "/v1/devices"):
        try:
            code = operator.says(path)
        except httpx.HTTPError:
            assert dies
            code = operator.says(path)
        assert code == told, f"{operator.name}: {path}: {code}"
    for path, request in (
        ("/v1/tokens", {"device": "nobody-2", "role": "operator", "operator_role": "admin"}),
        ("/v1/resumptions", {"device": operator.name}),
        ("/v1/groups", {"name": f"of-{operator.name}", "ways": ["token"]}),
    ):
        code, _ = operator.makes(path, **request)
        assert code == told, f"{operator.name}: {path}: {code}"


def _approve(world: World, operator: Operator, name: str, key: Key) -> None:
    """Have *operator* approve a request that waits."""
    assert world.reality.enrol(name, key, None, label=ASKED.group) == WAITS
    digest = spki_fingerprint(key.private.public_key()).hex()
    shown = world.reality.look("/v1/approvals", group=ASKED.group, state="pending", limit="1000")["items"]
    (number,) = [each["id"] for each in shown if (each["name"], each["key_sha256"]) == (name, digest)]
    code, _ = operator.makes(f"/v1/approvals/{number}/decision", decision="approve")
    assert code == "", code


def _ask(world: World, name: str, key: Key, *, waits: bool) -> None:
    answer = world.reality.enrol(name, key, None, label=ASKED.group)
    if waits:
        assert answer == WAITS, f"{name}: {answer}, approved by who is gone"
        return
    assert isinstance(answer, x509.Certificate), f"{name}: {answer}, and was approved"
    issued(world, name, ASKED, key, answer)


def _is_known(world: World, name: str) -> bool:
    return world.reality.look_code(f"/v1/devices/{name}") == ""


def _spend(world: World, token: Token, *, void: bool) -> None:
    """Enrol the device that *token* is bound to: with one that is *void* nobody gets in."""
    name, key = str(token.device), Key(generate_key())
    answer = world.reality.enrol(name, key, token)
    if void:
        assert answer == "TOKEN_VOID", f"{name}: {answer}, by a token of who is gone"
        return
    assert isinstance(answer, x509.Certificate), f"{name}: {answer}"
    world.fleet.tokens.append(token)
    token.bought = issued(world, name, PLAIN, key, answer)


def _refused(world: World, token: Token, *, spent: bool = False) -> None:
    """Check that nobody becomes an operator by *token*."""
    answer = world.reality.enrol(str(token.device), Key(generate_key()), token)
    allowed = {"TOKEN_VOID"} | ({"TOKEN_USED", "CERTIFICATE_REVOKED"} if spent else set())
    allowed |= {"DEVICE_SUSPENDED", "CERTIFICATE_SUSPENDED", "DEVICE_DECOMMISSIONED"} if spent else set()
    assert answer in allowed, f"{token.device}: {answer}"
