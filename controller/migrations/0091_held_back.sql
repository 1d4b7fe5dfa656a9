-- Devices of a gateway that aren't in the mode that was signed, for lack of approvals, as its newest report has them: a CBOR list.
ALTER TABLE gateways ADD COLUMN held_back BLOB;
