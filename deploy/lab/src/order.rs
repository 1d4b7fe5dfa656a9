//! Tests that count on the order of what they send.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Keeps a thread on one core while it lives.
///
/// Linux keeps the order of what one core hands to loopback or to a virtual cable. Of two packets of a thread that is
/// moved to another core in between, the second may come first, where the first core had no time to deliver what it was
/// handed: a busy machine does that.
#[derive(Debug)]
pub struct OneCore {
    before: Option<CpuSet>,
}

impl OneCore {
    /// Has the calling thread stay on one of its cores. Where the system doesn't allow that, nothing changes.
    #[must_use]
    pub fn stay() -> Self {
        let this = Pid::from_raw(0);
        let stayed = sched_getaffinity(this).and_then(|before| {
            let mut one = CpuSet::new();
            let is_ours = |core: &usize| before.is_set(*core).unwrap_or(false);
            if let Some(core) = (0..CpuSet::count()).rev().find(is_ours) {
                one.set(core)?;
                sched_setaffinity(this, &one)?;
            }
            Ok(before)
        });
        Self { before: stayed.ok() }
    }
}

impl Drop for OneCore {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // It was allowed when it was so before.
            let _ = sched_setaffinity(Pid::from_raw(0), before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_stays_until_it_may_go() {
        let cores = || {
            let set = sched_getaffinity(Pid::from_raw(0)).unwrap();
            (0..CpuSet::count()).filter(|core| set.is_set(*core).unwrap()).count()
        };
        std::thread::spawn(move || {
            let before = cores();
            let stay = OneCore::stay();
            assert_eq!(cores(), 1);
            drop(stay);
            assert_eq!(cores(), before);
        })
        .join()
        .unwrap();
    }
}
