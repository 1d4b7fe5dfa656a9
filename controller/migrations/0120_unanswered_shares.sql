-- Of a full gateway each device's edges that nobody answered make room by themselves: how many it has, and the one that was quiet longest.
CREATE INDEX edges_never_answered_by_device ON edges (gateway, member, mac, last) WHERE packets_out = 0 OR packets_in = 0;
DROP INDEX edges_never_answered;
