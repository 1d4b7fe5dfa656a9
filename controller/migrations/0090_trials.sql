-- Devices of a gateway that are enforced on trial, or were, as its newest report has them: a CBOR list.
ALTER TABLE gateways ADD COLUMN trials BLOB;
