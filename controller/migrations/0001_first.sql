-- Ids, keys and hashes are BLOBs; times are milliseconds since 1970; signed documents are kept as carried.

CREATE TABLE authority (
    number  INTEGER PRIMARY KEY,
    signed  BLOB NOT NULL
) STRICT;

CREATE TABLE invites (
    invite   BLOB PRIMARY KEY,
    gateway  BLOB NOT NULL UNIQUE,
    signed   BLOB NOT NULL,
    at       INTEGER NOT NULL
) STRICT;

CREATE TABLE enrolments (
    gateway   BLOB PRIMARY KEY,
    invite    BLOB NOT NULL UNIQUE REFERENCES invites (invite),
    identity  BLOB NOT NULL UNIQUE,
    claim     BLOB NOT NULL,
    at        INTEGER NOT NULL,
    source    TEXT NOT NULL
) STRICT;

-- Identities that came too late for an invite; bounded per invite, so that no one can fill the audit log.
CREATE TABLE enrolment_refusals (
    invite    BLOB NOT NULL REFERENCES invites (invite),
    identity  BLOB NOT NULL,
    PRIMARY KEY (invite, identity)
) STRICT, WITHOUT ROWID;

CREATE TABLE models (
    hash   BLOB PRIMARY KEY,
    bytes  BLOB NOT NULL
) STRICT;

CREATE TABLE revisions (
    number    INTEGER PRIMARY KEY,
    root      BLOB NOT NULL,
    model     BLOB NOT NULL REFERENCES models (hash),
    at        INTEGER NOT NULL,
    operator  BLOB NOT NULL,
    action    TEXT NOT NULL,
    subject   TEXT NOT NULL,
    reason    TEXT
) STRICT;

-- Gateways for which a revision changes something, and when they had it in force.
CREATE TABLE affected (
    gateway     BLOB NOT NULL,
    revision    INTEGER NOT NULL REFERENCES revisions (number),
    applied_at  INTEGER,
    PRIMARY KEY (gateway, revision)
) STRICT, WITHOUT ROWID;
CREATE INDEX affected_by_revision ON affected (revision);

-- One row for each enrolled gateway: what it says of itself, what it has in force, what it was sent.
CREATE TABLE gateways (
    gateway              BLOB PRIMARY KEY,
    agent_version        TEXT,
    reachable            BLOB,
    observed             TEXT,
    last_seen            INTEGER,
    tunnels              BLOB,
    applied_incarnation  INTEGER,
    applied_sequence     INTEGER,
    applied_revision     INTEGER,
    applied_intent       BLOB,
    problems             BLOB,
    refused              TEXT,
    wanted               INTEGER NOT NULL DEFAULT 0,
    behind_since         INTEGER,
    view_incarnation     INTEGER NOT NULL DEFAULT 0,
    view_sequence        INTEGER NOT NULL DEFAULT 0,
    view_revision        INTEGER,
    view_intent          BLOB,
    view_operation       BLOB,
    sightings_away       INTEGER NOT NULL DEFAULT 0,
    edges_away           INTEGER NOT NULL DEFAULT 0,
    overflow             INTEGER NOT NULL DEFAULT 0
) STRICT;

-- Up to where the reports of a gateway's run are stored.
CREATE TABLE watermarks (
    gateway   BLOB NOT NULL,
    boot      BLOB NOT NULL,
    sequence  INTEGER NOT NULL,
    at        INTEGER NOT NULL,
    PRIMARY KEY (gateway, boot)
) STRICT, WITHOUT ROWID;

CREATE TABLE drops (
    gateway  BLOB NOT NULL,
    reason   TEXT NOT NULL,
    count    INTEGER NOT NULL,
    PRIMARY KEY (gateway, reason)
) STRICT, WITHOUT ROWID;

CREATE TABLE sightings (
    gateway     BLOB NOT NULL,
    port        TEXT NOT NULL,
    mac         BLOB NOT NULL,
    vlan        INTEGER NOT NULL,
    sighting    BLOB NOT NULL,
    first_seen  INTEGER NOT NULL,
    last_seen   INTEGER NOT NULL,
    PRIMARY KEY (gateway, port, mac, vlan)
) STRICT, WITHOUT ROWID;

-- Absent members and rules are empty BLOBs, so that they compare equal.
CREATE TABLE edges (
    gateway        BLOB NOT NULL,
    mac            BLOB NOT NULL,
    member         BLOB NOT NULL,
    local          TEXT NOT NULL,
    remote         TEXT NOT NULL,
    remote_member  BLOB NOT NULL,
    outbound       INTEGER NOT NULL,
    protocol       INTEGER NOT NULL,
    port           INTEGER NOT NULL,
    verdict        TEXT NOT NULL,
    kind           TEXT NOT NULL,
    rule           BLOB NOT NULL,
    flows          INTEGER NOT NULL,
    packets_out    INTEGER NOT NULL,
    packets_in     INTEGER NOT NULL,
    bytes_out      INTEGER NOT NULL,
    bytes_in       INTEGER NOT NULL,
    first          INTEGER NOT NULL,
    last           INTEGER NOT NULL,
    UNIQUE (gateway, mac, local, remote, outbound, protocol, port, verdict, rule, member, remote_member)
) STRICT;
CREATE INDEX edges_by_last ON edges (last);
CREATE INDEX edges_by_gateway_and_last ON edges (gateway, last);

CREATE TABLE audit (
    number    INTEGER PRIMARY KEY,
    at        INTEGER NOT NULL,
    actor     TEXT NOT NULL,
    action    TEXT NOT NULL,
    subject   TEXT NOT NULL,
    reason    TEXT,
    before    TEXT,
    after     TEXT,
    revision  INTEGER,
    root      BLOB,
    previous  BLOB NOT NULL,
    hash      BLOB NOT NULL
) STRICT;
CREATE TRIGGER audit_is_append_only_update BEFORE UPDATE ON audit
BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;
CREATE TRIGGER audit_is_append_only_delete BEFORE DELETE ON audit
BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;

-- Tokens and nonces are kept as hashes only.
CREATE TABLE sessions (
    token      BLOB PRIMARY KEY,
    operator   BLOB NOT NULL,
    not_after  INTEGER NOT NULL
) STRICT;

CREATE TABLE challenges (
    nonce      BLOB PRIMARY KEY,
    not_after  INTEGER NOT NULL
) STRICT;
