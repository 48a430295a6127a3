"""How many sessions there may be: of one identity besides that of its own name, and of a bundle's trust domain.

Kept sessions count. Each identity certified by a foreign CA is limited, but such a CA can certify any number of them.
"""

from __future__ import annotations

from broker.admission.admission import Admitted
from broker.admission.refusal import RefusalCode, Refused
from broker.mqtt.codes import ReasonCode
from broker.session.registry import SessionRegistry
from broker.settings.limits import Limits


def refuse_another(registry: SessionRegistry, limits: Limits, admitted: Admitted, *, replaces: bool) -> Refused | None:
    """Return why *admitted* may not have a new session, or None.

    *replaces*: it replaces a session of which only the will is left.
    """
    peer, identity = admitted.peer, admitted.peer.identity
    if admitted.client_id != identity.name and registry.instances(identity) >= limits.max_instances:
        return _refused(f"{identity.name} has {limits.max_instances}")
    most = 0 if peer.issuer is None else peer.issuer.bundle.terms.max_sessions
    if most and registry.count(identity.trust_domain) >= most + replaces:
        return _refused(f"parties of {identity.trust_domain} have {most}")
    return None


def _refused(who_has_how_many: str) -> Refused:
    detail = f"{who_has_how_many} sessions already, kept ones included"
    return Refused(RefusalCode.TOO_MANY_SESSIONS, ReasonCode.QUOTA_EXCEEDED, detail)
