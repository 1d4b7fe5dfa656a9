-- Alarms that stand at a gateway, as its newest report has them: a CBOR list.
ALTER TABLE gateways ADD COLUMN alarms BLOB;
