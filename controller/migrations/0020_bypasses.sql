-- Bypasses in force at a gateway by files that were loaded into it, as its newest report has them: a CBOR list.
ALTER TABLE gateways ADD COLUMN bypasses BLOB;
