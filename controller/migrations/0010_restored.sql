-- At most one row: the controller came from a backup, or got another key, and no operator has signed that yet.
CREATE TABLE restored (
    one  INTEGER PRIMARY KEY CHECK (one = 1),
    at   INTEGER NOT NULL
) STRICT;
