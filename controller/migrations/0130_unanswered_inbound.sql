-- Of a device's edges that nobody answered those that others opened make room before its own.
DROP INDEX edges_never_answered_by_device;
CREATE INDEX edges_never_answered_by_device ON edges (gateway, member, mac, outbound, last) WHERE packets_out = 0 OR packets_in = 0;
-- What found no room before it was kept when can't be news for good: it was before the gateway was last heard of.
UPDATE gateways SET sightings_away_at = last_seen WHERE sightings_away > 0 AND sightings_away_at IS NULL;
