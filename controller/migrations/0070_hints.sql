-- What devices let be seen of themselves. Places stay, so that pages do. No VLAN is -1; an absent member is an empty BLOB.
CREATE TABLE hints (
    place    INTEGER PRIMARY KEY AUTOINCREMENT,
    gateway  BLOB NOT NULL,
    port     TEXT NOT NULL,
    mac      BLOB NOT NULL,
    vlan     INTEGER NOT NULL,
    member   BLOB NOT NULL,
    kind     TEXT NOT NULL,
    value    TEXT NOT NULL,
    first    INTEGER NOT NULL,
    last     INTEGER NOT NULL,
    UNIQUE (gateway, mac, vlan, kind, value)
) STRICT;

-- Hints that found no room.
ALTER TABLE gateways ADD COLUMN hints_away INTEGER NOT NULL DEFAULT 0;
