"""The pages for operators tell the truth: their commands are run on a host as docs/installation.md sets one up."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.followed_page import Followed, follow
from tests.support.provisioning import REPOSITORY

_REVOKE_NEXT = "fleet-provisioning ca revoke issuing-4 --reason cACompromise --yes\n"
_FIRST_BEGIN = "$(ls fleet/ceremonies/*begin.txt | head -n 1)"
_SERVERKEYGEN = (
    "TOKEN=",
    "openssl req -new",
    "part() { tr",
    "part application",
    "part 'application",
    "{ printf",
    "openssl asn1parse",
    "openssl pkey -inform DER -in key.der",
)
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
    Followed(
        "docs/enrolment.md",
        before=r"""
authority() { # NAME SUBJECT OPTIONS: a manufacturer's CA, NAME.pem and NAME.key
  local name="$1" subject="$2"; shift 2
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$name.key" -subj "$subject" \
    -addext keyUsage=critical,keyCertSign,cRLSign -days 300 -out "$name.pem" "$@" 2> /dev/null; }
list() { # NAME FILE: its list, of nobody
  : > index.txt; echo 01 > number
  printf '[ca]
default_ca=it
[it]
database=index.txt
crlnumber=number
default_md=sha256
crl_extensions=e
' > it.cnf
  printf '[e]
authorityKeyIdentifier=keyid
' >> it.cnf
  openssl ca -config it.cnf -gencrl -crldays 30 -keyfile "$1.key" -cert "$1.pem" -out "$2" 2> /dev/null; }
mkdir web
authority acme-root '/CN=Acme Root/O=Acme'
authority acme-ca '/CN=Acme Device CA/O=Acme' -CA acme-root.pem -CAkey acme-root.key
list acme-ca web/devices.crl
list acme-root root.crl
python3 -m http.server --bind 127.0.0.1 --directory web 8099 > web.log 2>&1 &
until curl -s http://localhost:8099/ > /dev/null; do sleep 0.05; done
printf 'meter-%s
' 21 22 23 > meters.txt
echo meter-99 > ours.txt
printf 'name,key_sha256
meter-31,
meter-32,%064d
' 7 > meters.csv
fleet-provisioning token create --device meter-9 --group north
enrol_by() { # GROUP CURL-OPTIONS: the answer's status, for a new key of meter-17, or the same one again
  local group="$1" name="$2"; shift 2
  [ -f "$name.csr" ] || openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$name.key" \
    -subj "/CN=$name" -outform DER -out "$name.csr" 2> /dev/null
  openssl base64 -in "$name.csr" | curl -sS --cacert etc/ca-bundle.crt -H 'Content-Type: application/pkcs10' "$@" \
    --data-binary @- -o answer -w '%{http_code}' "https://localhost:8443/.well-known/est/$group/simpleenroll"; }
""",
        between={
            "fleet-provisioning claim end": '[ "$(enrol_by line-7 cell-1 --cert claim.pem)" = 200 ]\n',
            "fleet-provisioning approval list": '[ "$(enrol_by lab bench-1)" = 202 ]\n',
            "base64url()": '[ "$(enrol_by lab bench-1)" = 200 ]\nenrol meter-17 --group north\n',
        },
        here={
            "http://pki.acme.example/": "http://localhost:8099/",
            "token void 17": "token void 2",
            "approve 17": "approve 1",
            "void --group north": "void --yes --group north",
            "revoke --claim": "revoke --yes --claim",
        },
        left=dict.fromkeys(_SERVERKEYGEN, "run in tests/integration/provisioning/test_est_complete.py"),
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
