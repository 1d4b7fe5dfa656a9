-- Tunnel keys that operators want replaced: those of a gateway with serials up to this one. A row stays: a gateway with
-- newer keys has done it.
CREATE TABLE rotations (
    gateway BLOB PRIMARY KEY REFERENCES gateways (gateway),
    up_to   INTEGER NOT NULL,
    now     INTEGER NOT NULL
) STRICT;
