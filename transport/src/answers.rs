//! Counts what the other end of a QUIC connection has acknowledged, and asks it for an acknowledgement.
//!
//! How many acknowledgements came in says nothing: the other end sends those of old packets again beside whatever else it
//! sends, for as long as it doesn't hear that they have arrived. Only whoever controls congestion is told of what is
//! acknowledged for the first time, so the count is kept there.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics};
use quinn::{Connection, VarInt};
use quinn_proto::RttEstimator;

/// Bytes on all streams that whoever connects lets the other end send ahead of what is read.
pub(crate) const RECEIVE_WINDOW: u32 = 8 * 1024 * 1024;

/// Makes congestion controllers that count.
pub(crate) struct Counting<F>(pub(crate) Arc<F>);

impl<F: ControllerFactory + Send + Sync + 'static> ControllerFactory for Counting<F> {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Counted { inner: Arc::clone(&self.0).build(now, current_mtu), answers: 0 })
    }
}

/// A congestion controller, and how often it was told of packets that had arrived.
struct Counted {
    inner: Box<dyn Controller>,
    answers: u64,
}

impl Controller for Counted {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.answers += 1;
        self.inner.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.inner.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.inner.window()
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { inner: self.inner.clone_box(), answers: self.answers })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// How often the other end has acknowledged something that it hadn't before.
pub(crate) fn of(connection: &Connection) -> u64 {
    let counted = connection.congestion_state().into_any().downcast::<Counted>();
    counted.map_or(0, |counted| counted.answers)
}

/// Has the other end acknowledge something, whatever else waits to be sent: one byte more that it may send, which is taken back
/// with the next that are read. Whoever connected asks; the other end never does.
pub(crate) fn ask(connection: &Connection) {
    if connection.side().is_client() {
        connection.set_receive_window(VarInt::from_u32(RECEIVE_WINDOW + 1));
        connection.set_receive_window(VarInt::from_u32(RECEIVE_WINDOW));
    }
}
