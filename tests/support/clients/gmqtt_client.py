"""gmqtt as a driver: see tests/support/real_clients.py for the arguments and the lines it prints."""

from __future__ import annotations

import asyncio
import ssl
import sys
from typing import Any

import gmqtt
from gmqtt.mqtt.constants import MQTTv50, MQTTv311

mode, host, port, ca, cert, key, name, version, topic, qos, *rest = sys.argv[1:]
payload = rest[0] if rest else ""


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def main() -> int:
    context = ssl.create_default_context(cafile=ca)
    if cert != "-":
        context.load_cert_chain(cert, key)
    will = gmqtt.Message(topic, payload, qos=int(qos)) if mode == "will" else None
    client = gmqtt.Client(name, clean_session=True, will_message=will)
    closed, subscribed = asyncio.Event(), asyncio.Event()
    client.set_config({"reconnect_retries": 0})

    def on_message(_client: gmqtt.Client, name: str, received: bytes, qos: int, properties: dict[str, Any]) -> int:
        say(f"message {int(properties['retain'])} {qos} {name} {received.decode()}")
        return 0

    client.on_message = on_message
    client.on_disconnect = lambda *_: closed.set()
    client.on_subscribe = lambda *_: subscribed.set()
    protocol = MQTTv50 if version == "5" else MQTTv311
    try:
        await asyncio.wait_for(client.connect(host, int(port), ssl=context, keepalive=20, version=protocol), 10)
    except Exception as error:  # noqa: BLE001 - gmqtt raises what it likes; whatever it is, it was not let in
        say(f"refused {error!r}")
        return 2
    if mode in {"pub", "retain"}:
        client.publish(topic, payload, qos=int(qos), retain=mode == "retain")
        await asyncio.sleep(0.3)  # It has no way to wait for the acknowledgement.
        await client.disconnect()
        say("done")
        return 0
    if mode == "sub":
        client.subscribe(topic, qos=int(qos))
        await subscribed.wait()
    say("ready")
    await closed.wait()
    say("closed")
    return 3


sys.exit(asyncio.run(main()))
