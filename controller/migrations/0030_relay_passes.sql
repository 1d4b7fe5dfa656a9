-- One row: the number that the next pass for relays gets. Relays take no pass of a gateway that is lower than one seen.
CREATE TABLE relay_passes (
    one   INTEGER PRIMARY KEY CHECK (one = 1),
    next  INTEGER NOT NULL
) STRICT;
INSERT INTO relay_passes (one, next) VALUES (1, 1);
