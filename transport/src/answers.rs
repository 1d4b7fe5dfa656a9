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

use crate::egress;

/// Bytes on all streams that whoever connects lets the other end send ahead of what is read.
pub(crate) const RECEIVE_WINDOW: u32 = 8 * 1024 * 1024;

/// Makes congestion controllers that count.
pub(crate) struct Counting<F>(pub(crate) Arc<F>);

impl<F: ControllerFactory + Send + Sync + 'static> ControllerFactory for Counting<F> {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let inner = Arc::clone(&self.0).build(now, current_mtu);
        Box::new(Counted { inner, answers: 0, ways: Ways::new(egress::taken()) })
    }
}

/// What is sent by another way out of the machine before anything came back by it, as of any path that is new (RFC 9002, 7.2).
const FIRST_WINDOW: u64 = 14_720;

/// No packet is longer.
const LONGEST: u64 = 1_500;

/// What was sent by an earlier way out of the machine, and isn't acknowledged. It has no part in the window of the one that is taken now
/// (RFC 9000, 9.4): where it filled that, nothing would go by the other until QUIC asks by itself, after ever longer times.
#[derive(Debug, Clone, Copy)]
struct Ways {
    /// What is under way.
    in_flight: u64,
    /// How often another way had been taken as of what was sent last.
    taken: u64,
    /// What was under way then, until something comes back.
    before: u64,
}

impl Ways {
    const fn new(taken: u64) -> Self {
        Self { in_flight: 0, taken, before: 0 }
    }

    /// A packet is sent. Of several that leave together quinn tells the length of all so far.
    fn note_sent(&mut self, bytes: u64, taken: u64) {
        if std::mem::replace(&mut self.taken, taken) != taken {
            self.before = self.in_flight;
        }
        self.in_flight = self.in_flight.saturating_add(bytes.min(LONGEST));
    }

    /// Something came back, and so much is still under way.
    const fn note_heard(&mut self, in_flight: u64) {
        (self.in_flight, self.before) = (in_flight, 0);
    }

    const fn note_lost(&mut self, bytes: u64) {
        self.in_flight = self.in_flight.saturating_sub(bytes);
    }

    /// What may be under way at least, where nothing has come back yet by the way that is taken now.
    const fn window(&self, taken: u64) -> u64 {
        let before = if self.taken == taken { self.before } else { self.in_flight };
        if before > 0 { before.saturating_add(FIRST_WINDOW) } else { 0 }
    }
}

/// A congestion controller, how often it was told of packets that had arrived, and what it allows where another way is taken.
struct Counted {
    inner: Box<dyn Controller>,
    answers: u64,
    ways: Ways,
}

impl Controller for Counted {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.ways.note_sent(bytes, egress::taken());
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
        self.ways.note_heard(in_flight);
        self.inner.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.ways.note_lost(lost_bytes);
        self.inner.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.inner.window().max(self.ways.window(egress::taken()))
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { inner: self.inner.clone_box(), answers: self.answers, ways: self.ways })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_by_an_earlier_way_leaves_room_by_the_next_until_something_comes_back() {
        let mut ways = Ways::new(3);
        assert_eq!(ways.window(4), 0, "nothing is under way");
        (0..50).for_each(|_| ways.note_sent(1_000, 3));
        assert_eq!(ways.window(3), 0, "the same way");
        assert_eq!(ways.window(4), 50_000 + FIRST_WINDOW);
        // However much of it is used, it grows by nothing but a further way.
        for _ in 0..10 {
            ways.note_sent(1_200, 4);
            assert_eq!(ways.window(4), 50_000 + FIRST_WINDOW);
        }
        assert_eq!(ways.window(5), 62_000 + FIRST_WINDOW);
        ways.note_lost(40_000);
        assert_eq!(ways.window(5), 22_000 + FIRST_WINDOW);
        ways.note_heard(12_000);
        assert_eq!(ways.window(4), 0);
        ways.note_sent(1_200, 4);
        assert_eq!(ways.window(4), 0);
        ways.note_heard(0);
        assert_eq!(ways.window(5), 0);
    }

    #[test]
    fn the_window_of_a_connection_opens_as_another_way_is_taken() {
        let now = Instant::now();
        let factory = Arc::new(Counting(Arc::new(quinn::congestion::CubicConfig::default())));
        let mut control = factory.build(now, 1_200);
        let full = control.initial_window();
        let packets = full / LONGEST;
        (1..=packets).for_each(|packet| control.on_sent(now, packet * LONGEST, packet));
        let _alone = egress::steering();
        egress::steer(Arc::new(|_, _| {}));
        let window = packets * LONGEST + FIRST_WINDOW;
        assert_eq!([control.window(), control.clone_box().window()], [window; 2]);
    }
}
