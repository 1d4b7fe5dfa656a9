//! The worker's side of the wire that the kernel is while no agent forwards: the beat, and taking over without a
//! frame that both forward.
//!
//! A frame comes to the packet sockets before it comes to the packet filter. So the sockets of a wire hear nothing
//! until the beat has told the kernel to stop: what they hear from then on the kernel drops. A worker that was held
//! up for longer than a beat lasts begins as after a start: what waits in the sockets the kernel has forwarded
//! meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::dataplane::outbox::PortQueue;
use crate::net::beat::{Beat, LIFE};
use crate::net::packet::{BATCH, FrameRing, PacketSocket, Unfit};
use crate::net::sentry::Pulse;

/// How often the worker beats.
pub(super) const EVERY: Duration = Duration::from_millis(50);

/// How much sooner than the kernel the worker takes its last beat for spent: the kernel counts in ticks of up to 10 ms.
const MARGIN: Duration = Duration::from_millis(30);

/// Fetches at most, when what waits in a socket is thrown away: a full buffer.
const DRAIN: usize = (16 << 20) / (64 * BATCH);

pub(super) struct Keepalive {
    beat: Beat,
    pulse: Arc<Pulse>,
    last: Option<Instant>,
}

impl Keepalive {
    pub(super) fn new(beat: Beat, pulse: Arc<Pulse>) -> Self {
        Self { beat, pulse, last: None }
    }

    /// Whether the kernel may have taken the worker for dead since its last beat.
    pub(super) fn late(&self) -> bool {
        self.last.is_none_or(|last| last.elapsed() >= LIFE - MARGIN)
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
    pub(super) fn turn(&mut self, ports: &mut [PortQueue], frames: &mut FrameRing) {
        let now = Instant::now();
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < EVERY) {
            return;
        }
        if !self.late() {
            self.send(now);
            // Had it been held up before the packet went out, the beat before might have run out.
            if !self.late_since(now) {
                return;
            }
        }
        self.take_over(ports, frames);
    }

    fn late_since(&mut self, beaten: Instant) -> bool {
        let before = self.last.replace(beaten);
        before.is_none_or(|before| before.elapsed() >= LIFE - MARGIN)
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
        self.send(now);
        self.last = Some(now);
        for socket in ports.iter().filter_map(|port| port.socket.as_ref()) {
            complain(socket.hear());
        }
        // From the beat to here nobody forwards.
        tracing::debug!(microseconds = now.elapsed().as_micros(), "the wires are the agent's");
        if let Some(held_up) = held_up.filter(|_| self.is_wire(0)) {
            tracing::warn!(
                milliseconds = held_up.as_millis(),
                discarded,
                "the packet worker was held up; the kernel forwarded for it, and what waited is thrown away"
            );
        }
    }

    fn send(&mut self, now: Instant) {
        match self.beat.beat() {
            Ok(()) => self.pulse.beat(now),
            Err(error) => tracing::trace!(%error, "the beat isn't sent"),
        }
    }

    /// Leaves the wires to the kernel. Their sockets hear nothing more.
    pub(super) fn farewell(&mut self, ports: &[PortQueue]) {
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
