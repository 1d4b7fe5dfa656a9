-- Why what a gateway offered isn't to be approved as it is: 1 where it offered two different keys upon one order, 2 where
-- it comes from a backup and the gateway hasn't offered it again since. The row of a withdrawal stays until the next order.
ALTER TABLE rekeys ADD COLUMN doubt INTEGER NOT NULL DEFAULT 0;
