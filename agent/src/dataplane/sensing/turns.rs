//! When the thread takes its next turn: it sleeps while there is nothing, and costs the worker a system call only then.

use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// Who waits for the end of a turn.
type Waiting = Vec<oneshot::Sender<()>>;

/// What the thread and those who want something of it tell each other.
#[derive(Debug)]
pub(super) struct Turns {
    thread: OnceLock<Thread>,
    /// Whether the thread sleeps, or is about to, until something comes.
    sleeps: AtomicBool,
    /// None once there are no more turns.
    waiting: Mutex<Option<Waiting>>,
}

impl Default for Turns {
    fn default() -> Self {
        let waiting = Mutex::new(Some(Vec::new()));
        Self { thread: OnceLock::new(), sleeps: AtomicBool::new(false), waiting }
    }
}

impl Turns {
    /// Has the calling thread be the one that takes turns.
    pub(super) fn begin(&self) {
        let _ = self.thread.set(std::thread::current());
    }

    /// Something was brought: wakes the thread, if it sleeps for want of it.
    #[inline]
    pub(super) fn brought(&self) {
        // Pairs with the fence in `wait`: either this sees that it sleeps, or the look there sees what was brought.
        fence(Ordering::SeqCst);
        if self.sleeps.load(Ordering::Relaxed) && self.sleeps.swap(false, Ordering::Relaxed) {
            self.wake();
        }
    }

    /// Asks for a turn at once. The answer comes at its end; none where there are no more.
    pub(super) fn ask(&self) -> Option<oneshot::Receiver<()>> {
        let (sender, answer) = oneshot::channel();
        self.lock().as_mut()?.push(sender);
        self.wake();
        Some(answer)
    }

    /// Ends the sleep, whatever it waits for.
    pub(super) fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Sleeps until `is_there` or somebody asks; then lets more come for `gather`, unless somebody asks.
    pub(super) fn wait(&self, gather: Duration, is_there: impl Fn() -> bool) {
        let is_asked = || self.lock().as_ref().is_none_or(|waiting| !waiting.is_empty());
        loop {
            self.sleeps.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if is_there() || is_asked() {
                break;
            }
            std::thread::park();
        }
        self.sleeps.store(false, Ordering::Relaxed);
        let end = Instant::now() + gather;
        while !is_asked() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            std::thread::park_timeout(left);
        }
    }

    /// Takes out who waits for the turn that begins now.
    pub(super) fn take_waiting(&self) -> Waiting {
        self.lock().as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// There are no more turns: nobody needs to wait.
    pub(super) fn end(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
