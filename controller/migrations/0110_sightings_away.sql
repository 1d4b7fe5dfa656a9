-- When a sighting last found no room at the gateway, or made some. None where that was before this was kept.
ALTER TABLE gateways ADD COLUMN sightings_away_at INTEGER;
