-- The tables of the first brokers, as they made them.
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY,
    client_id TEXT NOT NULL,
    owner TEXT NOT NULL,
    v5 INTEGER NOT NULL,
    expiry_interval INTEGER NOT NULL,
    ended_at REAL,                 -- wall clock; NULL while connected
    will_topic BLOB, will_payload BLOB, will_qos INTEGER, will_retain INTEGER, will_properties BLOB,
    will_expiry_interval INTEGER, will_delay INTEGER,
    UNIQUE (client_id, owner)
) STRICT;
CREATE TABLE subscriptions (
    session INTEGER NOT NULL REFERENCES sessions ON DELETE CASCADE,
    topic_filter TEXT NOT NULL,
    qos INTEGER NOT NULL,
    no_local INTEGER NOT NULL,
    retain_as_published INTEGER NOT NULL,
    retain_handling INTEGER NOT NULL,
    identifiers BLOB NOT NULL,
    PRIMARY KEY (session, topic_filter)
) STRICT, WITHOUT ROWID;
CREATE TABLE messages (
    id INTEGER PRIMARY KEY,
    topic BLOB NOT NULL, payload BLOB NOT NULL, qos INTEGER NOT NULL, retain INTEGER NOT NULL,
    properties BLOB NOT NULL, expires_at REAL
) STRICT;
CREATE TABLE deliveries (
    session INTEGER NOT NULL REFERENCES sessions ON DELETE CASCADE,
    sequence INTEGER NOT NULL,
    message INTEGER NOT NULL,
    qos INTEGER NOT NULL,
    retain INTEGER NOT NULL,
    identifiers BLOB NOT NULL,
    packet_id INTEGER,             -- QoS 2 only, from the first PUBLISH on
    released INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (session, sequence)
) STRICT, WITHOUT ROWID;
CREATE TABLE incoming (
    session INTEGER NOT NULL REFERENCES sessions ON DELETE CASCADE,
    packet_id INTEGER NOT NULL,
    PRIMARY KEY (session, packet_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE retained (
    topic_name TEXT PRIMARY KEY,
    topic BLOB NOT NULL, payload BLOB NOT NULL, qos INTEGER NOT NULL, retain INTEGER NOT NULL,
    properties BLOB NOT NULL, expires_at REAL
) STRICT, WITHOUT ROWID;
