"""``fleet-broker policy``: try a topic policy before a broker uses it, and show a broker's default policy.

Answers go to standard output, errors to standard error. Exit codes: 0 all allowed, 1 something denied, 2 wrong usage or
an unusable policy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker.commands.error_line import USAGE, failed, say_wrong
from provisioning.program.command_group import command_group
from provisioning.program.json_output import Json, print_document
from provisioning.program.text_width import padded, width_of

if TYPE_CHECKING:
    from broker.admission.policy import Action, Decision, TopicPolicy
    from provisioning.pki.identity import Identity

policy = command_group(name="policy", help="Show and test topic policies.")

_WHOLE = "the whole identity is wanted, as fleet-broker check and sessions show it: spiffe://DOMAIN/ROLE/[GROUP/]NAME"
_DENIED = 1

_PolicyFile = Annotated[
    Path | None, typer.Option("--policy", help="The policy file; without it the default policy.", show_default=False)
]

_Config = Annotated[
    Path | None,
    typer.Option(
        help="The broker's TOML file, for its policy_file and trust_domain; --policy and --trust-domain come first.",
        show_default=False,
    ),
]

_OwnDomain = Annotated[
    str | None,
    typer.Option(
        "--trust-domain",
        help="The broker's own trust domain: a bare name in the policy allows its parties only. "
        "Without it, that of --identity.",
        show_default=False,
    ),
]


@policy.command("test")
def try_topics(
    identity: Annotated[str, typer.Option(help="Who asks: spiffe://<trust-domain>/<role>/<group>/<name>.")],
    file: _PolicyFile = None,
    client_id: Annotated[
        str | None, typer.Option(help="Its client identifier, if that is not its name.", show_default=False)
    ] = None,
    publish: Annotated[list[str] | None, typer.Option(help="A topic to publish to; repeatable.")] = None,
    subscribe: Annotated[
        list[str] | None, typer.Option(help="A filter to subscribe to, also a shared one; repeatable.")
    ] = None,
    trust_domain: _OwnDomain = None,
    config: _Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Say whether an identity may publish and subscribe, and by which rule. Exit code 1 if anything is denied.

    \b
    Example:
      fleet-broker policy test --policy policy.toml --identity spiffe://fleet.internal/device/north/m-1 \\
        --publish fleet/north/m-1/telemetry --subscribe 'fleet/#'
    """
    from broker.admission.policy import Action  # Late, like all imports here: `broker.commands.admin_command`, rule 3.

    file, trust_domain = _configured(config, file, trust_domain)
    rules, who = _policy(file), _identity(identity)
    asked = [(Action.PUBLISH, topic) for topic in publish or ()]
    asked += [(Action.SUBSCRIBE, topic) for topic in subscribe or ()]
    if not asked:
        raise failed("nothing to test: give --publish or --subscribe", USAGE)
    ours = trust_domain in {None, who.trust_domain}
    answers = [
        (action, topic, _decide(rules, who, client_id or who.name, action, topic, ours=ours)) for action, topic in asked
    ]
    width = max(width_of(topic) for _, topic, _ in answers)
    for action, topic, decision in answers:
        if as_json:
            fields: dict[str, Any] = {"action": action, "topic": topic, "allowed": decision.allowed}
            typer.echo(json.dumps(fields | {"because": decision.because}))
        else:
            answer = "allowed" if decision.allowed else "denied "
            typer.echo(f"{answer}  {action:9}  {padded(topic, width)}  {decision.because}")
    if not all(decision.allowed for *_, decision in answers):
        raise typer.Exit(_DENIED)


@policy.command()
def show(
    file: _PolicyFile = None,
    identity: Annotated[
        str | None, typer.Option(help="Show only what applies to this identity.", show_default=False)
    ] = None,
    client_id: Annotated[
        str | None, typer.Option(help="Its client identifier, if that is not its name.", show_default=False)
    ] = None,
    trust_domain: _OwnDomain = None,
    config: _Config = None,
    as_json: Json = False,
) -> None:
    """Check and print a policy (without --policy the default one), or what one identity may do.

    \b
    Example:
      fleet-broker policy show > policy.toml
      fleet-broker policy show --policy policy.toml --identity spiffe://fleet.internal/device/north/meter-1
    """
    from broker.admission.policy_file import PolicyError, parse_policy, read_policy
    from provisioning.program.given_toml import toml_of

    file, trust_domain = _configured(config, file, trust_domain)
    if identity is None:
        try:
            text = read_policy(file)
            parse_policy(text, str(file or "default policy"))
        except PolicyError as error:
            raise failed(str(error), USAGE) from None
        if as_json:
            print_document(toml_of(text))
        else:
            typer.echo(text, nl=False)
        return
    rules, who = _policy(file), _identity(identity)
    ours = trust_domain in {None, who.trust_domain}
    if not rules.knows(who, ours=ours):
        typer.echo(f"{who.uri} is not admitted: no section names its role, device or identity")
        raise typer.Exit(_DENIED)
    permissions = rules.permissions(who, client_id or who.name, ours=ours)
    filters = {
        "publish.allow": permissions.publish_allow.filters,
        "publish.deny": permissions.publish_deny.filters,
        "subscribe.allow": permissions.subscribe_allow.filters,
        "subscribe.deny": permissions.subscribe_deny.filters,
    }
    if as_json:
        sections = [str(section) for section in rules.sections_about(who)]
        by_name = {title.replace(".", "_"): list(each) for title, each in filters.items()}
        print_document({"identity": who.uri, "sections": sections, **by_name})
        return
    typer.echo(f"{who.uri}: {', '.join(f'[{section}]' for section in rules.sections_about(who))}")
    for title, of_one in filters.items():
        for each in of_one:
            typer.echo(f"  {title:15}  {each}")


@policy.command()
def convert(
    file: Annotated[Path, typer.Argument(help="mosquitto's ACL file.")],
) -> None:
    """Print mosquitto's ACL file as a topic policy. What has no counterpart is reported on standard error.

    \b
    Example:
      fleet-broker policy convert /etc/mosquitto/acl > policy.toml
    """
    from broker.admission.mosquitto_acl import InvalidAcl, converted
    from broker.admission.policy_file import PolicyError, read_policy

    try:
        made = converted(read_policy(file), str(file))
    except (InvalidAcl, PolicyError) as error:
        raise failed(str(error), USAGE) from None
    for each in made.left_out:
        say_wrong(each)
    typer.echo(made.policy, nl=False)


def _decide(rules: TopicPolicy, who: Identity, client_id: str, action: Action, topic: str, *, ours: bool) -> Decision:
    from broker.admission.policy import Action
    from broker.mqtt.errors import MalformedPacket
    from broker.mqtt.topics import SharedSubscription, check_topic_filter, check_topic_name

    try:
        if action is Action.PUBLISH:
            check_topic_name(topic)
        else:
            check_topic_filter(topic)
            shared = SharedSubscription.parse(topic)
            topic = topic if shared is None else shared.topic_filter
    except MalformedPacket as error:
        raise failed(f"--{action}: {error}", USAGE) from None
    return rules.explain(who, client_id, action, topic, ours=ours)


def _configured(config: Path | None, file: Path | None, trust_domain: str | None) -> tuple[Path | None, str | None]:
    """Return the policy's file and the broker's trust domain; what is not given, from its settings file *config*."""
    if config is None:
        return file, trust_domain
    from broker.settings.config_file import ConfigError, read_texts

    try:
        settings = read_texts(config, "policy_file", "trust_domain")
    except ConfigError as error:
        raise failed(str(error), USAGE) from None
    if file is None and "policy_file" in settings:
        file = Path(settings["policy_file"])
    return file, trust_domain or settings.get("trust_domain")


def _policy(path: Path | None) -> TopicPolicy:
    from broker.admission.policy_file import PolicyError, load_policy

    try:
        return load_policy(path)
    except PolicyError as error:
        raise failed(str(error), USAGE) from None


def _identity(uri: str) -> Identity:
    from provisioning.pki.identity import InvalidIdentity, parse_uri

    try:
        return parse_uri(uri)
    except InvalidIdentity as error:
        raise failed(f"--identity: {error}; {_WHOLE}", USAGE) from None
