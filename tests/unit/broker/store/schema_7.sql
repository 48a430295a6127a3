-- What a broker of schema 7 left that was killed, with messages at QoS 1 and 2 that wait or are under way for three
-- clients: a dump.
CREATE TABLE deliveries (
    session INTEGER NOT NULL REFERENCES sessions ON DELETE CASCADE,
    sequence INTEGER NOT NULL,
    message INTEGER NOT NULL,
    qos INTEGER NOT NULL,
    retain INTEGER NOT NULL,
    identifiers BLOB NOT NULL,
    packet_id INTEGER,             -- QoS 2 only, from the first PUBLISH on
    released INTEGER NOT NULL DEFAULT 0,
    share TEXT NOT NULL DEFAULT '',      -- the Shared Subscription that it came through, $share/…; empty: none
    PRIMARY KEY (session, sequence)
) STRICT, WITHOUT ROWID;
INSERT INTO "deliveries" VALUES(1,1,1,1,0,X'',NULL,0,'');
INSERT INTO "deliveries" VALUES(1,2,2,1,0,X'',NULL,0,'');
INSERT INTO "deliveries" VALUES(1,3,3,1,0,X'',NULL,0,'');
INSERT INTO "deliveries" VALUES(1,4,4,1,0,X'',NULL,0,'');
INSERT INTO "deliveries" VALUES(2,1,1,2,0,X'',1,1,'');
INSERT INTO "deliveries" VALUES(2,2,2,2,0,X'',2,0,'');
INSERT INTO "deliveries" VALUES(2,3,3,1,0,X'',NULL,0,'');
INSERT INTO "deliveries" VALUES(2,4,4,2,0,X'',NULL,0,'');
INSERT INTO "deliveries" VALUES(3,1,1,1,0,X'0B07',NULL,0,'$share/g/fleet/#');
INSERT INTO "deliveries" VALUES(3,2,2,1,0,X'0B07',NULL,0,'$share/g/fleet/#');
INSERT INTO "deliveries" VALUES(3,3,3,1,0,X'0B07',NULL,0,'$share/g/fleet/#');
INSERT INTO "deliveries" VALUES(3,4,4,1,0,X'0B07',NULL,0,'$share/g/fleet/#');
CREATE TABLE incoming (
    session INTEGER NOT NULL REFERENCES sessions ON DELETE CASCADE,
    packet_id INTEGER NOT NULL,
    PRIMARY KEY (session, packet_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE messages (
    id INTEGER PRIMARY KEY,
    topic BLOB NOT NULL, payload BLOB NOT NULL, qos INTEGER NOT NULL, retain INTEGER NOT NULL,
    properties BLOB NOT NULL, expires_at REAL
) STRICT;
INSERT INTO "messages" VALUES(1,X'666C6565742F6D65746572732F6D657465722D312F74656C656D65747279',X'30',2,0,X'',NULL);
INSERT INTO "messages" VALUES(2,X'666C6565742F6D65746572732F6D657465722D312F74656C656D65747279',X'31',2,0,X'',NULL);
INSERT INTO "messages" VALUES(3,X'666C6565742F6D65746572732F6D657465722D312F74656C656D65747279',X'32',1,0,X'',NULL);
INSERT INTO "messages" VALUES(4,X'666C6565742F6D65746572732F6D657465722D312F74656C656D65747279',X'33',2,1,X'',NULL);
CREATE TABLE replayed (
    session INTEGER NOT NULL,
    topic_filter TEXT NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (session, topic_filter, number),
    FOREIGN KEY (session, topic_filter) REFERENCES subscriptions (session, topic_filter) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE TABLE retained (
    topic_name TEXT PRIMARY KEY,
    topic BLOB NOT NULL, payload BLOB NOT NULL, qos INTEGER NOT NULL, retain INTEGER NOT NULL,
    properties BLOB NOT NULL, expires_at REAL,
    publisher TEXT NOT NULL DEFAULT '',  -- as broker.session.name has it; empty: not known
    number INTEGER NOT NULL DEFAULT 0    -- its place in the order in which messages were retained
) STRICT, WITHOUT ROWID;
INSERT INTO "retained" VALUES('fleet/meters/meter-1/telemetry',X'666C6565742F6D65746572732F6D657465722D312F74656C656D65747279',X'33',2,1,X'',NULL,'/device/fleet.internal/meter-1',1);
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY,
    client_id TEXT NOT NULL,
    owner TEXT NOT NULL,
    v5 INTEGER NOT NULL,
    expiry_interval INTEGER NOT NULL,
    ended_at REAL,                 -- wall clock; NULL while connected
    will_topic BLOB, will_payload BLOB, will_qos INTEGER, will_retain INTEGER, will_properties BLOB,
    will_expiry_interval INTEGER, will_delay INTEGER,
    -- with which its client is connected, or was when the broker ended: issuer's key identifier and serial number
    certificate TEXT,
    -- which CAs stood above it, by their keys' identifiers; NULL: not known
    authorities TEXT,
    -- the same of that with which the will was left, be its client there or gone
    will_certificate TEXT, will_authorities TEXT,
    -- those CAs themselves, as the revocation index calls them; NULL: not known
    will_cas TEXT,
    UNIQUE (client_id, owner)
) STRICT;
INSERT INTO "sessions" VALUES(1,'away','spiffe://fleet.internal/service/away',1,600,1700001000.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "sessions" VALUES(2,'there','spiffe://fleet.internal/service/there',1,600,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'ae1bad86926d3fc538f6b4e15c4bac785e104713:1e0b4eb8c369b4699ff27ed5cb7930d2d766f7fe',NULL,NULL,NULL,NULL);
INSERT INTO "sessions" VALUES(3,'worker','spiffe://fleet.internal/service/worker',1,600,1700001000.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE subscriptions (
    session INTEGER NOT NULL REFERENCES sessions ON DELETE CASCADE,
    topic_filter TEXT NOT NULL,
    qos INTEGER NOT NULL,
    no_local INTEGER NOT NULL,
    retain_as_published INTEGER NOT NULL,
    retain_handling INTEGER NOT NULL,
    identifiers BLOB NOT NULL,
    -- 0, or not all retained messages that it matched have been sent yet: the number of the newest of them
    pending INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (session, topic_filter)
) STRICT, WITHOUT ROWID;
INSERT INTO "subscriptions" VALUES(1,'fleet/#',1,0,0,0,X'',0);
INSERT INTO "subscriptions" VALUES(2,'fleet/#',2,0,0,0,X'',0);
INSERT INTO "subscriptions" VALUES(3,'$share/g/fleet/#',1,0,0,0,X'0B07',0);
