//! Where there are many flows, a packet's isn't in the processor's caches, and handling the packet waits for memory several
//! times. Reads of which none needs another's result are waited for all at once: so flows of a group of packets are read
//! before any of these is handled. Nothing is decided here.

use super::Engine;
use super::hit::plain_frame;
use crate::batch::RxFrame;
use crate::flow::{FlowKey, FlowTable, Zone};
use crate::port::PortId;

/// Frames whose flows are read ahead together.
pub(super) const GROUP: usize = FlowTable::READ_AHEAD;

/// A core's own caches hold fewer flows than this.
const MANY: usize = 8_192;

impl Engine {
    /// Reads the flows of these frames, where that is worth something.
    #[inline]
    pub(super) fn look_ahead(&self, port: PortId, frames: &[RxFrame<'_>]) {
        if frames.len() > 1 && self.flows.len() >= MANY {
            self.read_flows(port, frames);
        }
    }

    /// The same, however many flows there are.
    pub(super) fn read_flows(&self, port: PortId, frames: &[RxFrame<'_>]) {
        let mut hashes = [0; GROUP];
        let mut count = 0;
        for frame in frames {
            let Some((header, packet)) = plain_frame(frame) else { continue };
            let here = if port.is_uplink() { header.destination } else { header.source };
            let Some(id) = self.stations.find(here) else { continue };
            let (key, _) = FlowKey::new(Zone::outside(id), &packet.tuple());
            if let Some(place) = hashes.get_mut(count) {
                *place = self.flows.hash(&key);
                count += 1;
            }
        }
        self.flows.read_ahead(hashes.get(..count).unwrap_or_default());
    }
}
