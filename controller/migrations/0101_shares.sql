-- Of a full gateway the device with most edges makes room: how many each has, and the one that was quiet longest.
CREATE INDEX edges_by_device_and_last ON edges (gateway, member, mac, last);
