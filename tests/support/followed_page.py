"""A page for operators, followed command by command on a host as docs/installation.md sets one up.

    follow(Followed("docs/audit-log.md", before="enrol meter-17 north\n"), tmp_path)

Rules
-----
1. Both services run, and the variables and functions of *first checks* in docs/operations.md are set.
2. Every command of every ```sh block is run by itself and must succeed, in the order of the page. A block with its
   output right below is compared with it, as `tests.support.page` does, unless that is an illustration.
3. What no test can run is named in `left`, with the reason; a name of which the page has nothing is an error.
4. What a page leaves to its reader is in `before` and, just before the command that needs it, in `between`.
5. Accounts and systemd are the host's: functions of the shell stand for `runuser`, `systemctl` and `journalctl`. They
   run, signal and restart the real programs. Directories of the host are those of the test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.support.page import Step, Terminal, free_ports, read_page, single_commands
from tests.support.provisioning import REPOSITORY

_HERE = {
    "/etc/fleetgate": "$HOME/etc",
    "/var/lib/fleet-mqtt": "$HOME/fleet-mqtt",
    "/var/lib/fleet-ca": "$HOME/fleet-ca",
    "https://ca.example.org": "https://localhost",
    "http://ca.example.org": "http://localhost",
    "--cacert ca-bundle.crt": "--cacert $HOME/etc/ca-bundle.crt",
    "--cafile ca-bundle.crt": "--cafile $HOME/etc/ca-bundle.crt",
    "--config broker.toml": "--config $HOME/etc/broker.toml",
}
_HOST = r"""
umask 077
mkdir etc fleet-ca
runuser() { shift 3; "$@"; }                          # -u NAME -- COMMAND
install() { local -a kept=(); while [ $# -gt 0 ]; do
  if [ "$1" = -o ]; then shift; else kept+=("$1"); fi; shift; done; command install "${kept[@]}"; }
ready() { until grep -sq ready "$HOME/$2"; do kill -0 "$1" || return; sleep 0.05; done; }
serving() { fleet-provisioning serve > provisioning.out 2>> fleet-provisioning.log & units[fleet-provisioning]=$!
  ready $! provisioning.out; }
running() { fleet-broker run --config "$HOME/etc/broker.toml" > broker.out 2>> fleet-broker.log & units[fleet-broker]=$!
  ready $! broker.out; }
declare -A units
systemctl() { local at="$PWD" status; cd "$HOME" || return
  case "$1 $2" in
    "reload "*) kill -HUP "${units[$2]}" ;;
    "restart fleet-broker") kill "${units[$2]}"; wait "${units[$2]}"; : > broker.out; running ;;
    *) false ;;
  esac; status=$?; cd "$at" && return $status; }
journalctl() { while [ $# -gt 0 ]; do
  if [ "$1" = -u ]; then cat "$HOME/$2.log"; shift; fi; shift; done; }
enrol() { # NAME TOKEN-OPTIONS: makes NAME.crt and NAME.key
  local name="$1" token; shift
  token=$(fleet-provisioning token create --device "$name" "$@" 2> /dev/null) || return
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$name.key" -subj "/CN=$name" \
    -outform DER 2> /dev/null | openssl base64 |
    curl -sS --fail --cacert "$HOME/etc/ca-bundle.crt" --user "$name:$token" -H 'Content-Type: application/pkcs10' \
      --data-binary @- https://localhost:8443/.well-known/est/simpleenroll |
    base64 -d | openssl pkcs7 -inform DER -print_certs > "$name.crt"; }
stay() { # NAME FILTER: connected until the end of the page, with a session that is kept
  mosquitto_sub -V 5 -c -x 3600 -h localhost -p 8883 --cafile "$HOME/etc/ca-bundle.crt" --cert "$1.crt" --key "$1.key" \
    -i "$1" -q 1 -t "$2" > "$1.out" 2>&1 &
  until connected "$1"; do kill -0 $! || return; sleep 0.05; done; }
connected() { fleet-broker sessions --connected --json "$@" | jq -e '.sessions != []' > /dev/null; }
partner() { # Another CA's clients are admitted too, those of plant-7, with meter-17 among them.
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout plant-7.key -subj '/CN=Plant 7' \
    -addext keyUsage=critical,keyCertSign,cRLSign -days 30 -out plant-7.crt 2> /dev/null &&
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout theirs.key -subj /CN=meter-17 \
    -addext basicConstraints=critical,CA:FALSE -addext extendedKeyUsage=clientAuth -CA plant-7.crt -CAkey plant-7.key \
    -days 20 -out theirs.crt 2> /dev/null && cat >> etc/broker.toml << END && systemctl restart fleet-broker; }
[[trust]]
name = "fleet"
anchors = ["$HOME/etc/ca-bundle.crt"]
roles = ["device", "service", "operator"]
feed = true

[[trust]]
name = "plant-7"
anchors = ["$HOME/plant-7.crt"]
trust_domain = "plant-7.example"
groups = ["plant-7"]
unsafe_no_revocation = true
identity = [{ source = "common-name", group = "plant-7" }]
END
openssl rand -hex 24 > etc/passphrase
export FLEET_BROKER_STATE_DIR=$HOME/fleet-mqtt FLEET_PROVISIONING_DIRECTORY=$HOME/fleet-ca/fleet
export FLEET_PROVISIONING_PASSPHRASE_FILE=$HOME/etc/passphrase
ca() { runuser -u fleet-ca -- "$@"; }
fleet-provisioning init --public-http-url http://localhost:8080
serving
cp fleet-ca/fleet/ca-bundle.crt etc/
cp fleet-ca/fleet/operator.crt fleet-ca/fleet/operator.key .
fleet-provisioning token create --device broker-1 --role broker --dns-name localhost > etc/broker.token
cat > etc/broker.toml << END
cafile = "$HOME/etc/ca-bundle.crt"
provisioning = "https://localhost:8443"
token_file = "$HOME/etc/broker.token"
state_dir = "$HOME/fleet-mqtt"
audit_log = "$HOME/fleet-mqtt/audit.jsonl"
admin_port = 8893
admin_changers = ["admin"]
END
running
"""


@dataclass(frozen=True)
class Followed:
    """A page, what its reader is taken to have and to do, and what of it is not run."""

    page: str
    before: str = ""
    between: Mapping[str, str] = field(default_factory=dict)
    """The beginning of a command of the page: what the reader does just before it."""
    here: Mapping[str, str] = field(default_factory=dict)
    """A word of the page that stands for something: what that is here."""
    left: Mapping[str, str] = field(default_factory=dict)
    """The beginning of a command that is not run: why."""
    illustrations: tuple[str, ...] = ()
    """The beginning of output that is shown as an example."""


def follow(followed: Followed, directory: Path) -> None:
    """Run the page's commands in *directory*."""
    steps = read_page(REPOSITORY / followed.page)
    assert steps
    used: set[str] = set()
    with Terminal(directory, free_ports()) as terminal:
        for command in (*single_commands(_HOST), *single_commands(followed.before)):
            terminal.succeed(command, "before the page")
        for step in steps:
            _follow(terminal, step, followed, used)
    unused = {*followed.between, *followed.here, *followed.left, *followed.illustrations} - used
    assert not unused, f"{followed.page} has none of {sorted(unused)}"


def _follow(terminal: Terminal, step: Step, followed: Followed, used: set[str]) -> None:
    if step.shown is not None:
        examples = [beginning for beginning in followed.illustrations if step.shown[0].startswith(beginning)]
        used.update(examples)
        if not examples:
            _between(terminal, step.commands, f"{followed.page}, the block of line {step.line}", followed, used)
            terminal.follow(replace(step, commands=_here(step.commands, followed, used)))
            return
    for command in single_commands(step.commands):
        where = f"{followed.page}, the block of line {step.line}"
        left = [beginning for beginning in followed.left if command.startswith(beginning)]
        used.update(left)
        if left:
            continue
        _between(terminal, command, where, followed, used)
        terminal.succeed(_here(command, followed, used), where)


def _between(terminal: Terminal, command: str, where: str, followed: Followed, used: set[str]) -> None:
    for beginning, commands in followed.between.items():
        if command.startswith(beginning) and beginning not in used:
            used.add(beginning)
            for each in single_commands(commands):
                terminal.succeed(each, f"{where}, before {beginning!r}")


def _here(command: str, followed: Followed, used: set[str]) -> str:
    for word, meaning in (*followed.here.items(), *_HERE.items()):
        if word in command:
            used.add(word)
            command = command.replace(word, meaning)
    return command
