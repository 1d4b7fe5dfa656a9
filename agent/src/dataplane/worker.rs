//! The worker thread: the engine and all sockets, driven by epoll. Nobody else touches them.

mod lanes;
mod relays;
mod report;

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anteroom_agent_core::engine::{Engine, Retired};
use anteroom_agent_core::port::PortId;
use anteroom_agent_core::report::EngineReport;
use anteroom_transport::direct::shared::Shared;
use anteroom_transport::egress;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use tokio::sync::{mpsc, oneshot, watch};

use crate::dataplane::handle::{Command, Heartbeat};
use crate::dataplane::keepalive::Keepalive;
use crate::dataplane::one_port;
use crate::dataplane::outbox::Outbox;
use crate::dataplane::relayed::{Delivery, Inlet};
use crate::dataplane::status::Offloads;
use crate::dataplane::timer::Timer;
use crate::net::offload::Offload;
use crate::net::packet::{FrameRing, PacketSocket, Unfit};
use crate::net::udp::{DatagramRing, UdpSocket};
use crate::slice;
use report::Failures;

/// Events fetched with one system call at most.
const EVENTS: usize = 32;

/// Commands carried out before frames get their turn again.
const COMMANDS_A_TURN: usize = 8;

/// Fetches from lane 0's socket, while that is emptied, until ports get a turn: half a millisecond's work.
const FETCHES_IN_A_ROW: usize = 2;

/// Fetches from each interface at the end, for what came in before it.
const LAST_FETCHES: usize = 8;

/// After so long without large batches, memory is given back that they made the worker touch.
const QUIET: Duration = Duration::from_secs(2);

/// For how long peers that should answer don't, and how many questions that are, when connections are doubted, too. Where it
/// goes on, connections know by themselves.
const DOUBT: (Duration, RangeInclusive<u32>) = (Duration::from_millis(250), 2..=8);

const WAKE: u64 = u64::MAX;
const UNDERLAY: u64 = u64::MAX - 1;
const LANES: u64 = u64::MAX - 2;
const LANE_THREADS: u64 = u64::MAX - 3;
const TIMER: u64 = u64::MAX - 4;

/// What the worker begins with.
pub(super) struct Start {
    pub(super) engine: Engine,
    /// Name and interface of the uplink and the ports.
    pub(super) interfaces: Vec<(String, String)>,
    /// Their offloads.
    pub(super) offloads: Vec<Offloads>,
    pub(super) outbox: Outbox,
    /// Whether the kernel gives lanes' datagrams to their own socket.
    pub(super) steering: Offload,
    /// What is handed over to peers' QUIC, and comes from there, where that shares the port.
    pub(super) one_port: Option<Arc<Shared>>,
    pub(super) commands: mpsc::Receiver<Command>,
    /// What relays brought.
    pub(super) brought: Delivery,
    pub(super) inlet: Inlet,
    pub(super) wake: Arc<EventFd>,
    pub(super) heartbeat: Arc<Heartbeat>,
    pub(super) keepalive: Keepalive,
    /// Ports whose interface went away.
    pub(super) lost: mpsc::Sender<PortId>,
    /// Whether the engine lets the kernel merge.
    pub(super) wants_gro: watch::Sender<bool>,
    /// Whether the uplink and each port are open.
    pub(super) open: watch::Sender<Vec<bool>>,
    /// Who drops what views made void.
    pub(super) retired: mpsc::Sender<Retired>,
}

pub(super) struct Worker {
    engine: Engine,
    epoll: Epoll,
    timer: Timer,
    outbox: Outbox,
    frames: FrameRing,
    datagrams: DatagramRing,
    bulk: DatagramRing,
    /// The worker's number in the kernel.
    thread: u32,
    /// Whether the kernel gives it short turns.
    short_turns: Option<Offload>,
    steering: Offload,
    one_port: Option<Arc<Shared>>,
    interfaces: Vec<(String, String)>,
    offloads: Vec<Offloads>,
    commands: mpsc::Receiver<Command>,
    brought: Delivery,
    inlet: Inlet,
    wake: Arc<EventFd>,
    heartbeat: Arc<Heartbeat>,
    keepalive: Keepalive,
    lost: mpsc::Sender<PortId>,
    wants_gro: watch::Sender<bool>,
    open: watch::Sender<Vec<bool>>,
    retired: mpsc::Sender<Retired>,
    reported: Failures,
    /// Who waits for a report.
    reports: Vec<oneshot::Sender<EngineReport>>,
    /// Datagrams that the underlay's interface didn't take for their size, as far as the engine knows of them.
    too_big: u64,
    /// Questions to peers that should have answered, when they were last counted.
    unanswered: u32,
    ended: Option<oneshot::Sender<()>>,
}

impl Worker {
    /// Registers all sockets.
    pub(super) fn new(start: Start) -> io::Result<Self> {
        let worker = Self {
            engine: start.engine,
            epoll: Epoll::new(nix::sys::epoll::EpollCreateFlags::EPOLL_CLOEXEC)?,
            timer: Timer::new()?,
            frames: FrameRing::default(),
            datagrams: DatagramRing::default(),
            bulk: DatagramRing::default(),
            thread: 0,
            short_turns: None,
            steering: start.steering,
            one_port: start.one_port,
            offloads: start.offloads,
            interfaces: start.interfaces,
            outbox: start.outbox,
            commands: start.commands,
            brought: start.brought,
            inlet: start.inlet,
            wake: start.wake,
            heartbeat: start.heartbeat,
            keepalive: start.keepalive,
            lost: start.lost,
            wants_gro: start.wants_gro,
            open: start.open,
            retired: start.retired,
            reported: Failures::default(),
            reports: Vec::new(),
            too_big: 0,
            unanswered: 0,
            ended: None,
        };
        worker.epoll.add(&worker.wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        worker.epoll.add(&worker.timer, EpollEvent::new(EpollFlags::EPOLLIN, TIMER))?;
        let underlay = EpollEvent::new(EpollFlags::EPOLLIN, UNDERLAY);
        worker.epoll.add(&worker.outbox.underlay, underlay)?;
        if let Some(socket) = worker.outbox.lanes.as_ref().filter(|socket| socket.hears()) {
            worker.epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, LANES))?;
        }
        worker.watch_lane_threads()?;
        for (index, queue) in worker.outbox.ports.iter().enumerate() {
            if let Some(socket) = &queue.socket {
                worker.epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
            }
        }
        worker.tell_open();
        Ok(worker)
    }

    /// Runs until it is told to end.
    pub(super) fn run(mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let mut loaded = None;
        self.thread = u32::try_from(nix::unistd::gettid().as_raw()).unwrap_or(0);
        self.short_turns = Some(slice::ask());
        self.tell_gro();
        while self.ended.is_none() {
            let now = Instant::now();
            self.heartbeat.beat(now);
            if let Some(tap) = &mut self.outbox.tap {
                tap.tick(now);
            }
            self.keepalive.turn(&mut self.outbox.ports, &mut self.frames);
            if loaded.is_some_and(|at| now.saturating_duration_since(at) >= QUIET) {
                loaded = None;
                self.shrink();
            }
            self.note_too_big(now);
            let mut due = self.engine.poll_timeout().map(|(due, _)| due);
            if due.is_some_and(|due| due <= now) {
                self.engine.handle_timeout(now, &mut self.outbox);
                self.flush();
                self.tell_gro();
                self.retire();
                self.answer_reports(now);
                self.note_unanswered(now);
                due = self.engine.poll_timeout().map(|(due, _)| due);
            }
            self.forget_lost_ports();
            let wait = self.wait(due, now);
            let count = match self.epoll.wait(&mut events, wait) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(error) => return Err(error.into()),
            };
            self.rouse();
            self.keepalive.turn(&mut self.outbox.ports, &mut self.frames);
            // What came through a tunnel has come furthest. It goes first.
            let underlay = events[..count].iter().position(|event| event.data() == UNDERLAY);
            if let Some(at) = underlay {
                events[..=at].rotate_right(1);
            }
            for event in &events[..count] {
                match event.data() {
                    WAKE => {
                        self.carry_out();
                        self.receive_relayed();
                        self.receive_strays();
                    }
                    UNDERLAY => {
                        self.receive_datagrams();
                    }
                    LANES => self.receive_bulk(),
                    // It is armed anew before the next wait.
                    TIMER | LANE_THREADS => {}
                    port => self.receive_frames(port),
                }
                self.flush();
            }
            self.receive_hauls();
            let large = self.frames.take_large() | self.datagrams.take_large();
            if large | self.bulk.take_large() | self.took_hauls() {
                loaded = Some(now);
            }
        }
        let ended = self.ended.take();
        self.hand_over();
        drop(self);
        if let Some(ended) = ended {
            // Who asked may have gone.
            let _ = ended.send(());
        }
        Ok(())
    }

    /// How long to wait, where the engine has something to do at `due`.
    fn wait(&mut self, due: Option<Instant>, now: Instant) -> EpollTimeout {
        if !self.doze() {
            return EpollTimeout::ZERO;
        }
        let longest = now + self.keepalive.longest_turn();
        let due = due.map_or(longest, |due| due.min(longest));
        match self.timer.wake_by(due, now) {
            Ok(()) => EpollTimeout::NONE,
            Err(error) => {
                tracing::debug!(%error, "the timer can't be armed");
                timeout(due.saturating_duration_since(now))
            }
        }
    }

    /// Gives back the memory that a load made it touch: the rooms of large batches.
    fn shrink(&mut self) {
        self.outbox.shrink();
        self.frames.shrink();
        self.datagrams.shrink();
        self.bulk.shrink();
    }

    /// Leaves the wires to the kernel. What came in before is still the agent's to forward.
    fn hand_over(&mut self) {
        self.keepalive.farewell(&self.outbox.ports);
        for _ in 0..LAST_FETCHES {
            self.serve_ports();
        }
    }

    fn receive_frames(&mut self, token: u64) {
        let Some(id) = port(token) else { return };
        let Some(queue) = self.outbox.ports.get_mut(id.index()) else { return };
        let Some(socket) = &queue.socket else { return };
        let mut unfit = Unfit::default();
        match self.frames.fetch(socket, &mut unfit) {
            Ok(_) => {}
            Err(error) if gone(&error) => queue.lost = true,
            Err(error) => tracing::trace!(%error, port = %id, "receiving frames"),
        }
        if self.keepalive.late() && self.keepalive.is_wire(id.index()) {
            // While the worker was held up between its last beat and this fetch, the kernel may have forwarded these.
            self.keepalive.turn(&mut self.outbox.ports, &mut self.frames);
            return;
        }
        let (engine, outbox) = (&mut self.engine, &mut self.outbox);
        let mut received = 0;
        self.frames.lend(&mut unfit, |frames| {
            received = frames.len();
            outbox.look_at(id, frames);
            engine.handle_frames(id, frames, Instant::now(), outbox);
        });
        if let Some(queue) = self.outbox.ports.get_mut(id.index()) {
            queue.counters.received += received as u64;
            queue.counters.truncated += unfit.truncated;
            queue.counters.unknown_gso += unfit.unknown_gso;
        }
    }

    /// Says whether anything had come.
    fn receive_datagrams(&mut self) -> bool {
        // ICMP errors may come back here; they concern one peer at most, whose silence the engine notices.
        let fetched = self.datagrams.fetch(&self.outbox.underlay);
        let some = note_fetched(&fetched);
        let one_port = self.one_port.as_deref();
        take(&mut self.datagrams, one_port, &mut self.engine, &mut self.outbox);
        some
    }

    /// What lanes brought. What came to lane 0's socket before that goes first, whether it is an alarm that mustn't wait
    /// for images, or an earlier packet of a flow that has left lane 0 since.
    fn receive_bulk(&mut self) {
        let Some(socket) = &self.outbox.lanes else { return };
        if !note_fetched(&self.bulk.fetch(socket)) {
            return;
        }
        self.empty_lane_0();
        let one_port = self.one_port.as_deref();
        take(&mut self.bulk, one_port, &mut self.engine, &mut self.outbox);
    }

    /// Handles what lane 0's socket holds now, and as little more as may be.
    fn empty_lane_0(&mut self) {
        let mut held = self.outbox.underlay.held();
        for fetches in 1_usize.. {
            if held == 0 || !self.receive_datagrams() {
                return;
            }
            held = held.saturating_sub(self.datagrams.least_held());
            self.flush();
            // All that a full socket holds takes some milliseconds, for which no device needs to wait.
            self.keepalive.turn(&mut self.outbox.ports, &mut self.frames);
            if held > 0 && fetches % FETCHES_IN_A_ROW == 0 {
                self.serve_ports();
            }
        }
    }

    /// A turn for each port, amid other work.
    fn serve_ports(&mut self) {
        for index in 0..self.outbox.ports.len() {
            self.receive_frames(index as u64);
            self.flush();
            self.keepalive.turn(&mut self.outbox.ports, &mut self.frames);
        }
    }

    fn carry_out(&mut self) {
        let _ = self.wake.read();
        for _ in 0..COMMANDS_A_TURN {
            let Ok(command) = self.commands.try_recv() else { return };
            self.execute(command);
        }
        // What is left gets its turn after the frames that wait.
        let _ = self.wake.write(1);
    }

    /// Answers may find nobody: who asked has gone. That's no concern of the worker's.
    fn execute(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::Apply(prepared, answer) => {
                self.engine.put_in_force(*prepared, now);
                // What the view asks for at once (tunnels to be opened) shouldn't wait for a timer.
                self.engine.handle_timeout(now, &mut self.outbox);
                self.retire();
                self.tell_gro();
                let _ = answer.send(());
            }
            Command::SetTime(wall, confirmed) => self.engine.set_time(wall, confirmed, now),
            Command::SetAuthority(number) => self.engine.set_authority(number, now),
            Command::SetBypasses(loaded, answer) => {
                self.engine.set_bypasses(loaded, now);
                let _ = answer.send(());
            }
            Command::SetOwnKeys(keys, answer) => {
                self.engine.set_own_keys(&keys, now);
                let _ = answer.send(());
            }
            Command::SetIdentity(identity, answer) => {
                self.engine.set_identity(*identity, now);
                let _ = answer.send(());
            }
            Command::Trials(answer) => {
                let _ = answer.send(self.engine.trials());
            }
            Command::KeyUse(answer) => {
                let _ = answer.send(self.engine.key_use(now));
            }
            Command::SetOwnAddresses(addresses) => {
                self.engine.set_own_addresses(addresses);
                self.engine.note_moved(now);
            }
            Command::SetUnderlayMtu(mtu) => self.engine.set_underlay_mtu(mtu, now),
            Command::Report(answer) => {
                self.reports.push(answer);
                self.engine.prepare_report(now);
                self.answer_reports(now);
            }
            Command::Status(answer) => {
                let status = self.status(now);
                let _ = answer.send(status);
            }
            Command::Peers(answer) => {
                let _ = answer.send(self.engine.peer_addresses());
            }
            Command::Flows(limit, answer) => {
                let _ = answer.send(self.engine.flows(now, limit));
            }
            Command::Explain(question, answer) => {
                let _ = answer.send(self.engine.explain(&question, now));
            }
            Command::Learned(answer) => {
                let _ = answer.send(self.engine.learned());
            }
            Command::PortOpened(port, socket) => self.open_port(port, *socket),
            Command::Offloads(port, offloads) => {
                if let Some(known) = self.offloads.get_mut(port.index()) {
                    *known = offloads;
                }
            }
            Command::SetRelays(gateway, relays) => {
                self.engine.set_relays(gateway, &relays, now, &mut self.outbox);
            }
            Command::OpenRelay(relay, queues) => self.outbox.relays.open(relay, queues),
            Command::CloseRelay(relay) => {
                self.outbox.relays.close(relay);
                self.engine.set_mirror(relay, None, now);
            }
            Command::Silence(answer) => {
                let _ = answer.send(self.engine.silence(now));
            }
            Command::Owing(since) => self.engine.note_owing(since, now),
            Command::Moved => self.engine.note_moved(now),
            Command::SetMirror(relay, at) => self.engine.set_mirror(relay, at, now),
            Command::ForgetRelays { relays, addresses, document } => {
                let out = &mut self.outbox;
                self.engine.forget_relays(&relays, &addresses, document, now, out);
            }
            Command::Indirect(answer) => {
                let _ = answer.send(self.engine.indirect(now));
            }
            Command::Shutdown(answer) => self.ended = Some(answer),
        }
        self.flush();
    }

    /// Has it looked into when the underlay's interface took less than was thought.
    fn note_too_big(&mut self, now: Instant) {
        let too_big = self.outbox.underlay_counters.too_big;
        if std::mem::replace(&mut self.too_big, too_big) != too_big {
            let sockets = std::iter::once(&mut self.outbox.underlay).chain(&mut self.outbox.lanes);
            for to in sockets.flat_map(UdpSocket::take_too_big) {
                self.engine.note_too_big(to, now);
            }
        }
    }

    /// Has connections ask, too, whether anything gets through, where peers that should answer don't: what is blocked for the
    /// one may be for the other, and packets may need them soon.
    fn note_unanswered(&mut self, now: Instant) {
        let (lasts, questions) = self.engine.unanswered(now);
        let more = questions > std::mem::replace(&mut self.unanswered, questions);
        if more && lasts >= DOUBT.0 && DOUBT.1.contains(&questions) {
            egress::doubt();
        }
    }

    fn tell_gro(&self) {
        let wants = self.engine.wants_gro();
        self.wants_gro.send_if_modified(|told| std::mem::replace(told, wants) != wants);
    }

    fn tell_open(&self) {
        let open = || self.outbox.ports.iter().map(|queue| queue.socket.is_some());
        self.open.send_if_modified(|told| {
            let changed = !told.iter().copied().eq(open());
            if changed {
                *told = open().collect();
            }
            changed
        });
    }

    fn open_port(&mut self, id: PortId, socket: PacketSocket) {
        let Some(queue) = self.outbox.ports.get_mut(id.index()) else { return };
        let event = EpollEvent::new(EpollFlags::EPOLLIN, id.index() as u64);
        if let Err(error) = self.epoll.add(&socket, event) {
            tracing::warn!(%error, port = %id, "the port stays closed for now");
            queue.lost = true;
            return;
        }
        queue.socket = Some(socket);
        queue.lost = false;
        self.tell_open();
        tracing::info!(port = %id, "open again");
    }

    /// Closes the sockets whose interface is down or gone, and has them opened again when it is back.
    fn forget_lost_ports(&mut self) {
        let mut gone = false;
        for (index, queue) in self.outbox.ports.iter_mut().enumerate() {
            if !queue.lost {
                continue;
            }
            let Some(id) = port(index as u64) else { continue };
            // The channel has room for every port once, and each is lost once until it is open again.
            if self.lost.try_send(id).is_err() {
                continue;
            }
            queue.lost = false;
            if let Some(socket) = queue.socket.take() {
                queue.counters.missed += socket.take_missed();
                let _ = self.epoll.delete(socket.as_fd());
                tracing::warn!(port = %id, "the interface went away; waiting for it");
                gone = true;
            }
        }
        if gone {
            self.tell_open();
        }
    }

    /// Hands over what a view made void. Where nobody takes it, it is dropped here.
    fn retire(&mut self) {
        if let Some(retired) = self.engine.take_retired() {
            let _ = self.retired.try_send(retired);
        }
    }
}

/// Whether datagrams were fetched.
fn note_fetched(fetched: &io::Result<usize>) -> bool {
    match fetched {
        Ok(count) => *count > 0,
        Err(error) => {
            tracing::trace!(%error, "receiving datagrams");
            false
        }
    }
}

/// Has the engine handle what was fetched.
fn take(
    ring: &mut DatagramRing,
    one_port: Option<&Shared>,
    engine: &mut Engine,
    outbox: &mut Outbox,
) {
    let mut truncated = 0;
    let received = ring.lend(&mut truncated, |datagrams| {
        let datagrams = match one_port {
            Some(shared) => one_port::sort(shared, datagrams),
            None => datagrams,
        };
        engine.handle_datagrams(datagrams, Instant::now(), outbox);
    });
    outbox.underlay_counters.received += received;
    outbox.underlay_counters.truncated += truncated;
}

/// The port with this place among all ports.
fn port(token: u64) -> Option<PortId> {
    let index = u16::try_from(token).ok()?;
    Some(index.checked_sub(1).map_or(PortId::UPLINK, PortId::device))
}

/// Whether a socket's interface is down or gone.
fn gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENETDOWN | libc::ENODEV | libc::ENXIO | libc::EBADFD))
}

/// The kernel waits in milliseconds; rounded up, so that what is due is due when it wakes.
fn timeout(wait: Duration) -> EpollTimeout {
    let millis = u16::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
    EpollTimeout::from(millis)
}
