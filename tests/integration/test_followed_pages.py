"""The pages for operators tell the truth: their commands are run on a host as docs/installation.md sets one up."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.followed_page import Followed, follow
from tests.support.provisioning import REPOSITORY

_REVOKE_NEXT = "fleet-provisioning ca revoke issuing-4 --reason cACompromise --yes\n"
_FIRST_BEGIN = "$(ls fleet/ceremonies/*begin.txt | head -n 1)"
_SERIAL = "$(fleet-provisioning certificate list --device cellar-pump-7 --json | jq -r .[0].serial)"
PAGES = [
    Followed(
        "docs/operations.md",
        before="""
partner
for each in meter-17 meter-18 cellar-pump-7 thief-1 clerk-1 gone-1; do enrol $each --group north; done
enrol east-1 --group west
stay meter-17 'fleet/north/meter-17/cmd/#'
stay cellar-pump-7 'fleet/north/cellar-pump-7/cmd/#'
mosquitto_sub -V 5 -h localhost -p 8883 --cafile etc/ca-bundle.crt --cert theirs.crt --key theirs.key -i meter-17 \\
  -t fleet/plant-7/meter-17/cmd/# > theirs.out 2>&1 &
until connected --domain plant-7.example; do sleep 0.05; done
echo thief-1 > stolen.txt
fleet-provisioning certificate list --device clerk-1 --json | jq -r .[0].serial > serials.txt
""",
        here={
            "show SERIAL": f"show {_SERIAL}",
            "west --reason cessationOfOperation": "west --yes --reason cessationOfOperation",
            "--devices-file - ": "--devices-file - <<< gone-1",
        },
    ),
    Followed(
        "docs/changes.md",
        before="""
partner
fleet-broker policy show | sed 's,"fleet/{group}/{device}/cmd/#",,' > new.toml
cp plant-7.crt new-ca.pem
lists() { for each in crl delta.crl; do curl -sSf "http://localhost:8080/crl/issuing-ca.$each" -o "$1.$each"; done; }
lists old
sed -i "s,feed = true,&\\ncrlfile = '$HOME/old.crl'," etc/broker.toml
systemctl restart fleet-broker
enrol meter-2 --group north
fleet-provisioning revoke --device meter-2 --reason superseded
until lists new && ! cmp -s old.crl new.crl; do sleep 0.1; done
mv new.delta.crl delta.crl
enrol meter-1 --group north
stay meter-1 'fleet/north/meter-1/cmd/#'
""",
        between={
            "openssl pkcs8": "cp $HOME/etc/passphrase OLD; openssl rand -hex 24 > NEW\n",
            "install -o fleet-ca": """
openssl pkcs8 -topk8 -iter 600000 -in root-ca.key -passin file:OLD -passout file:NEW -out root-ca.new
mv root-ca.new root-ca.key
""",
            "find -L broker": f"cd {REPOSITORY}\n",
        },
        here={"cut -c 1-12": 'cut -c 1-12 | grep -x "$(fleet-broker version --json | jq -r .build)"'},
        illustrations=("policy: would be reloaded; would disconnect 1 of 2 clients",),
    ),
    Followed("docs/topic-policy.md"),
    Followed("docs/programs.md", between={"enrol() {": "cd fleet-ca\n"}),
    Followed(
        "docs/troubleshooting.md",
        before="""
enrol meter-17 --group north
stay meter-17 'fleet/north/meter-17/cmd/#'
mkdir certificates
cp meter-17.crt operator.crt certificates/
""",
        illustrations=("meter-17 is not connected",),
    ),
    Followed(
        "docs/reference/admin-api.md",
        here={"broker-state/": "$HOME/fleet-mqtt/", "https://mqtt.example.org": "https://localhost"},
    ),
    Followed(
        "docs/ca-life.md",
        before="""
cd fleet-ca
mkdir VAULT && cp fleet/root-ca.* VAULT/
enrol meter-1 --group north
stay meter-1 'fleet/north/meter-1/cmd/#'
fleet-provisioning group create meters --way token
""",
        between={
            "fleet-provisioning ca rollover activate issuing-meters-1": "cp fleet/ca-bundle.crt $HOME/etc/\n",
            "fleet-provisioning ca rollover end-line": "fleet-provisioning group set meters --issuing-line default\n",
            "fleet-provisioning ca root begin": """
cp fleet/ca-bundle.crt $HOME/etc/
fleet-provisioning ca rollover activate --without-waiting
""",
            # Announced for the next root; as the page says of one that the thief may have, too.
            "fleet-provisioning ca rollover begin --dir fleet && ": _REVOKE_NEXT,
            "fleet-provisioning ca revoke issuing-ca": "connected meter-1\n",
            "fleet-provisioning ca verify-transcript": "until ! connected meter-1; do sleep 0.1; done\n",
        },
        here={
            "issuing-ca --reason cACompromise": "issuing-ca --yes --reason cACompromise",
            "activate --dir fleet": "activate --without-waiting --dir fleet",
            "activate issuing-meters-1 --dir": "activate issuing-meters-1 --without-waiting --dir",
            "fleet/ceremonies/2027-01-05T101500.000000Z-ca-rollover-begin.txt": _FIRST_BEGIN,
        },
        left={
            "fleet-provisioning ca rollover retire --dir fleet": "refused until the old CA's last certificate ended",
            "fleet-provisioning ca root retire root-ca": "refused until the CAs below the root have ended",
        },
    ),
    Followed(
        "docs/operators.md",
        between={
            "fleet-provisioning operator grant anna": "enrol anna --role operator --operator-role enroller\n",
            # The operator who was restored is not the one who sends her away.
            "fleet-provisioning decommission --device anna": "cp operator.crt operator.key fleet-ca/fleet/\n",
        },
    ),
    Followed(
        "docs/audit-log.md",
        before="enrol meter-17 --group north\nstay meter-17 'fleet/north/meter-17/cmd/#'\n",
        here={"HEAD": "$(fleet-broker audit verify --json --config $HOME/etc/broker.toml | jq -r .head)"},
    ),
]


@pytest.mark.parametrize("followed", PAGES, ids=lambda followed: Path(followed.page).stem)
def test_every_command_of_the_page_does_what_the_page_says(followed: Followed, tmp_path: Path) -> None:
    follow(followed, tmp_path)
