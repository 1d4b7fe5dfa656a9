//! Instructions that processes have executed, where the machine counts them.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::FromRawFd as _;

use nix::libc;

use crate::usage::threads;

/// `PERF_TYPE_HARDWARE` (linux/perf_event.h).
const HARDWARE: u32 = 0;
/// `PERF_COUNT_HW_INSTRUCTIONS`.
const INSTRUCTIONS: u64 = 1;
/// Threads that are started later count too.
const INHERIT: u64 = 1 << 1;
/// `PERF_FLAG_FD_CLOEXEC`.
const CLOSE_ON_EXEC: libc::c_ulong = 1 << 3;

/// The first version of `struct perf_event_attr`, which every kernel takes.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup: u32,
    breakpoint_kind: u32,
    breakpoint: u64,
}

/// Counts instructions, in user space and in the kernel, of some processes from when it is made.
#[derive(Debug)]
pub struct Counter {
    events: Vec<File>,
}

impl Counter {
    /// Begins to count for all threads of these processes.
    ///
    /// # Errors
    /// Where the machine has no such counter, as many virtual ones, or this user may not read it.
    pub fn start(pids: &[u32]) -> io::Result<Self> {
        let mut events = Vec::new();
        for pid in pids {
            for thread in threads(*pid)? {
                events.push(open(thread)?);
            }
        }
        Ok(Self { events })
    }

    /// Instructions since it was made.
    ///
    /// # Errors
    /// If the kernel doesn't tell.
    pub fn read(&self) -> io::Result<u64> {
        self.events
            .iter()
            .map(|mut event| {
                let mut count = [0; 8];
                event.read_exact(&mut count)?;
                Ok(u64::from_ne_bytes(count))
            })
            .sum()
    }
}

fn open(thread: u32) -> io::Result<File> {
    let attributes = Attributes {
        kind: HARDWARE,
        size: size_of::<Attributes>() as u32,
        config: INSTRUCTIONS,
        flags: INHERIT,
        ..Attributes::default()
    };
    // SAFETY: the attributes outlive the call and say their own size; the descriptor that comes back is ours alone.
    unsafe {
        let event = libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            libc::c_long::from(thread),
            -1_i64,
            -1_i64,
            CLOSE_ON_EXEC,
        );
        match libc::c_int::try_from(event) {
            Ok(event) if event >= 0 => Ok(File::from_raw_fd(event)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_counted_or_refused() {
        // Many virtual machines have no counters, and some systems allow nobody to read them.
        let counter = match Counter::start(&[std::process::id()]) {
            Ok(counter) => counter,
            Err(error) => {
                assert!(error.raw_os_error().is_some(), "{error}");
                return;
            }
        };
        let before = counter.read().unwrap();
        std::hint::black_box((0..1_000_000_u64).fold(0, |a, b| a ^ std::hint::black_box(b)));
        assert!(counter.read().unwrap() >= before + 1_000_000);
    }
}
