-- Identity keys that operators want replaced: the newest order for a gateway, as it was signed, and what the gateway
-- offered upon that, in CBOR. A row goes once the gateway has come with its new key.
CREATE TABLE rekeys (
    gateway BLOB PRIMARY KEY REFERENCES gateways (gateway),
    wanted  BLOB NOT NULL,
    offer   BLOB
) STRICT;
