"""amqtt's client as a driver: see tests/support/real_clients.py for the arguments and the lines it prints."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from amqtt.client import MQTTClient
from amqtt.errors import ClientError, ConnectError

mode, host, port, ca, cert, key, name, _version, topic, qos, *rest = sys.argv[1:]
payload = rest[0] if rest else ""


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def main() -> int:
    connection = {"uri": f"mqtts://{host}:{port}/", "cafile": ca}
    config: dict[str, Any] = {"auto_reconnect": False, "keep_alive": 20, "connection": connection}
    if cert != "-":
        connection |= {"certfile": cert, "keyfile": key}
    if mode == "will":
        config["will"] = {"topic": topic, "message": payload, "qos": int(qos), "retain": False}
    client = MQTTClient(client_id=name, config=config)
    try:
        await client.connect(f"mqtts://{host}:{port}/", cafile=ca)
    except (ConnectError, ClientError, OSError) as error:
        say(f"refused {error!r}")
        return 2
    if mode in {"pub", "retain"}:
        await client.publish(topic, payload.encode(), int(qos), retain=mode == "retain")
        await client.disconnect()
        say("done")
        return 0
    if mode == "sub":
        granted = await client.subscribe([(topic, int(qos))])
        if granted[0] > 2:
            say("refused subscription")
            return 2
    say("ready")
    while True:
        try:
            message = await client.deliver_message(1.0)
        except (ClientError, TimeoutError):
            message = None
        if message is not None:
            packet = message.publish_packet
            say(f"message {int(packet.retain_flag)} {message.qos} {message.topic} {message.data.decode()}")
        elif not client.session.transitions.is_connected():
            say("closed")
            return 3


sys.exit(asyncio.run(main()))
