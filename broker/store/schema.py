"""The tables of the broker's database."""

from __future__ import annotations

VERSION = 9

SCHEMA = """
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
CREATE TABLE messages (
    id INTEGER PRIMARY KEY,
    topic BLOB NOT NULL, payload BLOB NOT NULL, qos INTEGER NOT NULL, retain INTEGER NOT NULL,
    properties BLOB NOT NULL, expires_at REAL
) STRICT;
-- One message for up to 62 sessions (broker.store.dispatch), in the order in which each session gets its messages.
CREATE TABLE deliveries (
    id INTEGER PRIMARY KEY,
    message INTEGER NOT NULL,
    qos INTEGER NOT NULL,
    retain INTEGER NOT NULL,
    identifiers BLOB NOT NULL,
    share TEXT NOT NULL,           -- the Shared Subscription that it came through, $share/…; empty: none
    places INTEGER NOT NULL,       -- bit n: the session at place n is listed
    sessions BLOB NOT NULL         -- their ids in the order of their places, eight bytes each, little-endian
) STRICT;
-- Of a delivery with which some of its sessions are done: the places of the others.
CREATE TABLE remaining (
    id INTEGER PRIMARY KEY,
    places INTEGER NOT NULL
) STRICT;
-- From the first PUBLISH on. The sequence is the delivery's id times 64, and the session's place.
CREATE TABLE progress (
    sequence INTEGER PRIMARY KEY,
    packet_id INTEGER NOT NULL,
    released INTEGER NOT NULL      -- whether its PUBREC was received, at QoS 2
) STRICT;
CREATE TABLE incoming (
    session INTEGER NOT NULL REFERENCES sessions ON DELETE CASCADE,
    packet_id INTEGER NOT NULL,
    PRIMARY KEY (session, packet_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE retained (
    topic_name TEXT PRIMARY KEY,
    topic BLOB NOT NULL, payload BLOB NOT NULL, qos INTEGER NOT NULL, retain INTEGER NOT NULL,
    properties BLOB NOT NULL, expires_at REAL,
    publisher TEXT NOT NULL DEFAULT '',  -- as broker.session.name has it; empty: not known
    number INTEGER NOT NULL DEFAULT 0    -- its place in the order in which messages were retained
) STRICT, WITHOUT ROWID;
-- What of the retained messages of a pending subscription was sent at QoS 2; gone with the row that it refers to, which
-- is replaced when it is pending no more, or anew.
CREATE TABLE replayed (
    session INTEGER NOT NULL,
    topic_filter TEXT NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (session, topic_filter, number),
    FOREIGN KEY (session, topic_filter) REFERENCES subscriptions (session, topic_filter) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
"""

MIGRATIONS = {
    1: """
ALTER TABLE subscriptions ADD COLUMN pending INTEGER NOT NULL DEFAULT 0;
ALTER TABLE retained ADD COLUMN publisher TEXT NOT NULL DEFAULT '';
""",
    2: """
ALTER TABLE deliveries ADD COLUMN share TEXT NOT NULL DEFAULT '';
ALTER TABLE retained ADD COLUMN number INTEGER NOT NULL DEFAULT 0;
UPDATE retained SET number = ranked.place
    FROM (SELECT topic_name AS name, row_number() OVER (ORDER BY topic_name) AS place FROM retained) AS ranked
    WHERE ranked.name = topic_name;
UPDATE subscriptions SET pending = (SELECT coalesce(max(number), 0) FROM retained) WHERE pending <> 0;
CREATE TABLE replayed (
    session INTEGER NOT NULL,
    topic_filter TEXT NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (session, topic_filter, number),
    FOREIGN KEY (session, topic_filter) REFERENCES subscriptions (session, topic_filter) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
""",
    3: "ALTER TABLE sessions ADD COLUMN certificate TEXT;",
    4: "ALTER TABLE sessions ADD COLUMN authorities TEXT;",
    5: """
ALTER TABLE sessions ADD COLUMN will_certificate TEXT;
ALTER TABLE sessions ADD COLUMN will_authorities TEXT;
""",
    6: """
ALTER TABLE sessions ADD COLUMN will_cas TEXT;
-- Older brokers could remove a message that others were still to get (decision 0248), and did not start again then.
DELETE FROM deliveries WHERE message NOT IN (SELECT id FROM messages);
""",
    7: """
-- Before decision 0334 there was a row for each session.
CREATE TEMP TABLE former AS
    SELECT row_number() OVER (ORDER BY sequence, session) AS id, * FROM main.deliveries
    WHERE message IN (SELECT id FROM messages);
DROP TABLE deliveries;
CREATE TABLE deliveries (
    id INTEGER PRIMARY KEY,
    message INTEGER NOT NULL,
    qos INTEGER NOT NULL,
    retain INTEGER NOT NULL,
    identifiers BLOB NOT NULL,
    share TEXT NOT NULL,
    places INTEGER NOT NULL,
    sessions BLOB NOT NULL
) STRICT;
CREATE TABLE remaining (id INTEGER PRIMARY KEY, places INTEGER NOT NULL) STRICT;
CREATE TABLE progress (sequence INTEGER PRIMARY KEY, packet_id INTEGER NOT NULL, released INTEGER NOT NULL) STRICT;
INSERT INTO deliveries SELECT id, message, qos, retain, identifiers, share, 1, packed(session) FROM former ORDER BY id;
INSERT INTO progress SELECT id * 64, packet_id, released FROM former WHERE packet_id IS NOT NULL ORDER BY id;
DROP TABLE former;
""",
    # No statement: older brokers take the progress of a QoS 1 delivery, which is stored from now on, for damage.
    8: "",
}
"""The statements that upgrade each older schema to the next."""

_MOST = 1 << 62
"""Rows are numbered upwards: one that has the last number that there is would leave none for the next."""

NEVER_WRITTEN = {
    "sessions": f"""
id > {_MOST} OR expiry_interval NOT BETWEEN 0 AND 4294967295
    OR ended_at NOT BETWEEN -1e15 AND 1e15
    OR (will_topic IS NOT NULL AND (length(will_topic) NOT BETWEEN 1 AND 65535
        OR will_payload IS NULL OR coalesce(will_qos, -1) NOT BETWEEN 0 AND 2 OR will_retain IS NULL
        OR will_properties IS NULL OR will_expiry_interval NOT BETWEEN 0 AND 4294967295
        OR coalesce(will_delay, -1) NOT BETWEEN 0 AND 4294967295))
""",
    "subscriptions": f"""
qos NOT BETWEEN 0 AND 2 OR retain_handling NOT BETWEEN 0 AND 2 OR pending NOT BETWEEN 0 AND {_MOST}
""",
    "messages": f"""
id > {_MOST} OR qos NOT BETWEEN 0 AND 2 OR length(topic) NOT BETWEEN 1 AND 65535
    OR expires_at NOT BETWEEN -1e15 AND 1e15
""",
    "deliveries": f"""
id NOT BETWEEN 1 AND {_MOST // 64} OR qos NOT BETWEEN 1 AND 2 OR places NOT BETWEEN 1 AND {_MOST - 1}
    OR length(sessions) NOT BETWEEN 8 AND 496 OR length(sessions) % 8 <> 0
""",
    "remaining": """
places <= 0 OR NOT EXISTS (SELECT 1 FROM deliveries AS listed
    WHERE listed.id = remaining.id AND remaining.places & ~listed.places = 0)
""",
    "progress": """
packet_id NOT BETWEEN 1 AND 65535 OR released NOT BETWEEN 0 AND 1
    OR NOT EXISTS (SELECT 1 FROM deliveries AS listed
        WHERE listed.id = sequence / 64 AND (listed.qos = 2 OR released = 0)
            AND listed.places >> (sequence % 64) & 1)
""",
    "incoming": "packet_id NOT BETWEEN 1 AND 65535",
    "retained": f"""
number > {_MOST} OR qos NOT BETWEEN 0 AND 2 OR length(topic) NOT BETWEEN 1 AND 65535
    OR topic <> CAST(topic_name AS BLOB) OR expires_at NOT BETWEEN -1e15 AND 1e15
""",
}
"""Of each table, what no broker has written: SQLite does not notice a flipped bit, and has no ranges of ours."""

FIRST_DAY = "will_expires_at"
"""A column of sessions that only the very first brokers with schema 1 had."""
AFTER_THE_FIRST_DAY = """
CREATE TABLE sessions_anew (
    id INTEGER PRIMARY KEY,
    client_id TEXT NOT NULL,
    owner TEXT NOT NULL,
    v5 INTEGER NOT NULL,
    expiry_interval INTEGER NOT NULL,
    ended_at REAL,
    will_topic BLOB, will_payload BLOB, will_qos INTEGER, will_retain INTEGER, will_properties BLOB,
    will_expiry_interval INTEGER, will_delay INTEGER,
    UNIQUE (client_id, owner)
) STRICT;
INSERT INTO sessions_anew SELECT id, client_id, owner, v5, expiry_interval, ended_at,
    will_topic, will_payload, will_qos, will_retain, will_properties, NULL, will_delay FROM sessions;
DROP TABLE sessions;
ALTER TABLE sessions_anew RENAME TO sessions;
"""
"""Upgrades theirs to the final schema 1: with foreign keys off, or rows that refer to sessions would be lost."""
