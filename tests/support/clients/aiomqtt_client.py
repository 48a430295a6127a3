"""aiomqtt as a driver: see tests/support/real_clients.py for the arguments and the lines it prints."""

from __future__ import annotations

import asyncio
import ssl
import sys

import aiomqtt

mode, host, port, ca, cert, key, name, version, topic, qos, *rest = sys.argv[1:]
payload = rest[0] if rest else ""


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def main() -> int:
    context = ssl.create_default_context(cafile=ca)
    if cert != "-":
        context.load_cert_chain(cert, key)
    client = aiomqtt.Client(
        host, int(port), identifier=name, tls_context=context, keepalive=20,
        protocol=aiomqtt.ProtocolVersion.V5 if version == "5" else aiomqtt.ProtocolVersion.V311,
        will=aiomqtt.Will(topic, payload, int(qos)) if mode == "will" else None,
        # It does not notice a connection that ends before CONNACK, and would wait ten seconds.
        timeout=3 if cert == "-" else 10,
    )  # fmt: skip
    try:
        await client.__aenter__()
    except aiomqtt.MqttError as error:
        say(f"refused {error}")
        return 2
    try:
        if mode in {"pub", "retain"}:
            await client.publish(topic, payload, int(qos), retain=mode == "retain")
            await client.__aexit__(None, None, None)
            say("done")
            return 0
        if mode == "sub":
            await client.subscribe(topic, int(qos))
        say("ready")
        async for message in client.messages:
            say(f"message {int(message.retain)} {message.qos} {message.topic} {message.payload.decode()}")
    except aiomqtt.MqttError:
        say("closed")
    return 3


sys.exit(asyncio.run(main()))
