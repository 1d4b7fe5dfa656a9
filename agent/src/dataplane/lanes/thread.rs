//! A lane thread: seals and opens for the lanes that it runs, and does their socket's work.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anteroom_agent_core::batch::{RxDatagram, VlanTag};
use anteroom_agent_core::lane::{self, Lanes, OpenedInLane, Taken};
use anteroom_agent_core::peer::open_room;
use anteroom_agent_core::port::PortId;
use anteroom_agent_core::sink::Sink;
use anteroom_agent_core::vnet::VnetHeader;
use anteroom_proto::verdict::DropReason;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::haul::{Haul, MESSAGES};
use super::link::Far;
use super::meter::Meter;
use super::parcel::Content;
use crate::dataplane::handle::Heartbeat;
use crate::dataplane::outbox::Datagrams;
use crate::dataplane::status::UnderlayCounters;
use crate::net::udp::{DatagramRing, UdpSocket};

/// It turns its loop at least this often, so that a longer silence means that it hangs.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// After so long without work, memory is given back that work made it touch.
const QUIET: Duration = Duration::from_secs(2);

/// Parcels unpacked before the socket gets its turn.
const PARCELS_A_TURN: usize = 2;

/// What a lane thread begins with.
pub(super) struct Start {
    /// Its number, from 1 on.
    pub(super) owner: u8,
    pub(super) lanes: Lanes,
    pub(super) socket: UdpSocket,
    pub(super) link: Far,
    pub(super) meter: Arc<Meter>,
    pub(super) heartbeat: Arc<Heartbeat>,
}

pub(super) struct LaneThread {
    desk: Desk,
    way: Way,
    ring: DatagramRing,
    heartbeat: Arc<Heartbeat>,
}

/// The lanes, and what goes to and fro between the threads.
struct Desk {
    owner: u8,
    lanes: Lanes,
    link: Far,
    /// The haul that is being filled.
    haul: Option<Haul>,
    meter: Arc<Meter>,
}

/// The thread's sink: datagrams alone leave here.
struct Way {
    socket: UdpSocket,
    datagrams: Datagrams,
    counters: UnderlayCounters,
}

impl LaneThread {
    pub(super) fn new(start: Start) -> Self {
        let Start { owner, lanes, socket, link, meter, heartbeat } = start;
        let (datagrams, counters) = (Datagrams::default(), UnderlayCounters::default());
        Self {
            desk: Desk { owner, lanes, link, haul: None, meter },
            way: Way { socket, datagrams, counters },
            ring: DatagramRing::default(),
            heartbeat,
        }
    }

    /// Runs until the packet thread has gone.
    pub(super) fn run(mut self) -> io::Result<()> {
        self.desk.meter.begin();
        let mut loaded = None;
        while !self.desk.link.is_abandoned() {
            let now = Instant::now();
            self.heartbeat.beat(now);
            let unpacked = self.unpack(now);
            let received = self.receive(now);
            if self.desk.lanes.poll_timeout().is_some_and(|due| due <= now) {
                self.desk.lanes.handle_timeout(now, &mut self.way);
            }
            self.way.flush();
            self.desk.tell(&mut self.way);
            self.desk.meter.show(&self.way.counters);
            if unpacked || received {
                loaded = Some(now);
            } else if loaded.is_some_and(|at| now.saturating_duration_since(at) >= QUIET) {
                loaded = None;
                self.shrink();
            }
            if !unpacked && !received {
                self.way.counters.missed += self.way.socket.take_missed();
                self.sleep(now)?;
            }
        }
        Ok(())
    }

    /// Gives back the memory that a load made it touch.
    fn shrink(&mut self) {
        self.ring.shrink();
        self.way.datagrams.shrink();
        self.desk.link.shrink();
    }

    /// Does what the packet thread sent. Says whether that was anything.
    fn unpack(&mut self, now: Instant) -> bool {
        for turn in 0..PARCELS_A_TURN {
            let Some(mut parcel) = self.desk.link.parcel() else { return turn > 0 };
            parcel.unpack(|content| self.desk.take(content, now, &mut self.way));
            self.way.flush();
            self.desk.link.give_back(parcel);
        }
        true
    }

    /// Opens what came to the socket, or a turn's share of it. Says whether that was anything. What finds no room in a
    /// haul stays in the socket.
    fn receive(&mut self, now: Instant) -> bool {
        let (desk, way) = (&mut self.desk, &mut self.way);
        let most = desk.link.spare_hauls() * MESSAGES;
        if most == 0 || !way.socket.hears() {
            return false;
        }
        match self.ring.fetch_at_most(&way.socket, most) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => {
                tracing::trace!(%error, "receiving datagrams of lanes");
                return false;
            }
        }
        let mut truncated = 0;
        way.counters.received += self.ring.lend(&mut truncated, |messages| {
            for RxDatagram { from, segment, bytes } in messages {
                for datagram in bytes.chunks((*segment).max(1)) {
                    desk.sort(*from, datagram, now, way);
                }
            }
        });
        way.counters.truncated += truncated;
        true
    }

    /// Waits for a parcel, a datagram or the time when something is due.
    fn sleep(&mut self, now: Instant) -> io::Result<()> {
        let due = self.desk.lanes.poll_timeout();
        let wait =
            due.map_or(LONGEST_SLEEP, |due| due.saturating_duration_since(now).min(LONGEST_SLEEP));
        // In milliseconds, rounded up, so that what is due is due when it wakes.
        let wait = u16::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
        let spare = self.desk.link.spare_hauls() > 0;
        let hears = self.way.socket.hears() && spare;
        self.desk.link.starve(!spare);
        let sleeper = self.desk.link.own.clone();
        sleeper.doze();
        // What was sent, or given back, before it dozed woke nobody.
        let link = &mut self.desk.link;
        let missed = link.has_parcel() || link.is_abandoned() || (!spare && link.spare_hauls() > 0);
        if !missed {
            let own = PollFd::new(sleeper.as_fd(), PollFlags::POLLIN);
            let socket = PollFd::new(self.way.socket.as_fd(), PollFlags::POLLIN);
            let mut both = [own, socket];
            let watched = if hears { &mut both[..] } else { &mut both[..1] };
            match poll(watched, PollTimeout::from(wait)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        sleeper.rouse();
        Ok(())
    }
}

impl Desk {
    /// One thing that the packet thread sent.
    fn take(&mut self, content: Content<'_>, now: Instant, way: &mut Way) {
        match content {
            Content::Order(order) => self.lanes.carry_out(order, now, way),
            Content::Job(mut job) => match self.lanes.seal(&mut job, now, way) {
                Ok(Taken::Yes) => {}
                // The engine thought that there was a session. The lanes have an event for it, which goes along.
                Ok(Taken::NoSession) => {
                    let taken =
                        self.room(job.packet.len()).is_some_and(|haul| haul.give_back(&job));
                    if !taken {
                        self.meter.count(DropReason::TunnelDown, 1);
                    }
                }
                Ok(Taken::NoRoom) => self.meter.count(DropReason::QueueFull, 1),
                Err(reason) => self.meter.count(reason, 1),
            },
            Content::Datagram { from, bytes } => self.open(from, bytes, now, way),
        }
    }

    /// A datagram from the socket: one for these lanes is opened, any other handed on.
    fn sort(&mut self, from: SocketAddr, datagram: &[u8], now: Instant, way: &mut Way) {
        if lane::owner_of(datagram) == Some(self.owner) {
            return self.open(from, datagram, now, way);
        }
        let taken = self.room(datagram.len()).is_some_and(|haul| haul.stray(from, datagram));
        if !taken {
            self.meter.count(DropReason::QueueFull, 1);
        }
    }

    fn open(&mut self, from: SocketAddr, datagram: &[u8], now: Instant, way: &mut Way) {
        let wanted = open_room(datagram.len());
        let _ = self.room(wanted);
        let room = self.haul.as_mut().and_then(|haul| haul.room(wanted));
        let Some(room) = room else { return self.meter.count(DropReason::QueueFull, 1) };
        match self.lanes.open_datagram(from, datagram, room, now, way) {
            OpenedInLane::Packet { at, packet } | OpenedInLane::Part { at, packet } => {
                let len = packet.len();
                if let Some(haul) = &mut self.haul {
                    haul.keep(at, len);
                }
            }
            OpenedInLane::Handled => {}
            OpenedInLane::Dropped(reason) => self.meter.count(reason, 1),
        }
    }

    /// The haul that is being filled, with so much room. A full one is sent, and the next begun. None while there is
    /// none.
    fn room(&mut self, wanted: usize) -> Option<&mut Haul> {
        if self.haul.as_mut().is_some_and(|haul| haul.room(wanted).is_none()) {
            self.send();
        }
        if self.haul.is_none() {
            self.haul = self.link.haul();
        }
        self.haul.as_mut()
    }

    fn send(&mut self) {
        if let Some(mut haul) = self.haul.take() {
            // Before packets that come back: what their flows send from now on is to follow those.
            haul.events.extend(std::iter::from_fn(|| self.lanes.poll_event()));
            self.link.send(haul);
        }
    }

    /// Sends the packet thread what there is for it.
    fn tell(&mut self, way: &mut Way) {
        if self.haul.is_none() {
            self.haul = self.link.haul();
        }
        // Events wait in the lanes while there is no haul.
        let Some(haul) = &mut self.haul else { return };
        haul.events.extend(std::iter::from_fn(|| self.lanes.poll_event()));
        haul.too_big_to.extend(way.socket.take_too_big());
        if !haul.is_empty() {
            return self.send();
        }
        if let Some(haul) = self.haul.take() {
            self.link.keep(haul);
        }
    }
}

impl Way {
    fn flush(&mut self) {
        self.datagrams.flush(&mut self.socket, &mut self.counters);
    }
}

impl Sink for Way {
    fn frame(&mut self, _: PortId, _: VnetHeader, _: Option<VlanTag>, _: &[&[u8]]) {}

    fn datagram(
        &mut self,
        to: SocketAddr,
        dscp_ecn: u8,
        capacity: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) {
        let way = (&mut self.socket, &mut self.counters);
        self.datagrams.put(way, to, dscp_ecn, capacity, write);
    }
}
