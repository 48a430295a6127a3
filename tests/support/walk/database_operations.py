"""The database is away for a while: nothing is granted meanwhile, nobody is put out, and nothing answered is lost."""

from __future__ import annotations

import random
from functools import partial

import httpx

from provisioning.pki.keys import generate_key
from tests.support.broker_process import wait_until
from tests.support.walk.broker_operations import connect
from tests.support.walk.comparison import compare
from tests.support.walk.fleet_oracle import Key
from tests.support.walk.race import CUT, obtained
from tests.support.walk.walk import World, operation


@operation(3)
def lose_database(world: World, choices: random.Random) -> str | None:
    """End PostgreSQL, ask for everything, connect devices, and start it again."""
    server, reality = world.reality.server, world.reality
    if server is None or not world.sessions.serves:
        return None
    told = list[str]()
    server.stop()
    try:
        opened = [each for each in world.fleet.tokens if each.open and each.device is not None]
        for token in choices.sample(opened, min(2, len(opened))):
            answer = obtained(partial(reality.enrol, str(token.device), Key(generate_key()), token))
            assert answer == CUT, f"token {token.number} without a database: {answer}"
        good = [each for each in world.fleet.held() if each.good]
        for certificate in choices.sample(good, min(2, len(good))):
            answer = obtained(partial(reality.renew, certificate, Key(generate_key())))
            assert answer == CUT, f"{certificate.serial} renewed without a database: {answer}"
        code, _ = reality.operate("/v1/tokens", device="nobody-4", group="plain")
        assert code, "an operator was answered without a database"
        told.append(code)
        if world.sessions.hears:
            told.append(connect(world, choices) or "nobody connects")
        expected = set(world.sessions.connections)
        assert reality.connected() == expected
    finally:
        server.start()

    def answers() -> bool:
        try:
            return all(not reality.look_code("/v1/devices") for _ in range(4 * reality.workers))
        except httpx.HTTPError:
            return False

    wait_until(answers, "the service is back with its database", pause=0.1)
    compare(world)
    return "; ".join(told)
