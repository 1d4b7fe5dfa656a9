//! Lane threads: bulk is sealed and opened beside the packet thread, which keeps flows, verdicts and devices.
//!
//! ```text
//!  ports ──frames──> packet thread ──parcels──> lane thread 1 ──datagrams──> socket 1
//!                    (the engine)  <───hauls───                <─datagrams──
//!                      socket 0    ──parcels──> lane thread 2 …
//! ```
//!
//! The packet thread looks up flows, decides, and coalesces what comes back; lane threads seal, open, and do their own
//! sockets' work. Between them are rings of buffers ([`link`]), bounded; what finds them full is dropped and counted,
//! as at a full socket. A thread is woken by a system call only while it sleeps ([`sleeper`]).
//!
//! **Order.** Before a parcel goes out, the datagrams of lane 0 before it have. Before hauls are handled, the socket of
//! lane 0 is emptied: what a flow sent through lane 0 before it took another lane was in there when the haul was fetched.
//!
//! **Failure.** A lane thread that panics, or can't wait for its socket any more, ends the process, as the packet thread
//! does: half a data plane would be worse than a restart. One that hangs stops its heartbeat, and the watchdog has
//! the agent started anew.

mod backlog;
mod haul;
mod link;
mod meter;
mod parcel;
mod sleeper;
#[cfg(test)]
mod tests;
mod thread;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use anteroom_agent_core::lane::{Job, Lanes, LanesConfig, Order};
use anteroom_proto::verdict::DropReason;

use super::EndTogether;
use super::handle::Heartbeat;
use super::status::{LaneThreadStatus, UnderlayCounters};
use crate::net::udp::UdpSocket;
use backlog::Backlog;
pub(super) use haul::Haul;
use link::Near;
use meter::Meter;
pub(super) use meter::worked;
use parcel::Parcel;
pub(super) use sleeper::Sleeper;
use thread::LaneThread;

/// Lanes open at once in all threads together. Each takes some 11 KB.
const MOST_LANES: usize = 256;

/// The packet thread's side of all lane threads.
pub(super) struct Threads {
    threads: Vec<Thread>,
    /// The packet thread.
    pub(super) sleeper: Arc<Sleeper>,
    /// Whose haul was taken last.
    turn: usize,
    /// How many hauls of each may be taken: those that had come when lane 0's socket was emptied.
    due: Vec<usize>,
    /// Whether parcels went out, or hauls came, since somebody looked.
    pub(super) worked: bool,
    /// Datagrams that found no room on their way to a lane thread.
    turned_away: u64,
    /// What the threads dropped, as far as it was told.
    told: Vec<u64>,
}

struct Thread {
    near: Option<Near>,
    /// What waits to be sent.
    open: Option<Parcel>,
    /// Datagrams that wait to be handed on, apart from that: strangers send them, too, and mustn't take the room of jobs.
    handed: Option<Parcel>,
    /// Orders that found no parcel.
    orders: Backlog,
    meter: Arc<Meter>,
    heartbeat: Arc<Heartbeat>,
    handle: Option<JoinHandle<()>>,
}

impl Threads {
    /// Starts a thread for each socket. The first runs the lanes of owner 1, and so on.
    ///
    /// # Errors
    /// Where a thread or a descriptor can't be made.
    pub(super) fn start(sockets: Vec<UdpSocket>) -> io::Result<Self> {
        let sleeper = Arc::new(Sleeper::new()?);
        let most = MOST_LANES / sockets.len().max(1);
        let threads = (1_u8..)
            .zip(sockets)
            .map(|(owner, socket)| Thread::start(owner, socket, most, &sleeper))
            .collect::<io::Result<Vec<_>>>()?;
        let told = vec![0; DropReason::ALL.len()];
        let due = vec![0; threads.len()];
        Ok(Self { threads, sleeper, turn: 0, due, worked: false, turned_away: 0, told })
    }

    /// When each last turned its loop.
    pub(super) fn heartbeats(&self) -> impl Iterator<Item = Arc<Heartbeat>> {
        self.threads.iter().map(|thread| thread.heartbeat.clone())
    }

    fn of(&mut self, owner: u8) -> Option<&mut Thread> {
        self.threads.get_mut(usize::from(owner.checked_sub(1)?))
    }

    /// Puts an order into the next parcel: for one owner, or for all.
    pub(super) fn order(&mut self, owner: Option<u8>, order: Order) {
        match owner {
            Some(owner) => {
                if let Some(thread) = self.of(owner) {
                    thread.order(order);
                }
            }
            None => self.threads.iter_mut().for_each(|thread| thread.order(order.clone())),
        }
    }

    /// Puts a job into the next parcel. False where there is no room.
    pub(super) fn job(&mut self, owner: u8, job: &Job<'_>) -> bool {
        self.worked = true;
        self.of(owner).and_then(Thread::parcel).is_some_and(|parcel| parcel.job(job))
    }

    /// Puts a datagram that came to the packet thread's socket into the next parcel.
    pub(super) fn hand_on(&mut self, owner: u8, from: SocketAddr, datagram: &[u8]) {
        let Some(thread) = self.of(owner) else { return };
        if thread.hand_on(from, datagram) {
            return;
        }
        thread.send_handed();
        if !thread.hand_on(from, datagram) {
            self.turned_away += 1;
        }
    }

    /// Sends all parcels.
    pub(super) fn send(&mut self) {
        self.threads.iter_mut().for_each(Thread::send);
    }

    /// How many hauls have come.
    pub(super) fn waiting(&self) -> usize {
        self.threads.iter().map(Thread::waiting).sum()
    }

    /// Takes note of the hauls that have come from each thread. Returns how many that are.
    pub(super) fn note_waiting(&mut self) -> usize {
        for (due, thread) in self.due.iter_mut().zip(&self.threads) {
            *due = thread.waiting();
        }
        self.due.iter().sum()
    }

    /// A haul that had come when they were last [noted](Self::note_waiting), and its thread's number; from the threads
    /// in turn.
    pub(super) fn haul(&mut self) -> Option<(u8, Haul)> {
        let count = self.threads.len();
        for _ in 0..count {
            self.turn = (self.turn + 1) % count;
            let Some(due) = self.due.get_mut(self.turn).filter(|due| **due > 0) else { continue };
            let near = self.threads.get_mut(self.turn).and_then(|thread| thread.near.as_mut());
            if let Some(haul) = near.and_then(Near::haul) {
                *due -= 1;
                self.worked = true;
                // There are no more than fifteen.
                return Some((self.turn as u8 + 1, haul));
            }
        }
        None
    }

    /// Gives a haul back, to be filled again.
    pub(super) fn give_back(&mut self, owner: u8, mut haul: Haul) {
        haul.clear();
        if let Some(near) = self.of(owner).and_then(|thread| thread.near.as_mut()) {
            near.give_back(haul);
        }
    }

    /// Gives back the memory that a load made parcels take.
    pub(super) fn shrink(&mut self) {
        for near in self.threads.iter_mut().filter_map(|thread| thread.near.as_mut()) {
            near.shrink();
        }
    }

    /// What was dropped between and in the threads since the last call.
    pub(super) fn take_drops(&mut self, mut count: impl FnMut(DropReason, u64)) {
        let orders = self.threads.iter_mut().map(|thread| thread.orders.take_turned_away());
        let turned_away = orders.sum::<u64>() + std::mem::take(&mut self.turned_away);
        if turned_away > 0 {
            count(DropReason::QueueFull, turned_away);
        }
        for (reason, told) in DropReason::ALL.iter().zip(&mut self.told) {
            let dropped = |thread: &Thread| thread.meter.dropped(*reason);
            let total = self.threads.iter().map(dropped).sum();
            let before = std::mem::replace(told, total);
            if total > before {
                count(*reason, total - before);
            }
        }
    }

    /// The counters of their sockets, together.
    pub(super) fn counters(&self) -> UnderlayCounters {
        let all = self.threads.iter().map(|thread| thread.meter.counters());
        all.fold(UnderlayCounters::default(), |sum, one| sum + one)
    }

    /// What each does.
    pub(super) fn status(&self) -> Vec<LaneThreadStatus> {
        let status = |thread: &Thread| LaneThreadStatus {
            worked_ms: thread.meter.worked().map(|time| time.as_millis() as u64),
            short_turns: thread.meter.short_turns(),
            counters: thread.meter.counters(),
        };
        self.threads.iter().map(status).collect()
    }
}

/// Ends the threads, and waits for that.
impl Drop for Threads {
    fn drop(&mut self) {
        for thread in &mut self.threads {
            let Some(near) = thread.near.take() else { continue };
            let sleeper = near.sleeper();
            drop(near);
            sleeper.wake();
        }
        for thread in &mut self.threads {
            if let Some(handle) = thread.handle.take() {
                // One that panicked has ended the process.
                let _ = handle.join();
            }
        }
    }
}

impl Thread {
    fn start(
        owner: u8,
        socket: UdpSocket,
        most: usize,
        packet_thread: &Arc<Sleeper>,
    ) -> io::Result<Self> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(io::Error::other)?;
        let (now, meter) = (Instant::now(), Arc::new(Meter::default()));
        let heartbeat = Arc::new(Heartbeat::new());
        let (near, far) = link::link(packet_thread.clone(), Arc::new(Sleeper::new()?));
        let lane_thread = LaneThread::new(thread::Start {
            owner,
            lanes: Lanes::new(&LanesConfig { owner, seed, most }, now),
            socket,
            link: far,
            meter: meter.clone(),
            heartbeat: heartbeat.clone(),
        });
        let handle =
            std::thread::Builder::new().name(format!("lanes-{owner}")).spawn(move || {
                let whole = EndTogether;
                if let Err(error) = lane_thread.run() {
                    tracing::error!(%error, "a lane thread can't wait for its socket");
                    std::process::abort();
                }
                std::mem::forget(whole);
            })?;
        Ok(Self {
            near: Some(near),
            open: None,
            handed: None,
            orders: Backlog::default(),
            meter,
            heartbeat,
            handle: Some(handle),
        })
    }

    fn waiting(&self) -> usize {
        self.near.as_ref().map_or(0, Near::waiting)
    }

    fn order(&mut self, order: Order) {
        let put = self.parcel().is_some_and(|parcel| parcel.order(&order));
        if !put {
            self.orders.push(order);
        }
    }

    fn hand_on(&mut self, from: SocketAddr, datagram: &[u8]) -> bool {
        if self.handed.is_none() {
            self.handed = self.near.as_mut().and_then(Near::parcel_if_many);
        }
        self.handed.as_mut().is_some_and(|parcel| parcel.datagram(from, datagram))
    }

    fn send_handed(&mut self) {
        let Some(near) = &mut self.near else { return };
        if let Some(parcel) = self.handed.take_if(|parcel| !parcel.is_empty()) {
            near.send(parcel);
        }
    }

    /// The parcel that is being filled, behind all orders so far. None where there is no room even for those.
    fn parcel(&mut self) -> Option<&mut Parcel> {
        if self.open.is_none() {
            self.open = self.near.as_mut()?.parcel();
        }
        let parcel = self.open.as_mut()?;
        while let Some(order) = self.orders.first() {
            if !parcel.order(&order) {
                return None;
            }
            self.orders.pop();
        }
        Some(parcel)
    }

    /// Sends what there is.
    fn send(&mut self) {
        let _ = self.parcel();
        let Some(near) = &mut self.near else { return };
        if let Some(parcel) = self.open.take_if(|parcel| !parcel.is_empty()) {
            near.send(parcel);
        }
        self.send_handed();
    }
}
