"""Requests to the service at once, of which each may come first: one token, one renewal, one device's state."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from typing import Any, Final

from cryptography import x509

from provisioning.pki.keys import generate_key
from tests.support.walk.comparison import await_broker, compare_status
from tests.support.walk.fleet_operations import a_token, issued
from tests.support.walk.fleet_oracle import HOLD, Device, Key, Rules, State
from tests.support.walk.race import CUT, Race, adopt, insist, obtained
from tests.support.walk.walk import PLAIN, STRICT, World, operation

_ENDS: Final = {
    "suspend": "/v1/suspensions",
    "resume": "/v1/resumptions",
    "revoke": "/v1/revocations",
    "decommission": "/v1/decommissions",
}


def _arrived(world: World, rules: Rules) -> Device:
    name, key = f"racer-{world.payload().decode()}", Key(generate_key())
    token = a_token(world, name, rules)
    answer = world.reality.enrol(name, key, token)
    assert isinstance(answer, x509.Certificate), answer
    token.bought = issued(world, name, rules, key, answer)
    return token.bought.device


def _run(world: World, race: Race, choices: random.Random) -> tuple[dict[str, Any], bool]:
    """Run *race*, and let the service die meanwhile, sometimes; return the ends, and whether it did."""
    dies = choices.random() < 0.3
    if dies:
        race.add("the end of the service", lambda: world.reality.restart_service(signal.SIGKILL))
    ends = race.run()
    ends.pop("the end of the service", None)
    return ends, dies


@operation(2)
def one_token(world: World, choices: random.Random) -> str | None:
    """Spend one token for several keys, while it is voided, sometimes: it buys one certificate at most."""
    if not world.sessions.serves:
        return None
    name = f"racer-{world.payload().decode()}"
    token, race, voids = a_token(world, name, PLAIN), Race(), choices.random() < 0.4
    for number in range(3):
        race.add(f"key {number}", lambda: obtained(lambda: world.reality.enrol(name, Key(generate_key()), token)))
    if voids:
        race.add("void", lambda: insist(world, "/v1/voidings", tokens=[token.number]))
    ends, dies = _run(world, race, choices)
    assert ends.pop("void", "") == ""
    got = [each for each in ends.values() if isinstance(each, x509.Certificate)]
    assert {each for each in ends.values() if isinstance(each, str)} <= {"TOKEN_USED", "TOKEN_VOID", CUT}
    shown = world.reality.look(f"/v1/tokens/{token.number}")
    made = world.reality.look("/v1/certificates", device=name, limit="100")["items"]
    assert len(made) == (shown["state"] == "used")
    assert {f"{each.serial_number:x}" for each in got} <= {each["serial"] for each in made}
    assert len(got) <= len(made)
    assert shown["state"] in {"used", *["void"] * voids, *["open"] * dies}
    world.fleet.tokens.remove(token)
    world.reality.operate("/v1/voidings", tokens=[token.number])
    if made:
        _join(world, name)
    return f"{name}: {shown['state']}, {len(got)} answers{', the service died' if dies else ''}"


def _join(world: World, name: str) -> None:
    device = world.fleet.devices.setdefault(name, Device(name, PLAIN))
    adopt(world, device)
    for each in device.certificates:
        compare_status(world, each)


@operation(2)
def one_renewal(world: World, choices: random.Random) -> str | None:
    """Renew one certificate several times for one key: one successor, where the group repeats its answers."""
    if not world.sessions.serves:
        return None
    rules = choices.choice((PLAIN, STRICT))
    device = _arrived(world, rules)
    (presented,), key, race = device.certificates, Key(generate_key()), Race()
    for number in range(3):
        race.add(f"{number}", lambda: obtained(lambda: world.reality.renew(presented, key)))
    ends, _ = _run(world, race, choices)
    got = {each for each in ends.values() if isinstance(each, x509.Certificate)}
    assert len(got) + list(ends.values()).count(CUT) == len(ends) or rules.repeats, ends
    assert {each for each in ends.values() if isinstance(each, str)} <= {CUT}, ends
    adopt(world, device)
    successors = {each.x509 for each in device.certificates[1:]}
    assert got <= successors
    assert len(successors) <= (1 if rules.repeats else len(ends))
    assert all(each.good for each in device.certificates)
    return f"{device.name} in {rules.group}: {len(successors)} successors"


@operation(3)
def one_device(world: World, choices: random.Random) -> str | None:
    """Suspend, resume, revoke, decommission one device: the most final counts, and everybody says the same."""
    if not (world.sessions.serves and world.sessions.hears):
        return None
    device, race = _arrived(world, choices.choice((PLAIN, STRICT))), Race()
    (certificate,) = device.certificates
    chosen = choices.sample(sorted(_ENDS), 3)

    def asks(how: str) -> Callable[[], str]:
        more = {"reason": "privilegeWithdrawn"} if how == "revoke" else {}
        return lambda: insist(world, _ENDS[how], device=device.name, **more)

    for how in chosen:
        race.add(how, asks(how))
    ends, dies = _run(world, race, choices)
    for how, code in ends.items():
        assert code == "" or (how in ("suspend", "resume") and code == "REVOCATION_FINAL"), f"{how}: {code}"
    adopt(world, device)
    if "decommission" in chosen:
        assert device.state is State.DECOMMISSIONED
    elif "revoke" in chosen:
        assert device.state is State.REVOKED
    assert certificate.reason not in (None, HOLD)
    world.sessions.heard(device.certificates)
    await_broker(world, certificate)
    compare_status(world, certificate)
    return f"{device.name}: {', '.join(chosen)}: {certificate.reason}{', the service died' if dies else ''}"
