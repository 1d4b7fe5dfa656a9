//! A thread that moves frames between two interfaces, through an object that decides what becomes of them.

use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags};
use nix::sys::eventfd::EventFd;
use nix::sys::time::TimeSpec;

use crate::packet::PacketSocket;
use crate::topology::Host;

/// What decides. It has two ends, 0 and 1.
pub(super) trait Middle: Send + 'static {
    /// Takes a frame that came in at `end`, and adds to `out` what leaves at once, and where.
    fn take(&mut self, end: usize, frame: &[u8], now: Instant, out: &mut Vec<(usize, Vec<u8>)>);

    /// Adds to `out` what leaves by now.
    fn due(&mut self, now: Instant, out: &mut Vec<(usize, Vec<u8>)>);

    /// When something leaves by itself.
    fn next(&self) -> Option<Instant>;
}

/// Frames that are read from one interface before the other one has its turn.
const TURN: usize = 64;

/// The thread, which ends with this.
#[derive(Debug)]
pub(super) struct Mover<M> {
    middle: Arc<Mutex<M>>,
    wake: Arc<EventFd>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl<M: Middle> Mover<M> {
    /// Begins to move frames between these interfaces of `host`.
    pub(super) fn start(host: &Host, interfaces: [&str; 2], middle: M) -> Result<Self> {
        let sockets = host.enter(|| {
            // 3: frames of every kind.
            let [first, second] = interfaces.map(|name| PacketSocket::open_on(name, 3));
            std::io::Result::Ok([first?, second?])
        })??;
        let middle = Arc::new(Mutex::new(middle));
        let wake = Arc::new(EventFd::new().context("an event descriptor")?);
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, woken, stopped) = (middle.clone(), wake.clone(), stop.clone());
        let work = move || run(&sockets, &shared, &woken, &stopped);
        let thread = std::thread::Builder::new().name(host.name().into()).spawn(work)?;
        Ok(Self { middle, wake, stop, thread: Some(thread) })
    }

    /// Lets `change` at what decides, and has it asked at once what follows.
    pub(super) fn with<T>(&self, change: impl FnOnce(&mut M) -> T) -> T {
        let result = change(&mut lock(&self.middle));
        self.wake.write(1).ok();
        result
    }
}

impl<M> Drop for Mover<M> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.wake.write(1).ok();
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            eprintln!("a link of the lab had failed: {error:#}");
        }
    }
}

/// What a panicking test left is as good as what it found.
fn lock<M>(middle: &Mutex<M>) -> MutexGuard<'_, M> {
    middle.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run<M: Middle>(
    sockets: &[PacketSocket; 2],
    middle: &Mutex<M>,
    wake: &EventFd,
    stop: &AtomicBool,
) -> Result<()> {
    let mut buffer = vec![0; 65_600];
    let mut out = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        let next = {
            let mut middle = lock(middle);
            middle.due(now, &mut out);
            middle.next()
        };
        send(sockets, &mut out)?;
        let limit = next.map_or(Duration::from_secs(1), |next| next.saturating_duration_since(now));
        let mut fds = [
            PollFd::new(sockets[0].as_fd(), PollFlags::POLLIN),
            PollFd::new(sockets[1].as_fd(), PollFlags::POLLIN),
            PollFd::new(wake.as_fd(), PollFlags::POLLIN),
        ];
        match nix::poll::ppoll(&mut fds, Some(TimeSpec::from_duration(limit)), None) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("waiting for frames"),
        }
        let ready = fds.map(|fd| fd.any().unwrap_or(false));
        if ready[2] {
            wake.read().ok();
        }
        for (end, socket) in sockets.iter().enumerate().filter(|(end, _)| ready[*end]) {
            for _ in 0..TURN {
                let length = match socket.receive(&mut buffer, Duration::ZERO) {
                    Ok(Some(length)) => length,
                    Ok(None) => break,
                    // The interface is down for now, as where an address is changed by taking it down.
                    Err(error) if error.raw_os_error() == Some(nix::libc::ENETDOWN) => break,
                    Err(error) => return Err(error).context("reading frames"),
                };
                lock(middle).take(end, &buffer[..length], Instant::now(), &mut out);
            }
        }
        send(sockets, &mut out)?;
    }
    Ok(())
}

/// Sends what leaves. What an interface doesn't take is lost, as on a cable that is pulled out.
fn send(sockets: &[PacketSocket; 2], out: &mut Vec<(usize, Vec<u8>)>) -> Result<()> {
    for (end, frame) in out.drain(..) {
        let Some(socket) = sockets.get(end) else { continue };
        match socket.send(&frame) {
            Ok(()) => {}
            Err(error) if is_loss(&error) => {}
            Err(error) => return Err(error).context("sending frames"),
        }
    }
    Ok(())
}

fn is_loss(error: &std::io::Error) -> bool {
    use nix::libc::{EAGAIN, EMSGSIZE, ENETDOWN, ENOBUFS};
    error.raw_os_error().is_some_and(|code| [EAGAIN, EMSGSIZE, ENETDOWN, ENOBUFS].contains(&code))
}
