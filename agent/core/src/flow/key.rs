//! What makes two packets part of the same flow.

use std::hash::{Hash, Hasher};
use std::net::Ipv4Addr;

use crate::station::StationId;
use crate::wire::FiveTuple;

/// Which stations of this gateway a flow touches. Devices with the same factory-default address never share a
/// flow, since their stations differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Zone(u32);

impl Zone {
    const OUTSIDE: u32 = 0xffff;

    /// Between a station here and the outside.
    pub(crate) const fn outside(station: StationId) -> Self {
        Self(((station.0 as u32) << 16) | Self::OUTSIDE)
    }

    /// Between two stations here.
    pub(crate) const fn between(a: StationId, b: StationId) -> Self {
        let (low, high) = if a.0 <= b.0 { (a.0, b.0) } else { (b.0, a.0) };
        Self(((low as u32) << 16) | high as u32)
    }

    /// The station here that it is between `station` and.
    #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
    pub(crate) const fn other(self, station: StationId) -> Option<StationId> {
        let (low, high) = ((self.0 >> 16) as u16, self.0 as u16);
        match (high as u32 == Self::OUTSIDE, low == station.0) {
            (true, _) => None,
            (false, true) => Some(StationId(high)),
            (false, false) => Some(StationId(low)),
        }
    }
}

/// A flow's key: the same for both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FlowKey {
    zone: Zone,
    low: (Ipv4Addr, u16),
    high: (Ipv4Addr, u16),
    protocol: u8,
}

impl Hash for FlowKey {
    /// In two words, since each packet's key is hashed.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let addresses = (u64::from(self.low.0.to_bits()) << 32) | u64::from(self.high.0.to_bits());
        let zone = self.zone.0 ^ (u32::from(self.protocol) << 24);
        let ports = (u64::from(self.low.1) << 16) | u64::from(self.high.1);
        state.write_u64(addresses);
        state.write_u64((u64::from(zone) << 32) | ports);
    }
}

impl FlowKey {
    /// The key of the flow that a packet with `tuple` belongs to, and whether the packet goes from its lower
    /// end to its higher.
    pub(crate) fn new(zone: Zone, tuple: &FiveTuple) -> (Self, bool) {
        let source = (tuple.source, tuple.source_port);
        let destination = (tuple.destination, tuple.destination_port);
        let upwards = source <= destination;
        let (low, high) = if upwards { (source, destination) } else { (destination, source) };
        (Self { zone, low, high, protocol: tuple.protocol }, upwards)
    }

    /// The tuple of a packet of this flow in one direction.
    pub(crate) const fn tuple(&self, upwards: bool) -> FiveTuple {
        let (from, to) = if upwards { (self.low, self.high) } else { (self.high, self.low) };
        FiveTuple {
            source: from.0,
            destination: to.0,
            source_port: from.1,
            destination_port: to.1,
            protocol: self.protocol,
        }
    }

    pub(crate) const fn protocol(&self) -> u8 {
        self.protocol
    }

    pub(crate) const fn zone(&self) -> Zone {
        self.zone
    }
}
