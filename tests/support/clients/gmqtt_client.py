"""gmqtt as a driver: see tests/support/real_clients.py for the arguments and the lines it prints."""

from __future__ import annotations

import asyncio
import ssl
import sys

import gmqtt
from gmqtt.mqtt.constants import MQTTv50, MQTTv311

mode, host, port, ca, cert, key, name, version, topic, qos, *rest = sys.argv[1:]
payload = rest[0] if rest else ""


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def on_message(_client: object, topic: str, payload: bytes, qos: int, properties: dict[str, object]) -> int:
    say(f"message {properties['retain']:d} {qos} {topic} {payload.decode()}")
    return 0


async def main() -> int:
    context = ssl.create_default_context(cafile=ca)
    if cert != "-":
        context.load_cert_chain(cert, key)
    will = gmqtt.Message(topic, payload, qos=int(qos)) if mode == "will" else None
    client = gmqtt.Client(name, will_message=will)
    client.set_config({"reconnect_retries": 0})
    gone, subscribed = asyncio.Event(), asyncio.Event()
    client.on_message = on_message
    client.on_disconnect = lambda *_: gone.set()
    client.on_subscribe = lambda *_: subscribed.set()
    ended = asyncio.ensure_future(gone.wait())
    protocol = MQTTv50 if version == "5" else MQTTv311
    connecting = asyncio.ensure_future(client.connect(host, int(port), ssl=context, keepalive=20, version=protocol))
    # It waits for a CONNACK for ever, even if the connection ends.
    await asyncio.wait({connecting, ended}, return_when=asyncio.FIRST_COMPLETED)
    if not connecting.done() or connecting.exception() is not None:
        say(f"refused {connecting.exception() if connecting.done() else 'closed'}")
        return 2
    if mode in {"pub", "retain"}:
        client.publish(topic, payload, qos=int(qos), retain=mode == "retain")
        await client._persistent_storage.wait_empty()  # It offers no other way to find out.
        await client.disconnect()
        say("done")
        return 0
    if mode == "sub":
        client.subscribe(topic, int(qos))
        await subscribed.wait()
    say("ready")
    await ended
    say("closed")
    return 3


sys.exit(asyncio.run(main()))
