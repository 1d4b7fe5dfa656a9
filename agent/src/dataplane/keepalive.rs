//! The worker's side of the wire that the kernel is while no agent forwards: the beat, and taking over without a
//! frame that both forward.
//!
//! A frame comes to the packet sockets before it comes to the packet filter. So the sockets of a wire hear nothing
//! until the beat has told the kernel to stop: what they hear from then on the kernel drops. A worker that was held
//! up for longer than a beat lasts begins as after a start: what waits in the sockets the kernel has forwarded
//! meanwhile.
//!
//! While no port is a wire nothing depends on the beat, and the worker rests. The sentry wakes it before it writes the first
//! wire, so nothing has been forwarded by the kernel when the beat begins again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::dataplane::handle::LONGEST_TURN;
use crate::dataplane::outbox::PortQueue;
use crate::net::beat::{Beat, LIFE};
use crate::net::packet::{BATCH, FrameRing, PacketSocket, Unfit};
use crate::net::sentry::Pulse;

/// How often the worker beats.
pub(super) const EVERY: Duration = Duration::from_millis(70);

/// How much sooner than the kernel the worker takes its last beat for spent: the kernel counts in ticks of up to 10 ms.
const MARGIN: Duration = Duration::from_millis(30);

/// How long a wire may be cut off at most when the agent dies.
const PROMISE: Duration = Duration::from_millis(500);

// The kernel takes over when the last beat has run out.
const _: () = assert!(LIFE.as_millis() + EVERY.as_millis() < PROMISE.as_millis());
// A beat or two may fail without anybody noticing.
const _: () = assert!(3 * EVERY.as_millis() + MARGIN.as_millis() < LIFE.as_millis());

/// Fetches at most, when what waits in a socket is thrown away: a full buffer.
const DRAIN: usize = (16 << 20) / (64 * BATCH);

pub(super) struct Keepalive {
    beat: Beat,
    pulse: Arc<Pulse>,
    /// The last beat that went out.
    last: Option<Instant>,
    /// The last attempt.
    tried: Option<Instant>,
    /// The wires are left to the kernel since a beat failed for too long: their sockets hear nothing.
    left: bool,
    /// Whether the last attempt failed, and that was said.
    failing: bool,
    /// No port is a wire since the worker last looked, so that it needn't beat.
    resting: bool,
    /// The worker is ending, and the wires are the kernel's for good.
    ended: bool,
}

impl Keepalive {
    pub(super) fn new(beat: Beat, pulse: Arc<Pulse>) -> Self {
        Self {
            beat,
            pulse,
            last: None,
            tried: None,
            left: false,
            failing: false,
            resting: false,
            ended: false,
        }
    }

    /// Whether the kernel may have taken the worker for dead since its last beat.
    pub(super) fn late(&self) -> bool {
        !self.resting && !self.ended && spent(self.last)
    }

    /// How long the worker may wait for something to do.
    pub(super) fn longest_turn(&self) -> Duration {
        if self.resting { LONGEST_TURN } else { EVERY }
    }

    /// Whether the kernel forwards for this interface (0: the uplink) while no agent does.
    pub(super) fn is_wire(&self, index: usize) -> bool {
        let wires = self.pulse.wires();
        match index.checked_sub(1) {
            None => wires != 0,
            Some(place) => {
                wires.checked_shr(u32::try_from(place).unwrap_or(u32::MAX)).unwrap_or(0) & 1 != 0
            }
        }
    }

    /// Beats, if it is time to. To be called before frames are fetched.
    ///
    /// While no beat goes out the last one may run out. Then the wires are the kernel's until one does.
    pub(super) fn turn(&mut self, ports: &mut [PortQueue], frames: &mut FrameRing) {
        if self.ended {
            return;
        }
        let unneeded = self.pulse.wires() == 0 && self.last.is_some() && !self.left;
        if unneeded {
            self.resting = true;
            return;
        }
        let now = Instant::now();
        if std::mem::take(&mut self.resting) && !self.pulse.take_unguarded() && self.send(now) {
            return;
        }
        let early = self.tried.is_some_and(|tried| now.saturating_duration_since(tried) < EVERY);
        if early && (self.left || !self.late()) {
            return;
        }
        if !self.late() {
            let before = self.last;
            // Had it been held up before the packet went out, the beat before might have run out.
            if !self.send(now) || !spent(before) {
                return;
            }
        }
        self.take_over(ports, frames);
    }

    fn take_over(&mut self, ports: &mut [PortQueue], frames: &mut FrameRing) {
        let held_up = self.last.map(|last| last.elapsed());
        let mut discarded = 0;
        for (index, port) in ports.iter().enumerate() {
            if let Some(socket) = port.socket.as_ref().filter(|_| self.is_wire(index)) {
                complain(socket.deafen());
                discarded += discard(socket, frames);
            }
        }
        let now = Instant::now();
        self.left = !self.send(now);
        if self.left {
            return;
        }
        for socket in ports.iter().filter_map(|port| port.socket.as_ref()) {
            complain(socket.hear());
        }
        // From the beat to here nobody forwards.
        tracing::debug!(microseconds = now.elapsed().as_micros(), "the wires are the agent's");
        if let Some(held_up) = held_up.filter(|_| self.is_wire(0)) {
            tracing::warn!(
                milliseconds = held_up.as_millis(),
                discarded,
                "the packet worker couldn't beat; the kernel forwarded for it, and what waited is thrown away"
            );
        }
    }

    /// Whether the beat went out.
    fn send(&mut self, now: Instant) -> bool {
        self.tried = Some(now);
        let before = self.pulse.beat(now);
        let beaten = self.beat.beat();
        if beaten.is_err() {
            self.pulse.missed(&before);
        }
        match beaten {
            Ok(()) => {
                self.last = Some(now);
                self.failing = false;
            }
            Err(error) if !self.failing => {
                self.failing = true;
                tracing::warn!(
                    %error,
                    "the beat can't be sent (is `lo` up?): until it can, the kernel forwards where a port is a wire"
                );
            }
            Err(error) => tracing::trace!(%error, "the beat isn't sent"),
        }
        !self.failing
    }

    /// Leaves the wires to the kernel, for good. Their sockets hear nothing more.
    pub(super) fn farewell(&mut self, ports: &[PortQueue]) {
        self.ended = true;
        for (index, port) in ports.iter().enumerate() {
            if let Some(socket) = port.socket.as_ref().filter(|_| self.is_wire(index)) {
                complain(socket.deafen());
            }
        }
        self.pulse.end();
        if let Err(error) = self.beat.farewell() {
            tracing::debug!(%error, "the kernel takes over when the last beat has run out");
        }
    }
}

/// Whether the kernel may take a beat that was sent then for spent.
fn spent(beat: Option<Instant>) -> bool {
    beat.is_none_or(|beat| beat.elapsed() >= LIFE - MARGIN)
}

/// Throws away what waits in a socket that hears nothing more.
fn discard(socket: &PacketSocket, frames: &mut FrameRing) -> usize {
    let mut discarded = 0;
    for _ in 0..DRAIN {
        match frames.fetch(socket, &mut Unfit::default()) {
            Ok(0) | Err(_) => break,
            Ok(count) => discarded += count,
        }
    }
    discarded
}

fn complain(result: std::io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!(%error, "a port's packet filter program can't be changed");
    }
}

#[cfg(test)]
mod tests {
    use anteroom_lab::namespace::in_private_network;
    use anteroom_lab::topology::Host;

    use super::*;
    use crate::net::wiring::{PortWiring, Wiring};

    #[test]
    fn who_has_left_the_wires_for_good_beats_no_more() {
        if !in_private_network(
            "dataplane::keepalive::tests::who_has_left_the_wires_for_good_beats_no_more",
        ) {
            return;
        }
        let host = Host::create("gateway").unwrap();
        host.ip("link set lo up").unwrap();
        let beat = host.enter(Beat::open).unwrap().unwrap();
        let wire = PortWiring { wire: true, ..PortWiring::default() };
        let pulse = Arc::new(Pulse::new(&Wiring { ports: vec![wire] }));
        let mut keepalive = Keepalive::new(beat, Arc::clone(&pulse));
        let (mut ports, mut frames) = (Vec::new(), FrameRing::default());
        keepalive.turn(&mut ports, &mut frames);
        assert!(pulse.beating(), "{pulse:?}");
        keepalive.farewell(&ports);
        let left = Instant::now();
        while left.elapsed() < LIFE {
            keepalive.turn(&mut ports, &mut frames);
            assert!(!pulse.beating() && !keepalive.late(), "{:?}: {pulse:?}", left.elapsed());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
