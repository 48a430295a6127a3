"""Debian's rabbitmq-server as a target: its MQTT plugin with mutual TLS, users by certificate name, CRLs by Erlang.

The user is the certificate's Common Name; the client id must be its dNSName (``ssl_cert_client_id_from``), so here
every certificate includes its name as one too. Topic permissions define what a user may publish and receive. Erlang
looks a CRL up in a directory at every handshake; a connected session is ended by an operator with ``rabbitmqctl
close_all_user_connections``: both together are revocation here. TLS 1.2 sessions are not resumed: with Erlang's default
(``reuse_sessions`` true) a revoked device returns by resumption, and the CRL is not checked.

It coexists with any RabbitMQ on the machine: it has its own node name, cookie, data directory and epmd.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from device_sim.attack.capabilities import Capabilities, Feature, TimeLimits
from device_sim.attack.foreign_server import Papers, expected_names
from device_sim.attack.issuer import Issuer, Paper
from device_sim.attack.own_command import CommandFailed, carried_out
from device_sim.attack.target import Crls, Impossible, Publish, Target
from device_sim.link.tls_dial import Endpoint
from device_sim.stage.foreign_process import LOOPBACK, free_port, program, serving, version_in
from provisioning.pki.identity import Identity

CAPABILITIES = Capabilities(
    name="rabbitmq",
    # Not claimed: QoS 2, which it grants as 1.
    supports=frozenset({
        Feature.MQTT5, Feature.CLIENT_ID_BINDING, Feature.TOPIC_POLICY, Feature.SUBSCRIPTION_POLICY,
        Feature.REVOCATION, Feature.CERTIFICATE_REVOCATION,
    }),
    # Its command-line tool alone takes seconds.
    limits=TimeLimits(handshake=15.0, connect=15.0, keep_alive=8.0, revocation=15.0, revocation_p95=5.0),
    expected={"5-revoked": ("tls certificate_revoked",)},
)  # fmt: skip
_LIB = "/usr/lib/rabbitmq/bin"
_NODE = "attacked@localhost"
_GROUP = "meters"
_CONTROL = 30.0
_READY = "completed with"
_CONFIG = """\
listeners.tcp = none
mqtt.listeners.tcp = none
mqtt.listeners.ssl.default = 127.0.0.1:{port}
mqtt.allow_anonymous = false
mqtt.ssl_cert_login = true
mqtt.ssl_cert_client_id_from = subject_alternative_name
mqtt.ssl_cert_login_san_type = dns
mqtt.max_packet_size_unauthenticated = 65536
mqtt.max_packet_size_authenticated = 1048576
mqtt.mailbox_soft_limit = 200
ssl_cert_login_from = common_name
load_definitions = {directory}/definitions.json
log.console = false
log.file = {directory}/server.log
log.file.level = warning
"""
# rabbitmq.conf has no setting for crl_cache, and TLS options must all be in one place or the other.
_ADVANCED = """\
[{{rabbit, [{{ssl_options, [
  {{cacertfile, "{papers.anchors}"}},
  {{certfile, "{papers.certificate}"}},
  {{keyfile, "{papers.key}"}},
  {{verify, verify_peer}},
  {{fail_if_no_peer_cert, true}},
  {{versions, [{tls}]}},
  {{reuse_sessions, false}},
  {{crl_check, true}},
  {{crl_cache, {{ssl_crl_hash_dir, {{internal, [{{dir, "{directory}/crls"}}]}}}}}}
]}}]}}].
"""


class _Operator:
    """Certifies; revokes by CRL, and ends existing connections."""

    def __init__(self, papers: Papers, crls: Path, environment: Mapping[str, str], control: str) -> None:
        self._papers = papers
        self._crls = crls
        self._environment = environment
        self._control = control
        self._revoked: list[int] = []

    async def certify(self, identity: Identity) -> Paper:
        """Return a certificate; the user already exists."""
        return self._papers.issuer.issue(identity)

    async def revoke(self, paper: Paper) -> None:
        """Rewrite the CRL, and close the connections of the user that *paper* names."""
        self._revoked.append(paper.certificate.serial_number)
        await self.publish(self._papers.issuer, self._revoked)
        command = (self._control, "-q", "-n", _NODE, "close_all_user_connections", paper.name, "revoked")
        try:
            await carried_out(command, _CONTROL, self._environment)
        except CommandFailed as error:
            raise Impossible(f"the live session was not ended: {error}") from error

    async def publish(self, issuer: Issuer, serials: list[int]) -> None:
        """Put the CRL of *issuer* where Erlang looks: a file named by OpenSSL's hash of the issuer."""
        pem = issuer.crl(serials)
        process = await asyncio.create_subprocess_exec(
            "openssl", "crl", "-noout", "-hash",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        named, _ = await process.communicate(pem)
        new = self._crls / "new"
        new.write_bytes(pem)
        new.rename(self._crls / f"{named.decode().strip()}.r0")


def _definitions() -> str:
    devices, services = expected_names("device", "victim"), expected_names("watcher", "sender")
    own = f"^fleet\\.{_GROUP}\\.{{username}}\\."
    exchange = {"vhost": "/", "exchange": "amq.topic"}
    # A will with a delay waits in its own queue, which it reaches through the default exchange.
    queues = "mqtt-(subscription|will)-.*"
    return json.dumps({
        "vhosts": [{"name": "/"}],
        # An empty hash is no password: login is only possible by certificate.
        "users": [{"name": name, "password_hash": "", "tags": []} for name in devices + services],
        "permissions": [
            {
                "user": name, "vhost": "/", "configure": f"^{queues}$",
                "write": f"^({queues}|amq\\.(topic|default))$", "read": f"^({queues}|amq\\.topic)$",
            }
            for name in devices + services
        ],
        "topic_permissions": [
            *(
                {"user": name, **exchange, "write": f"{own}(telemetry|flood|state)$", "read": f"{own}cmd(\\.|$)"}
                for name in devices
            ),
            *(
                {"user": name, **exchange, "write": "^fleet\\.[^.]+\\.[^.]+\\.cmd(\\.|$)", "read": "^fleet(\\.|$)"}
                for name in services
            ),
        ],
    })  # fmt: skip


@asynccontextmanager
async def rabbitmq(directory: Path, *, tls12: bool = False) -> AsyncIterator[Target]:
    """Start rabbitmq-server in *directory* and yield it; stop it on leaving."""
    server = program("rabbitmq-server", "rabbitmq-server", beside=[_LIB])
    control = program("rabbitmqctl", "rabbitmq-server", beside=[_LIB])
    names = program("epmd", "erlang-base")
    papers = Papers(directory, dns_of_name=True)
    crls = directory / "crls"
    crls.mkdir()
    port, names_port = free_port(), free_port()
    environment = _environment(directory, names_port)
    operator = _Operator(papers, crls, environment, control)
    for issuer in (papers.issuer, papers.other):
        await operator.publish(issuer, [])
    tls = "'tlsv1.3', 'tlsv1.2'" if tls12 else "'tlsv1.3'"
    (directory / "rabbitmq.conf").write_text(_CONFIG.format(port=port, directory=directory))
    (directory / "advanced.config").write_text(_ADVANCED.format(papers=papers, tls=tls, directory=directory))
    (directory / "definitions.json").write_text(_definitions())
    (directory / "enabled_plugins").write_text("[rabbitmq_mqtt].\n")
    # Its own output: its log may drop lines, and on a shared stream this would be interleaved with it.
    log = directory / "rabbitmq.log"
    registry = [names, "-port", str(names_port), "-address", LOOPBACK, "-d"]
    async with (
        serving("epmd", registry, log=directory / "epmd.log", ready="epmd running"),
        serving("rabbitmq-server", [server], log=log, ready=_READY, environment=environment) as process,
    ):
        target = papers.target(CAPABILITIES, port, operator, process, version_in(log, "RabbitMQ"), tls12=tls12)

        async def publish(lists: Crls) -> None:
            for issuer, serials in lists:
                await operator.publish(issuer, list(serials))

        @asynccontextmanager
        async def crls_of_others(first: Crls) -> AsyncIterator[tuple[Endpoint, Publish]]:
            await publish(first)
            yield target.endpoint, publish

        target.crls = crls_of_others
        yield target


def _environment(directory: Path, names_port: int) -> dict[str, str]:
    loopback = "{127,0,0,1}"
    return {
        # With this its script becomes Erlang itself, which ends on SIGTERM; otherwise it starts rabbitmqctl for that.
        "RUNNING_UNDER_SYSTEMD": "true",
        "HOME": str(directory),  # Erlang's cookie is created there.
        "RABBITMQ_NODENAME": _NODE,
        "RABBITMQ_CONF_ENV_FILE": str(directory / "none"),
        "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(directory / "advanced.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
        "RABBITMQ_GENERATED_CONFIG_DIR": str(directory / "generated"),
        "RABBITMQ_MNESIA_BASE": str(directory / "data"),
        "RABBITMQ_LOG_BASE": str(directory),
        "RABBITMQ_PID_FILE": str(directory / "pid"),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "ERL_CRASH_DUMP": str(directory / "erl_crash.dump"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"-kernel inet_dist_use_interface {loopback}",
        "ERL_EPMD_PORT": str(names_port),
        "ERL_EPMD_ADDRESS": LOOPBACK,
    }
