//! The thread that keeps the packet filter as it has to be: it alone changes the gateway's tables while an agent runs,
//! and writes them anew when somebody else changed them.
//!
//! A thread of its own, because the kernel may let a change of rules wait for as long as others change theirs.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::oneshot;

use crate::config::Config;
use crate::net::filter::wire::{self, Standing, Wanted};
use crate::net::filter::{self, GUARD, PORTS};
use crate::net::netlink::{Notices, Session};
use crate::net::nft::{NETLINK_NETFILTER, NftError};
use crate::net::ports::{self, PortsError};
use crate::net::wiring::Wiring;

/// How often the tables are looked at, should no notice have told of their loss. The kernel says when notices were lost, so
/// there is no such case that we know of.
const LOOK: Duration = Duration::from_secs(5);

/// How soon tables that can't be put back are tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Shortest time between two restorations: whoever fights over the tables isn't fought without end.
const PAUSE: Duration = Duration::from_millis(50);

/// How long a worker that needn't beat has to begin, before the first wire is written.
const BEGIN: Duration = Duration::from_millis(200);

/// The group that hears of changes to nftables (`NFNLGRP_NFTABLES`).
const GROUP: u32 = 7;

/// Whether the packet worker beats, and which ports are a wire. Shared between worker and sentry.
#[derive(Debug)]
pub(crate) struct Pulse {
    start: Instant,
    /// Milliseconds from `start` to the last beat; the largest number before the first.
    last: AtomicU64,
    wires: AtomicU64,
    /// Wakes the worker, while there is one.
    worker: Mutex<Option<Arc<EventFd>>>,
    /// Whether a wire was written though the worker didn't beat.
    unguarded: AtomicBool,
}

impl Pulse {
    pub(crate) fn new(wiring: &Wiring) -> Self {
        Self {
            start: Instant::now(),
            last: AtomicU64::new(u64::MAX),
            wires: AtomicU64::new(wiring.bits()),
            worker: Mutex::default(),
            unguarded: AtomicBool::new(false),
        }
    }

    /// Notes how the worker is woken. From now on it beats while any port is a wire.
    pub(crate) fn follow(&self, wake: Arc<EventFd>) {
        *self.worker.lock().unwrap_or_else(PoisonError::into_inner) = Some(wake);
    }

    /// Has the worker beat before a wire is written, since it needn't while there is none. One that hangs is left
    /// to find out later.
    fn prepare(&self) {
        let worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(worker) = worker else { return };
        // Looked at before the worker is woken: it may beat at once, and perhaps not again for a while.
        let (begun, before) = (Instant::now(), self.last.load(Ordering::Relaxed));
        // A full counter (EAGAIN) wakes it just as well.
        let _ = worker.write(1);
        let beaten = || self.last.load(Ordering::Relaxed) != before;
        while !beaten() && begun.elapsed() < BEGIN {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.unguarded.store(!beaten(), Ordering::Relaxed);
    }

    /// Whether, since the last call, the kernel may have begun to forward while the worker didn't beat.
    pub(crate) fn take_unguarded(&self) -> bool {
        self.unguarded.swap(false, Ordering::Relaxed)
    }

    /// Notes a beat, before it goes out: one that goes out noted late might be lost to a table that is written in between.
    /// Gives what was noted before, for [`Pulse::missed`].
    pub(crate) fn beat(&self, at: Instant) -> Noted {
        let millis = at.saturating_duration_since(self.start).as_millis();
        Noted(self.last.swap(u64::try_from(millis).unwrap_or(u64::MAX - 1), Ordering::SeqCst))
    }

    /// Notes that the last beat that was noted didn't go out.
    pub(crate) fn missed(&self, before: &Noted) {
        self.last.store(before.0, Ordering::SeqCst);
    }

    /// Notes that the agent forwards no more.
    pub(crate) fn end(&self) {
        *self.worker.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.last.store(u64::MAX, Ordering::Relaxed);
    }

    /// Whether the last beat still lasts.
    pub(crate) fn beating(&self) -> bool {
        let last = self.last.load(Ordering::Relaxed);
        last != u64::MAX
            && self.start.elapsed().saturating_sub(Duration::from_millis(last)) < wire::LIFE
    }

    /// The ports that are a wire, as bits in the configuration's order.
    pub(crate) fn wires(&self) -> u64 {
        self.wires.load(Ordering::Relaxed)
    }
}

/// What was noted before a beat.
#[derive(Debug)]
#[must_use]
pub(crate) struct Noted(u64);

/// The wiring that is wanted, and whether the packet filter has it.
#[derive(Debug)]
struct Wires {
    wanted: Wiring,
    in_force: bool,
    pulse: Arc<Pulse>,
}

impl Wires {
    /// Makes `to` the wiring that is wanted. Whether anything has to be written for it.
    ///
    /// Until it is in force, a port counts as a wire that was one or becomes one.
    fn want(&mut self, to: Wiring) -> bool {
        if to == self.wanted && self.in_force {
            return false;
        }
        self.pulse.wires.fetch_or(to.bits(), Ordering::Relaxed);
        (self.wanted, self.in_force) = (to, false);
        true
    }

    /// Notes that the packet filter has what is wanted.
    fn written(&mut self) {
        self.in_force = true;
        self.pulse.wires.store(self.wanted.bits(), Ordering::Relaxed);
    }
}

/// What the sentry is told.
enum Order {
    Wire(Wiring, oneshot::Sender<Result<(), String>>),
    Rebuild(oneshot::Sender<Result<(), String>>),
    End(oneshot::Sender<()>),
}

/// Speaks with the sentry. It ends with the last of these.
#[derive(Debug, Clone)]
pub(crate) struct Sentry {
    orders: mpsc::Sender<Order>,
    wake: Arc<Wake>,
    thread: Arc<JoinHandle<()>>,
}

#[derive(Debug)]
struct Wake(EventFd);

impl Drop for Wake {
    fn drop(&mut self) {
        // The thread looks up, and finds nobody left.
        let _ = self.0.write(1);
    }
}

impl Sentry {
    /// Writes both tables and keeps them from now on. Says what stands.
    ///
    /// The table of the ports is built anew only where none stands for these interfaces: a wire goes on forwarding
    /// while the agent starts.
    ///
    /// # Errors
    /// Where the packet filter refuses.
    pub(crate) fn start(
        config: &Config,
        wiring: Wiring,
        pulse: Arc<Pulse>,
    ) -> Result<(Self, Vec<String>), PortsError> {
        let failed =
            |what: &'static str| move |source| PortsError::Filter { what: what.into(), source };
        let session = Session::open(NETLINK_NETFILTER).map_err(failed("opening netlink"))?;
        // Listening begins before anything is written, so that no change falls in between.
        let notices = Notices::listen(NETLINK_NETFILTER, GROUP)
            .map_err(failed("listening for changes of the packet filter"))?;
        let mut warnings = ports::guard(&session, config)?;
        let wires = Wires { wanted: wiring, in_force: true, pulse };
        let post = Post { session, notices, config: config.clone(), wires };
        let standing = match wire::update(&post.session, &post.wanted(&post.ports()))? {
            Some(standing) => standing,
            None => wire::build(&post.session, &post.wanted(&post.ports()), false)?,
        };
        warnings.extend(ports::shortfalls(standing));
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(std::io::Error::from)
            .map_err(failed("making an event descriptor"))?;
        let wake = Arc::new(Wake(wake));
        let (orders, receiver) = mpsc::channel();
        let own = wake.0.as_fd().try_clone_to_owned().map_err(failed("copying a descriptor"))?;
        let thread = std::thread::Builder::new()
            .name("packet-filter".into())
            .spawn(move || post.keep(&receiver, &own))
            .map_err(failed("starting a thread"))?;
        Ok((Self { orders, wake, thread: Arc::new(thread) }, warnings))
    }

    async fn ask<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> Option<T> {
        let (sender, answer) = oneshot::channel();
        self.orders.send(order(sender)).ok()?;
        // A full counter (EAGAIN) wakes it just as well.
        let _ = self.wake.0.write(1);
        answer.await.ok()
    }

    /// Puts a wiring in force; returns once it is. What failed is tried again until it succeeds.
    ///
    /// # Errors
    /// What the packet filter said, or that nobody keeps it any more.
    pub(crate) async fn wire(&self, wiring: Wiring) -> Result<(), String> {
        self.ask(|answer| Order::Wire(wiring, answer)).await.unwrap_or_else(ended)
    }

    /// Writes the table of the ports anew, for interfaces that have come.
    ///
    /// # Errors
    /// What the packet filter said, or that nobody keeps it any more.
    pub(crate) async fn rebuild(&self) -> Result<(), String> {
        self.ask(Order::Rebuild).await.unwrap_or_else(ended)
    }

    /// Whether the thread runs.
    pub(crate) fn alive(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Ends the watch. The tables stay.
    pub(crate) async fn end(&self) {
        let _ = self.ask(Order::End).await;
    }
}

#[cfg(test)]
impl Sentry {
    /// One whose thread takes orders and answers none, as while others change the packet filter.
    pub(crate) fn unanswering() -> Self {
        let (orders, receiver) = mpsc::channel();
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).unwrap();
        let thread = std::thread::spawn(move || {
            let _held: Vec<Order> = receiver.iter().collect();
        });
        Self { orders, wake: Arc::new(Wake(wake)), thread: Arc::new(thread) }
    }
}

fn ended() -> Result<(), String> {
    Err("the packet filter's thread has ended; the agent has to be started anew".into())
}

/// Why the packet filter isn't as it has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Amiss {
    /// Somebody else changed it.
    Changed,
    /// The kernel refused what the sentry itself wrote.
    NotWritten,
}

impl Amiss {
    /// What to say once it is right again.
    const fn mended(self) -> &'static str {
        match self {
            Self::Changed => "somebody else changed the gateway's packet filter; it is put back",
            Self::NotWritten => {
                "what the kernel refused to write to the gateway's packet filter is written now"
            }
        }
    }

    /// What to say while it isn't.
    const fn lasting(self) -> &'static str {
        match self {
            Self::Changed => "the packet filter can't be put back",
            Self::NotWritten => "the packet filter can't be written",
        }
    }
}

/// What the thread holds.
struct Post {
    session: Session,
    notices: Notices,
    config: Config,
    wires: Wires,
}

impl Post {
    fn ports(&self) -> Vec<&str> {
        self.config.ports.iter().map(|port| port.interface.as_str()).collect()
    }

    fn wanted<'a>(&'a self, ports: &'a [&'a str]) -> Wanted<'a> {
        Wanted { uplink: self.config.uplink.interface.as_str(), ports, wiring: &self.wires.wanted }
    }

    fn keep(mut self, orders: &mpsc::Receiver<Order>, wake: &impl AsFd) {
        let mut looked = Instant::now();
        // Something isn't as it has to be, and by whom.
        let mut amiss: Option<Amiss> = None;
        // Not before then is it put back again.
        let mut next = Instant::now();
        loop {
            let pause = pause(amiss.map(|_| next), looked, Instant::now());
            let mut fds = [
                PollFd::new(self.notices.as_fd(), PollFlags::POLLIN),
                PollFd::new(wake.as_fd(), PollFlags::POLLIN),
            ];
            let wait = u16::try_from(pause.as_millis()).map_or(PollTimeout::MAX, PollTimeout::from);
            let _ = poll(&mut fds, wait);
            let mut counter = [0; 8];
            let _ = nix::unistd::read(wake.as_fd(), &mut counter);
            loop {
                match orders.try_recv() {
                    Ok(Order::Wire(wiring, answer)) => {
                        let done = self.rewire(wiring);
                        amiss = amiss.or(done.is_err().then_some(Amiss::NotWritten));
                        let _ = answer.send(done);
                    }
                    Ok(Order::Rebuild(answer)) => {
                        let done = self.build();
                        amiss = amiss.or(done.is_err().then_some(Amiss::NotWritten));
                        let _ = answer.send(done);
                    }
                    Ok(Order::End(answer)) => {
                        let _ = answer.send(());
                        return;
                    }
                    Err(mpsc::TryRecvError::Empty) => break,
                    Err(mpsc::TryRecvError::Disconnected) => return,
                }
            }
            if self.others_changed() {
                amiss = Some(Amiss::Changed);
            }
            if amiss.is_none() && looked.elapsed() >= LOOK {
                amiss = (!self.stands()).then_some(Amiss::Changed);
                looked = Instant::now();
            }
            if let Some(why) = amiss
                && next <= Instant::now()
            {
                amiss = (!self.restore(why)).then_some(why);
                next = Instant::now() + if amiss.is_some() { AGAIN } else { PAUSE };
            }
        }
    }

    /// Whether anybody else has changed one of the gateway's tables since the last call.
    fn others_changed(&self) -> bool {
        match self.notices.take() {
            Ok(Some(notices)) => notices.iter().any(|notice| {
                notice.by != self.session.address
                    && [PORTS, GUARD].iter().any(|table| notice.about == table.as_bytes())
            }),
            Ok(None) => true,
            Err(error) => {
                tracing::warn!(%error, "changes of the packet filter can't be followed");
                false
            }
        }
    }

    fn stands(&self) -> bool {
        let ports = wire::stands(&self.session, &self.wanted(&self.ports()));
        let guard = filter::guard_stands(&self.session);
        match ports.and_then(|ports| Ok(ports && guard?)) {
            Ok(stands) => stands,
            Err(error) => {
                tracing::warn!(%error, "the packet filter can't be looked at");
                true
            }
        }
    }

    /// Puts back what has to be there. Whether that succeeded.
    fn restore(&mut self, why: Amiss) -> bool {
        let began = Instant::now();
        let restored = self
            .build()
            .and_then(|()| ports::guard(&self.session, &self.config).map_err(|e| e.to_string()));
        match &restored {
            Ok(_) => tracing::warn!(microseconds = began.elapsed().as_micros(), "{}", why.mended()),
            Err(error) => tracing::error!(%error, "{}", why.lasting()),
        }
        restored.is_ok()
    }

    fn build(&mut self) -> Result<(), String> {
        let ports = self.ports();
        let wanted = self.wanted(&ports);
        let write = |beating| wire::build(&self.session, &wanted, beating);
        let built = write_beating(|| self.wires.pulse.beating(), write);
        self.written(built)
    }

    fn rewire(&mut self, wiring: Wiring) -> Result<(), String> {
        let none_yet = self.wires.pulse.wires() == 0;
        if !self.wires.want(wiring) {
            return Ok(());
        }
        if none_yet && self.wires.pulse.wires() != 0 {
            self.wires.pulse.prepare();
        }
        let ports = self.ports();
        match wire::update(&self.session, &self.wanted(&ports)) {
            Ok(Some(standing)) => self.written(Ok(standing)),
            Ok(None) => self.build(),
            Err(error) => self.written(Err(error)),
        }
    }

    fn written(&mut self, result: Result<Standing, NftError>) -> Result<(), String> {
        told(result.map_err(|error| error.to_string())?);
        self.wires.written();
        Ok(())
    }
}

/// How long to wait for something to do: until what is amiss may be put right, or until the next look.
fn pause(amiss: Option<Instant>, looked: Instant, now: Instant) -> Duration {
    let due = amiss.unwrap_or(looked + LOOK);
    due.saturating_duration_since(now).max(Duration::from_millis(1))
}

/// Has `write` make a table anew for a worker that beats or doesn't. A beat that went to the table before it, after that
/// was asked, is given to the new one: until the next the kernel would forward what the worker does, too.
fn write_beating<T, E>(
    beating: impl Fn() -> bool,
    mut write: impl FnMut(bool) -> Result<T, E>,
) -> Result<T, E> {
    let before = beating();
    let written = write(before)?;
    if !before && beating() { write(true) } else { Ok(written) }
}

/// Says what the kernel can't do.
fn told(standing: Standing) {
    for warning in ports::shortfalls(standing) {
        tracing::warn!("{warning}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::wiring::PortWiring;

    fn wiring(wires: [bool; 2]) -> Wiring {
        Wiring { ports: wires.map(|wire| PortWiring { wire, ..PortWiring::default() }).into() }
    }

    #[tokio::test]
    async fn nothing_is_acknowledged_once_the_thread_has_ended() {
        let (orders, receiver) = mpsc::channel();
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).unwrap();
        let (stay, end) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let _receiver = receiver;
            let _ = end.recv();
        });
        let sentry = Sentry { orders, wake: Arc::new(Wake(wake)), thread: Arc::new(thread) };
        assert!(sentry.alive());
        drop(stay);
        for result in [sentry.wire(wiring([true, false])).await, sentry.rebuild().await] {
            assert!(result.as_ref().is_err_and(|error| error.contains("ended")), "{result:?}");
        }
        while sentry.alive() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn looks_are_as_far_apart_as_is_said_whatever_happens_in_between() {
        let looked = Instant::now();
        let late = looked + LOOK - Duration::from_millis(100);
        assert_eq!(pause(None, looked, looked), LOOK);
        assert_eq!(pause(None, looked, late), Duration::from_millis(100), "an order came late");
        assert_eq!(pause(None, looked, looked + LOOK * 2), Duration::from_millis(1));
        assert_eq!(pause(Some(looked + AGAIN), looked, looked), AGAIN);
        assert_eq!(pause(Some(looked), looked, late), Duration::from_millis(1));
    }

    #[test]
    fn a_beat_that_falls_while_a_table_is_written_counts_in_it() {
        let pulse = Pulse::new(&wiring([true, false]));
        let mut written = Vec::new();
        let wrote = write_beating(
            || pulse.beating(),
            |beating| {
                written.push(beating);
                let _ = pulse.beat(Instant::now());
                Ok::<_, ()>(written.len())
            },
        );
        assert_eq!((wrote, written), (Ok(2), vec![false, true]));
        let mut written = Vec::new();
        let mut write = |beating| {
            written.push(beating);
            Ok::<_, ()>(())
        };
        write_beating(|| true, &mut write).unwrap();
        write_beating(|| false, &mut write).unwrap();
        assert_eq!(written, [true, false], "once is enough");
        // One that didn't go out was none.
        let silent = Pulse::new(&wiring([true, false]));
        let before = silent.beat(Instant::now());
        assert!(silent.beating());
        silent.missed(&before);
        assert!(!silent.beating());
    }

    #[test]
    fn only_what_others_changed_is_laid_at_their_door() {
        assert!(Amiss::Changed.mended().contains("somebody else"));
        for text in [Amiss::NotWritten.mended(), Amiss::NotWritten.lasting()] {
            assert!(!text.contains("somebody else") && !text.contains("put back"), "{text}");
        }
    }

    #[test]
    fn a_worker_that_rests_is_woken_before_the_first_wire() {
        let pulse = Arc::new(Pulse::new(&wiring([false, false])));
        // A busy machine may hold up this thread, or the worker, for longer than is waited: then once more.
        let waits_for_nobody = || {
            let began = Instant::now();
            pulse.prepare();
            assert!(!pulse.take_unguarded(), "there is no worker yet");
            began.elapsed() < BEGIN
        };
        assert!((0..20).any(|_| waits_for_nobody()), "there is no worker to wait for");
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap();
        let wake = Arc::new(wake);
        pulse.follow(wake.clone());
        let _ = pulse.beat(Instant::now());
        let is_woken = || {
            let (worker, own) = (pulse.clone(), wake.clone());
            let beats = std::thread::spawn(move || {
                // Ends once it is woken.
                let woken = own.read().unwrap();
                let _ = worker.beat(Instant::now() + Duration::from_millis(5));
                woken
            });
            pulse.prepare();
            assert_eq!(beats.join().unwrap(), 1);
            !pulse.take_unguarded()
        };
        assert!((0..20).any(|_| is_woken()), "it beat");
        pulse.prepare();
        assert!(pulse.take_unguarded(), "a worker that hangs has to be told");
        assert!(!pulse.take_unguarded(), "once");
        pulse.end();
        pulse.prepare();
        assert!(!pulse.take_unguarded(), "the worker has ended");
    }

    #[test]
    fn a_wiring_that_wasnt_written_is_asked_for_again_and_counts_until_then() {
        let pulse = Arc::new(Pulse::new(&wiring([true, false])));
        let mut wires =
            Wires { wanted: wiring([true, false]), in_force: true, pulse: pulse.clone() };
        assert!(!wires.want(wiring([true, false])), "it stands");
        assert!(wires.want(wiring([false, true])));
        assert_eq!(pulse.wires(), 0b11, "either may be in force");
        assert!(wires.want(wiring([false, true])), "nothing was written yet");
        assert_eq!(pulse.wires(), 0b11);
        wires.written();
        assert_eq!(pulse.wires(), 0b10);
        assert!(!wires.want(wiring([false, true])));
    }
}
