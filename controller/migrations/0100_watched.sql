-- When the gateway reported anything, whatever it told: proto's Rhythm in bytes. None of gateways that haven't since this was kept.
ALTER TABLE gateways ADD COLUMN watched BLOB;
-- Answered edges that were quiet for long and made room for new ones.
ALTER TABLE gateways ADD COLUMN edges_forgotten INTEGER NOT NULL DEFAULT 0;
