//! Ctrl-C: the process outside holds a lifeline, the lab inside ends when it is cut. So the lab ends in order however the
//! outside does.

use std::os::fd::{AsRawFd as _, IntoRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use anyhow::Result;
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// What ends a lab.
const SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Exit code of a lab that was ended before its story was told.
const INTERRUPTED: i32 = 130;

static LIFELINE: AtomicI32 = AtomicI32::new(-1);
static CUT: AtomicBool = AtomicBool::new(false);
static CODE: AtomicI32 = AtomicI32::new(INTERRUPTED);

extern "C" fn cut(_: libc::c_int) {
    CUT.store(true, Ordering::Relaxed);
    let fd = LIFELINE.swap(-1, Ordering::Relaxed);
    if fd >= 0 {
        // SAFETY: the descriptor was given up to this handler, which closes it once; close may be called in one.
        unsafe { libc::close(fd) };
    }
}

/// Outside: from now on Ctrl-C cuts the lifeline, and nothing else.
pub(crate) fn cut_when_interrupted(lifeline: impl Into<OwnedFd>) -> Result<()> {
    LIFELINE.store(lifeline.into().into_raw_fd(), Ordering::Relaxed);
    for signal in SIGNALS {
        let action = SigAction::new(SigHandler::Handler(cut), SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the handler touches atomics and makes a system call only.
        unsafe { sigaction(signal, &action)? };
    }
    Ok(())
}

/// Whether the lifeline was cut.
pub(crate) fn was_interrupted() -> bool {
    CUT.load(Ordering::Relaxed)
}

/// Inside: from now on this process ends when the lifeline (its standard input) is cut, and only then. Must be called
/// before any thread is started, so that none takes a signal of the terminal.
pub(crate) fn end_with_lifeline() -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in SIGNALS {
        signals.add(signal);
    }
    signals.thread_block()?;
    std::thread::Builder::new().name("lifeline".into()).spawn(|| {
        let input = std::io::stdin();
        let mut byte = [0_u8; 1];
        loop {
            // SAFETY: the buffer is valid for its length.
            let read =
                unsafe { libc::read(input.as_raw_fd(), byte.as_mut_ptr().cast(), byte.len()) };
            if read == 0 || (read < 0 && nix::errno::Errno::last() != nix::errno::Errno::EINTR) {
                std::process::exit(CODE.load(Ordering::Relaxed));
            }
        }
    })?;
    Ok(())
}

/// Inside: the story is told; what is left is to wait for the lifeline to be cut, and then end with success or not.
pub(crate) fn sleep_for_good(ok: bool) -> ! {
    CODE.store(i32::from(!ok), Ordering::Relaxed);
    loop {
        std::thread::park();
    }
}
