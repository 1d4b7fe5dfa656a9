-- When an edge's traffic was: hours of the week and days, as proto's Rhythm has them in bytes. None of edges from before.
ALTER TABLE edges ADD COLUMN rhythm BLOB;
