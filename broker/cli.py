"""The command line of the broker: ``fleet-broker run``, ``policy``, and the commands that talk to a running one.

Data goes to standard output (the ready line), logs to standard error. Exit codes: 0 stopped, 1 failed, 2 usage.
A command is imported when it is named, and what it needs when it is called: importing the broker takes a second, and
neither ``--help`` nor shell completion should wait for it (`tests/unit/test_command_lines.py`). ``annotations`` from
``__future__`` is not used: Typer would compile those of `run` from text, twice, at every start.
"""

from pathlib import Path
from typing import Annotated, Final

import typer

from broker.commands.admin_command import remote_options
from provisioning.program.build import build_identity, read_ahead
from provisioning.program.command_group import command_group
from provisioning.program.json_output import Json, print_document
from provisioning.program.starting import importing
from provisioning.program.version import product_version, version_and_build


def run(
    config: Annotated[
        Path | None, typer.Option(help="TOML file with these settings, and more; flags override it.")
    ] = None,
    provisioning: Annotated[
        str | None, typer.Option(help="URL of the provisioning service: certificate and revocation feed.")
    ] = None,
    cafile: Annotated[Path | None, typer.Option(help="Trust anchors, PEM.")] = None,
    certfile: Annotated[Path | None, typer.Option(help="The broker's certificate with its chain, PEM.")] = None,
    keyfile: Annotated[Path | None, typer.Option(help="The broker's private key, PEM.")] = None,
    token: Annotated[str | None, typer.Option(help="Enrolment token for the first start.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="The same, from a file.")] = None,
    state_dir: Annotated[
        Path | None,
        typer.Option(help="Where the broker keeps its credential and its database (default: broker-state)."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The broker's name in its certificate (default: broker-1).")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (default: 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 for any free one (default: 8883).")] = None,
    websocket_port: Annotated[
        int | None, typer.Option(help="Port for MQTT over WebSocket over TLS (default: none).")
    ] = None,
    websocket_origins: Annotated[
        str | None,
        typer.Option(help="Origins of the web pages that may connect there, comma-separated (default: none)."),
    ] = None,
    unsafe_any_websocket_origin: Annotated[
        bool | None, typer.Option("--unsafe-any-websocket-origin", help="Allow any web page to connect there.")
    ] = None,
    proxy_protocol_from: Annotated[
        str | None,
        typer.Option(
            help="Networks of load balancers that send the PROXY protocol's header, comma-separated (default: none)."
        ),
    ] = None,
    unsafe_plain_port: Annotated[
        int | None, typer.Option(help="Port without TLS on 127.0.0.1, for protocol test tools only (default: none).")
    ] = None,
    unsafe_plain_identity: Annotated[
        str | None, typer.Option(help="Identity of all clients of that port: spiffe://…")
    ] = None,
    trust_domain: Annotated[
        str | None, typer.Option(help="Admit only identities of this trust domain (default: that of its certificate).")
    ] = None,
    watch_files: Annotated[
        bool | None,
        typer.Option(
            "--watch-files/--no-watch-files", help="Reload certificate, trust, policy, limits on change (default: on)."
        ),
    ] = None,
    policy_file: Annotated[
        Path | None, typer.Option(help="Topic policy, TOML; 'fleet-broker policy show' prints the default one.")
    ] = None,
    revocation_grace: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="How long new connections are admitted without the revocation feed: 5m, or seconds (default: 300).",
        ),
    ] = None,
    feed_policy: Annotated[
        str | None, typer.Option(help="Without the revocation feed: require, 'grace 5m' or advisory.")
    ] = None,
    crlfile: Annotated[
        str | None, typer.Option(help="CRLs: files or directories, PEM or DER; several comma-separated.")
    ] = None,
    crl_urls: Annotated[str | None, typer.Option(help="CRLs at http URLs, comma-separated.")] = None,
    crl_from_certificates: Annotated[
        bool | None, typer.Option("--crl-from-certificates", help="Fetch the CRLs named in certificates.")
    ] = None,
    crl_policy: Annotated[
        str | None, typer.Option(help="Without a valid CRL: require, 'grace 12h' or advisory (default: require).")
    ] = None,
    ocsp_responder: Annotated[str | None, typer.Option(help="OCSP responder to ask about every client.")] = None,
    ocsp_from_certificates: Annotated[
        bool | None, typer.Option("--ocsp-from-certificates", help="Ask the responder named in a certificate.")
    ] = None,
    ocsp_policy: Annotated[
        str | None, typer.Option(help="Without an answer: require, 'grace 12h' or advisory (default: require).")
    ] = None,
    allow_tls12: Annotated[bool | None, typer.Option("--allow-tls12", help="Also accept TLS 1.2.")] = None,
    unsafe_no_revocation: Annotated[
        bool | None, typer.Option("--unsafe-no-revocation", help="Run without any source of revocation data.")
    ] = None,
    unsafe_public_listener: Annotated[
        bool | None, typer.Option("--unsafe-public-listener", help="Allow an address that is not loopback.")
    ] = None,
    admin_socket: Annotated[
        str | None, typer.Option(help="Unix socket of the admin API, or off (default: STATE_DIR/admin.sock).")
    ] = None,
    admin_port: Annotated[
        int | None, typer.Option(help="Port of the admin API over HTTPS, for operators' certificates (default: none).")
    ] = None,
    admin_host: Annotated[str | None, typer.Option(help="Its address (default: 127.0.0.1).")] = None,
    unsafe_public_admin: Annotated[
        bool | None, typer.Option("--unsafe-public-admin", help="Allow an address that is not loopback for it.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port of the page for Prometheus, plain HTTP (default: none).")
    ] = None,
    metrics_host: Annotated[str | None, typer.Option(help="Its address (default: 127.0.0.1).")] = None,
    unsafe_public_metrics: Annotated[
        bool | None, typer.Option("--unsafe-public-metrics", help="Allow an address that is not loopback for it.")
    ] = None,
    presence_events: Annotated[
        bool | None, typer.Option("--presence-events", help="Publish connects and disconnects to services, below $SYS.")
    ] = None,
    stamp_publisher: Annotated[
        bool | None, typer.Option("--stamp-publisher", help="Add the publisher's certificate to each message.")
    ] = None,
    persistence: Annotated[
        bool | None,
        typer.Option("--persistence/--no-persistence", help="Keep sessions and messages over a restart (default: on)."),
    ] = None,
    log_level: Annotated[
        str | None,
        typer.Option(
            help="debug, info, warning or error (default: info).",
            autocompletion=lambda: ["debug", "info", "warning", "error"],
        ),
    ] = None,
    test_config: Annotated[
        bool, typer.Option("--test-config", help="Check the settings and the files they name, and exit.")
    ] = False,
) -> None:
    """Run the broker until Ctrl-C or SIGTERM.

    \b
    Example:
      fleet-broker run --provisioning https://127.0.0.1:8443 --cafile fleet/ca-bundle.crt \\
        --token-file broker.token --state-dir broker-state
    """
    flags = {key: value for key, value in locals().items() if value is not None}
    read_ahead()
    with importing():
        from broker.process.running import run_broker  # Imports the broker, which takes a second.

    run_broker(flags, config, only_test=test_config)


def version(as_json: Json = False) -> None:
    """Print version and build, and whether the hot path is compiled."""
    from broker.build import is_compiled

    if as_json:
        said = {"name": "fleet-broker", "version": product_version(), "build": build_identity()}
        print_document(said | {"compiled": is_compiled()})
        return
    typer.echo(f"fleet-broker {version_and_build()} ({'compiled' if is_compiled() else 'plain Python'})")


_COMMANDS: Final = "broker.commands"
app = command_group(
    name="fleet-broker",
    help="An MQTT 3.1.1 and 5.0 broker that admits only devices with a valid, unrevoked certificate.",
    callback=remote_options,
    late={
        "run": run,
        "status": f"{_COMMANDS}.admin_commands:status",
        "sessions": f"{_COMMANDS}.admin_commands:sessions",
        "subscriptions": f"{_COMMANDS}.admin_commands:subscriptions",
        "kick": f"{_COMMANDS}.admin_commands:kick",
        "why": f"{_COMMANDS}.explain_commands:why",
        "check": f"{_COMMANDS}.check_command:check",
        "reload": f"{_COMMANDS}.reload_command:reload",
        "version": version,
        "trust": f"{_COMMANDS}.admin_commands:trust_app",
        "crl": f"{_COMMANDS}.crl_commands:crl_app",
        "audit": f"{_COMMANDS}.audit_commands:audit_app",
        "policy": f"{_COMMANDS}.policy_commands:policy",
        "config": f"{_COMMANDS}.config_commands:config_app",
    },
)
