"""The options of every `fleet-sim bench`, named as in emqtt-bench: which broker, how many clients, as whom.

No import that ``--help`` does not need (`device_sim.cli`, rule 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from device_sim.broker_words import HOST, PORT, BrokerOption, PathOption, WebsocketOption
from device_sim.link.driver import Driver


@dataclass(frozen=True, slots=True)
class Given:
    """The options common to conn, pub and sub."""

    broker: BrokerOption = None
    host: Annotated[
        str | None, typer.Option("-h", "--host", help=f"The same in two words (default: {HOST}).", show_default=False)
    ] = None
    port: Annotated[
        int | None,
        typer.Option(
            "-p", "--port", min=1, max=65535, help=f"With --host: its port (default: {PORT}).", show_default=False
        ),
    ] = None
    websocket: WebsocketOption = False
    path: PathOption = None
    count: Annotated[int, typer.Option("-c", "--count", min=1, max=1_000_000, help="How many clients.")] = 200
    rate: Annotated[
        float | None, typer.Option("-R", "--connrate", min=0.01, help="Connections a second.", show_default=False)
    ] = None
    interval: Annotated[int, typer.Option("-i", "--interval", min=1, help="Milliseconds between two connections.")] = 10
    version: Annotated[int, typer.Option("-V", "--version", min=4, max=5, help="MQTT 5, or 4 for 3.1.1.")] = 5
    keepalive: Annotated[int, typer.Option("-k", "--keepalive", min=0, max=65535, help="Seconds of keep alive.")] = 300
    first: Annotated[int, typer.Option("-n", "--startnumber", min=0, help="Number of the first client (one pair).")] = 1
    prefix: Annotated[str, typer.Option("--prefix", help="What client identifiers begin with (one pair).")] = "bench-"
    duration: Annotated[
        float, typer.Option("-d", "--duration", min=0, help="Seconds after which it ends; 0: at Ctrl-C.")
    ] = 0.0
    fleet: Annotated[
        Path | None, typer.Option("--fleet", help="A fleet's directory: a key for each client.", show_default=False)
    ] = None
    service: Annotated[bool, typer.Option("--service", help="With --fleet: as instances of its service.")] = False
    ca: Annotated[
        Path | None, typer.Option("--cacertfile", "--cafile", help="Trust anchors (one pair).", show_default=False)
    ] = None
    cert: Annotated[
        Path | None, typer.Option("--certfile", "--cert", help="Certificate of all clients.", show_default=False)
    ] = None
    key: Annotated[Path | None, typer.Option("--keyfile", "--key", help="Its private key.", show_default=False)] = None
    server_name: Annotated[
        str | None, typer.Option("--server-name", help="The name in the broker's certificate.", show_default=False)
    ] = None
    driver: Annotated[Driver, typer.Option("--driver", help="paho-mqtt, or our own client for very many.")] = (
        Driver.LIGHT
    )
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON document.")] = False
