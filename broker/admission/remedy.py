"""What to do about each stable code: one sentence for the person who looks into it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

REMEDIES: Mapping[str, str] = MappingProxyType(
    {
        # Before or in the TLS handshake.
        "TLS_HANDSHAKE_FAILED": "read OpenSSL's message; a peer that just closes is a scanner, or lost its network. An "
        "alert comes from the client: mosquitto's programs send internal error if the broker's certificate does not "
        "contain the name that they connect to (fleet-broker status shows its names)",
        "HANDSHAKE_TIMEOUT": "the network loses packets, or the peer is no TLS client; see limits.handshake_timeout",
        "CONNECT_TIMEOUT": "the client finished TLS and sent no CONNECT: check the client, or limits.connect_timeout",
        "TOO_MANY_CONNECTIONS": "raise limits.max_connections, or find out which client floods",
        "FLAPPING": "find out why its connections are lost; the ban ends by itself (limits.ban_seconds)",
        "CLONE_SUSPECTED": "find out who holds a copy of the key; if somebody does, revoke the certificate",
        "RATE_LIMITED": "find out why so many attempts fail, or raise the limit named in the detail",
        "BAD_PROXY_HEADER": "the address is one of proxy_protocol_from, and its connection does not begin with a valid "
        "PROXY header: configure the proxy to send it (HAProxy: send-proxy-v2), or name only the proxies there",
        "NOT_TLS": "the client does not use TLS: enable TLS in it",
        "NOT_WEBSOCKET": "the listener is for MQTT over WebSocket; the detail says what the HTTP request lacks",
        "ORIGIN_NOT_ALLOWED": "if the page is yours, name its origin in websocket_origins; a client that is no browser "
        "should send no Origin, or that of the broker's own address. If it is not yours, somebody has tried to use "
        "the certificate",
        "UNSUPPORTED_TLS_VERSION": "the client needs TLS 1.3; allow_tls12 allows TLS 1.2",
        "BROKER_NOT_TRUSTED": "the client does not trust the broker's certificate: give it the right trust anchor, "
        "have it connect to a name in the certificate (fleet-broker status shows them); its clock may be wrong",
        "NO_CERTIFICATE": "give the client its certificate and key, with the chain below the trust anchor",
        "UNTRUSTED_ISSUER": "the certificate's CA is not among the trust anchors (fleet-broker trust show): after a "
        "rollover replace cafile with the service's ca-bundle.crt; or the client does not send the intermediate "
        "certificate",
        "TRUST_FULL": "its bundle has seen 1,024 paths of CAs, or 32 CAs of one name: name the permitted issuers, or "
        "give some of them their own bundle; changed anchors or terms reset the count",
        "WRONG_PURPOSE": "the certificate is not for clients: it needs the extended key usage clientAuth. A "
        "certificate without any extended key usage is admitted by required_eku = [] in the [[trust]] table of its CA",
        "WEAK_CERTIFICATE": "the key or the hash of a certificate in the chain is too weak: have a new one issued",
        "PATH_TOO_LONG": "too many CAs below the anchor: make one of them an anchor, or raise the bundle's max_depth",
        # Admission.
        "INVALID_IDENTITY": "the certificate contains no identity of this fleet. One of fleet-provisioning has a URI "
        "spiffe://domain/role/group/name, and that name as its Common Name: enrol the device. If your own CA issues "
        "them, a [[trust]] table says where the name is, and its pattern which part of it (docs/trust-bundles.md)",
        "CA_CERTIFICATE": "a CA certificate was presented: give the client an end-entity certificate",
        "WRONG_TRUST_DOMAIN": "the certificate is of another fleet, or trust_domain is set incorrectly",
        "WRONG_ROLE": "the policy has no rules for this role: use another certificate, or add rules to the policy; "
        "name clients of another trust domain by their URI",
        "WRONG_GROUP": "the certificate's trust bundle does not allow this group: see the bundle's groups",
        "EXPIRED": "renew the certificate; if that is not possible any more, enrol the device again",
        "LIFETIME_OVER": "nothing: the client should reconnect; see limits.max_connection_lifetime",
        "IDENTITY_CHANGED": "the trust settings have changed: the client should reconnect, under its new identity",
        "TRUST_CHANGED": "nothing: trust settings changed while the client was connecting, or its CA was forgotten; "
        "it should reconnect. If it was connected, it could not be judged by the new settings: INTERNAL_ERROR in the "
        "log says why",
        "NOT_YET_VALID": "compare the clocks of broker and CA; the certificate becomes valid by itself",
        "REVOKED": "revocation is final: if the device is good, enrol it again with a new token",
        "SUSPENDED": "resume it: fleet-provisioning resume; a device on trial, with a claim's certificate, has to "
        "activate itself instead (/simplereenroll)",
        "ISSUER_REVOKED": "the CA that issued it is revoked: enrol the device again under another CA",
        "AUDIT_UNAVAILABLE": "check the disk of audit_log, or set audit_policy to count",
        "REVOCATION_STATUS_UNKNOWN": "the broker's revocation data is too old: check provisioning, or the other "
        "sources",
        "CRL_MISSING": "no CRL of the issuer could be read: check its source",
        "CRL_EXPIRED": "the issuer's CRL is past its nextUpdate: have a new one published",
        "OCSP_UNAVAILABLE": "no OCSP responder has given a valid answer: see OCSP_FAILED in the log",
        "OCSP_UNKNOWN": "the OCSP responder does not know the certificate: ask the CA whether it has issued it",
        "CLIENT_ID_MISMATCH": "set the client identifier to the name in the certificate, or leave it empty",
        "USERNAME_MISMATCH": "set the MQTT user name as the trust bundle's username requires, or leave it out",
        "CLIENT_ID_OF_ANOTHER": "another identity owns the session: use another client identifier, or end that session "
        "with fleet-broker kick --forget",
        "TOO_MANY_SESSIONS": "end unused sessions, or raise limits.max_instances, or the bundle's max_sessions, "
        "whichever the detail names",
        "WILL_NOT_PERMITTED": "the will's topic is not permitted to this client: see fleet-broker policy test",
        "PUBLISH_NOT_PERMITTED": "the topic is not permitted to this client: fleet-broker check shows what its "
        "certificate may, fleet-broker policy test the rule",
        "SUBSCRIPTION_NOT_PERMITTED": "the policy has changed, and no longer permits what was subscribed: see "
        "fleet-broker policy test",
        "REFUSED_BY_PLUGIN": "a plugin refused: the log names it; see how it decides (docs/plugins.md)",
        "PLUGIN_FAILED": "a plugin that must be asked gave no answer, or raised an exception: the log names it and its "
        "error",
        "UNSUPPORTED": "the client asks for something that this broker does not support; the detail says what",
        "BAD_PACKET": "correct the client, if it is an MQTT client: the detail names the statement of the standard",
        "SHUTTING_DOWN": "nothing: the client should reconnect when the broker is back",
        # Ends of connections.
        "CLIENT_DISCONNECTED": "nothing: the client sent DISCONNECT",
        "CLIENT_CLOSED": "nothing, unless it happens often: the client closed without DISCONNECT",
        "CONNECTION_LOST": "check the network; if a middlebox drops idle connections, a shorter keep alive helps",
        "ABORTED": "see the broker's log around that time",
        "KEEP_ALIVE_TIMEOUT": "the device fell silent: check its power and network, and that its program keeps its "
        "keep alive",
        "SESSION_TAKEN_OVER": "the same client connected again. If that repeats, two programs share one certificate, "
        "or it was copied",
        "KICKED": "an operator did it: the log says who, and why",
        "STORE_FAILED": "make room on the broker's disk, if that is it: STORE_FAILED in the log names the file and the "
        "reason",
        "NOT_AUTHORIZED": "the topic is not permitted: fleet-broker check shows what its certificate may, fleet-broker "
        "policy test the rule",
    }
)
"""By stable code. A test compares it with `RefusalCode`, and with the codes with which connections end."""
