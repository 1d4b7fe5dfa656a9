-- Edges with packets from one side only, oldest first: they make room when a gateway's edges are full.
CREATE INDEX edges_never_answered ON edges (gateway, last) WHERE packets_out = 0 OR packets_in = 0;
