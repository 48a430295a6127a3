"""nats-server and RabbitMQ as peers: Debian's packages, an MQTT listener with mutual TLS, and the same policy.

Both identify a client by its certificate and take its permissions from a list of users, written here for all devices of
the run: a device publishes below its own topic, the backend reads everything. Neither writes to disk what the scenarios
send (a QoS 1 message to a session that ends with its connection), and neither logs connections.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pki import BACKEND, GROUP, TRUST_DOMAIN, BenchPki
from processes import Child, ChildFailed

from provisioning.pki.identity import Identity
from provisioning.pki.role import Role

_RABBITMQ_BIN = "/usr/lib/rabbitmq/bin"
_START_SECONDS = 60
_NODE = "bench@localhost"
# NATS's own subscriptions behind an MQTT subscription of QoS 1.
_PLUMBING = ["$MQTT.sub.>", "$MQTT.deliver.pubrel.>"]


class NotInstalled(RuntimeError):
    """A peer is not on this machine; the text says how to install it."""


def program(name: str, package: str, *beside: str) -> str:
    """Return the path of *name*: from *beside*, PATH, or directories outside a user's PATH."""
    found = shutil.which(name, path=os.pathsep.join([*beside, os.environ.get("PATH", ""), "/usr/sbin"]))
    if found is None:
        raise NotInstalled(f"{name} is not installed. Remedy, as root: apt-get install {package}")
    return found


@contextmanager
def nats_server(pki: BenchPki, folder: Path, port: int, other: int, cores: frozenset[int] | None) -> Iterator[Child]:
    """Run nats-server with MQTT on *port* and its own protocol on *other*."""
    users = [
        {"user": identity.uri, "permissions": {"publish": {"allow": [f"fleet.{GROUP}.{identity.name}.>"]}}}
        for identity in _devices(pki)
    ]
    backend = Identity(TRUST_DOMAIN, Role.SERVICE, BACKEND).uri
    users.append({"user": backend, "permissions": {"subscribe": {"allow": ["fleet", "fleet.>", *_PLUMBING]}}})
    configuration = folder / "nats.conf"
    configuration.write_text(
        f'server_name: bench\nlisten: "127.0.0.1:{other}"\njetstream {{ store_dir: "{folder}/jetstream" }}\n'
        "max_connections: 100000\nmax_pending: 1073741824\n"
        f"authorization {{ users: {json.dumps(users)} }}\n"
        f'mqtt {{ listen: "127.0.0.1:{port}"\n tls {{ cert_file: "{pki.server.certificate}"\n'
        f' key_file: "{pki.server.key}"\n ca_file: "{pki.trust_anchors}"\n verify_and_map: true\n'
        ' min_version: "1.3" } }\n'
    )
    process = Child([program("nats-server", "nats-server"), "-c", configuration], folder / "log", cores=cores)
    with process:
        yield process


@contextmanager
def rabbitmq(pki: BenchPki, folder: Path, port: int, other: int, cores: frozenset[int] | None) -> Iterator[Child]:
    """Run RabbitMQ, one node of its own, with MQTT on *port* and Erlang's registry on *other*."""
    server = program("rabbitmq-server", "rabbitmq-server", _RABBITMQ_BIN)  # Debian's own wrapper changes the user.
    (folder / "definitions.json").write_text(json.dumps(_definitions(pki)))
    (folder / "enabled_plugins").write_text("[rabbitmq_mqtt].\n")
    (folder / "rabbitmq.conf").write_text(
        "listeners.tcp = none\nmqtt.listeners.tcp = none\n"
        f"mqtt.listeners.ssl.default = 127.0.0.1:{port}\nmqtt.allow_anonymous = false\nmqtt.ssl_cert_login = true\n"
        "mqtt.mailbox_soft_limit = 1000000\nssl_cert_login_from = common_name\n"
        f"load_definitions = {folder}/definitions.json\n"
        f"log.console = false\nlog.file = {folder}/server.log\nlog.file.level = error\n"
    )
    # What rabbitmq.conf has no setting for: resumable TLS sessions, with the client's certificate in the ticket.
    (folder / "advanced.config").write_text(
        f'[{{rabbit, [{{ssl_options, [{{cacertfile, "{pki.trust_anchors}"}},\n'
        f'{{certfile, "{pki.server.certificate}"}}, {{keyfile, "{pki.server.key}"}},\n'
        "{verify, verify_peer}, {fail_if_no_peer_cert, true}, {versions, ['tlsv1.3']},\n"
        "{session_tickets, stateless_with_cert}]}]}].\n"
    )
    loopback = "{127,0,0,1}"
    environment = {
        "RUNNING_UNDER_SYSTEMD": "true",  # With this its script becomes Erlang itself, whose CPU time is measured.
        "HOME": str(folder),  # Erlang's cookie is created there.
        "RABBITMQ_NODENAME": _NODE,
        "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "generated"),
        "ERL_CRASH_DUMP": str(folder / "erl_crash.dump"),
        "RABBITMQ_LOG_BASE": str(folder),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"-kernel inet_dist_use_interface {loopback}",
        "ERL_EPMD_PORT": str(other),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "PATH": f"{_RABBITMQ_BIN}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    registry = Child(
        [program("epmd", "erlang-base"), "-port", str(other), "-address", "127.0.0.1"], folder / "epmd.log"
    )
    with registry, Child([server], folder / "log", environment=environment, cores=cores) as process:
        while "completed with" not in process.read_line(_START_SECONDS):  # It listens before it knows its users.
            pass
        yield process


def _devices(pki: BenchPki) -> list[Identity]:
    names = sorted(path.stem for path in pki.devices.glob("*.crt"))
    if not names:
        raise ChildFailed(f"no devices in {pki.devices}")
    return [Identity(TRUST_DOMAIN, Role.DEVICE, name, GROUP) for name in names]


def _definitions(pki: BenchPki) -> dict[str, object]:
    names = [*(identity.name for identity in _devices(pki)), BACKEND]
    exchange = {"vhost": "/", "exchange": "amq.topic"}
    return {
        "vhosts": [{"name": "/"}],
        # An empty hash is no password: login is only possible by certificate.
        "users": [{"name": name, "password_hash": "", "tags": []} for name in names],
        "permissions": [
            {
                "user": name,
                "vhost": "/",
                "configure": "^mqtt-(subscription|will)-.*",
                "write": "^(mqtt-(subscription|will)-.*|amq\\.topic)$",
                "read": "^(mqtt-subscription-.*|amq\\.topic)$",
            }
            for name in names
        ],
        "topic_permissions": [
            {
                "user": name,
                **exchange,
                "write": "^$" if name == BACKEND else f"^fleet\\.{GROUP}\\.{{username}}\\.",
                "read": "^fleet(\\.|$)" if name == BACKEND else "^$",
            }
            for name in names
        ],
    }
