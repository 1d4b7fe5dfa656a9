//! Short turns on a core, for threads whose work comes in small pieces that somebody waits for.
//!
//! Where more threads want to run than there are cores, Linux (EEVDF) runs the one whose turn ends soonest by its own
//! reckoning. Who asks for short turns thus waits less, and gets no more of the core in all: a nice value that takes from
//! others isn't needed, and wouldn't help where devices' own programs share the cores. It takes no privilege. Kernels from
//! 6.12 on know it; older ones ignore what is asked for.

use std::io;
use std::time::Duration;

use crate::net::offload::Offload;

/// How long a turn is. The least that the kernel takes; a packet needs a tenth of it.
pub const SLICE: Duration = Duration::from_micros(100);

/// What every kernel knows of the structure, up to `sched_period`.
const SIZE: u32 = 48;

/// Asks for short turns for the calling thread. What else it has (policy, nice value, flags) stays.
///
/// A refusal costs nothing but time: all works as before.
#[must_use]
pub fn ask() -> Offload {
    let asked = attributes(0).and_then(|mut attributes| {
        if attributes.sched_policy != libc::SCHED_OTHER as u32 {
            return Ok(Err("the thread was given another scheduling policy".to_owned()));
        }
        // Far less than 2⁶⁴ ns.
        attributes.sched_runtime = SLICE.as_nanos() as u64;
        set(&attributes)?;
        Ok(match of(0)? {
            Some(SLICE) => Ok(()),
            _ => Err("the kernel doesn't have it; 6.12 and later do".to_owned()),
        })
    });
    match asked {
        Ok(Ok(())) => Offload::On,
        Ok(Err(reason)) => Offload::Off(reason),
        Err(error) => Offload::Off(format!("refused: {error}")),
    }
}

/// Has the calling thread get less of a core that others want, too: of 19 steps down it takes 15. One that took more stays there.
///
/// # Errors
/// If the system refuses.
pub fn stand_back() -> io::Result<()> {
    const NICE: i32 = 15;
    let attributes = attributes(0)?;
    set(&libc::sched_attr { sched_nice: attributes.sched_nice.max(NICE), ..attributes })
}

/// How long the turns of a thread are, by its number in the kernel (0: the calling one). None where the kernel doesn't
/// tell, or goes by something else.
///
/// # Errors
/// If there is no such thread, or the system doesn't let it be asked.
pub fn of(thread: libc::pid_t) -> io::Result<Option<Duration>> {
    let attributes = attributes(thread)?;
    let told = attributes.sched_policy == libc::SCHED_OTHER as u32 && attributes.sched_runtime > 0;
    Ok(told.then(|| Duration::from_nanos(attributes.sched_runtime)))
}

fn attributes(thread: libc::pid_t) -> io::Result<libc::sched_attr> {
    let mut attributes = libc::sched_attr {
        size: 0,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    let to = &raw mut attributes;
    // SAFETY: the kernel writes at most SIZE bytes, and the structure has no fewer (asserted below).
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, thread, to, SIZE, 0_u32) };
    if result == 0 { Ok(attributes) } else { Err(io::Error::last_os_error()) }
}

/// Sets them for the calling thread.
fn set(attributes: &libc::sched_attr) -> io::Result<()> {
    let attributes = libc::sched_attr { size: SIZE, ..*attributes };
    let from = &raw const attributes;
    // SAFETY: the kernel reads as many bytes as `size` says, and the structure has no fewer (asserted below). It changes
    // nothing but when the calling thread runs.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, from, 0_u32) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

const _: () = assert!(size_of::<libc::sched_attr>() >= SIZE as usize);

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs in a thread of its own: what is asked for stays with a thread.
    fn apart<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
        std::thread::spawn(body).join().unwrap()
    }

    fn mine() -> libc::sched_attr {
        attributes(0).unwrap()
    }

    /// Whether a thread may set its attributes here at all, and has the usual policy. Otherwise there is nothing to try.
    fn settable() -> bool {
        let set = attributes(0).and_then(|mine| {
            set(&mine)?;
            Ok(mine.sched_policy == libc::SCHED_OTHER as u32)
        });
        if !matches!(set, Ok(true)) {
            eprintln!("passed over: a thread can't set its scheduling here: {set:?}");
        }
        matches!(set, Ok(true))
    }

    #[test]
    fn turns_are_short_and_the_nice_value_stays() {
        if !apart(settable) {
            return;
        }
        let (nice, before, asked, after) = apart(|| {
            // Nobody needs a privilege to be nicer than he is.
            let nice = (mine().sched_nice + 1).min(19);
            set(&libc::sched_attr { sched_nice: nice, ..mine() }).unwrap();
            (nice, mine(), ask(), mine())
        });
        match asked {
            Offload::On => assert_eq!(Duration::from_nanos(after.sched_runtime), SLICE),
            Offload::Off(reason) => {
                assert!(reason.contains("6.12"), "{reason}");
                assert_eq!(after.sched_runtime, before.sched_runtime, "{after:?}");
            }
        }
        let rest = |a: &libc::sched_attr| (a.sched_policy, a.sched_flags, a.sched_nice);
        assert_eq!(rest(&after), rest(&before));
        assert_eq!(after.sched_nice, nice);
    }

    #[test]
    fn a_thread_with_another_policy_keeps_it_and_the_reason_is_said() {
        if !apart(settable) {
            return;
        }
        let (asked, after) = apart(|| {
            set(&libc::sched_attr { sched_policy: libc::SCHED_BATCH as u32, ..mine() }).unwrap();
            (ask(), mine())
        });
        assert_eq!(after.sched_policy, libc::SCHED_BATCH as u32);
        let Offload::Off(reason) = asked else { panic!("{asked:?}") };
        assert!(reason.contains("policy"), "{reason}");
    }

    #[test]
    fn a_sandbox_that_denies_it_is_no_error_and_the_reason_is_said() {
        if !apart(settable) {
            return;
        }
        let (denied, asked, before, after) = apart(|| {
            let before = mine();
            (deny(libc::SYS_sched_setattr), ask(), before, mine())
        });
        if let Err(error) = denied {
            eprintln!("passed over: this kernel takes no filter of system calls: {error}");
            return;
        }
        let Offload::Off(reason) = asked else { panic!("{asked:?}") };
        assert!(reason.contains("refused") && reason.contains("ermi"), "{reason}");
        assert_eq!(after.sched_runtime, before.sched_runtime);
    }

    #[test]
    fn of_a_thread_that_is_not_there_nothing_is_told() {
        if apart(settable) {
            assert_eq!(of(libc::pid_t::MAX).unwrap_err().raw_os_error(), Some(libc::ESRCH));
        }
    }

    /// Has the kernel refuse one system call to the calling thread from now on.
    fn deny(call: libc::c_long) -> io::Result<()> {
        let instruction = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
        let (load, equal, end) = (0x20, 0x15, 0x06);
        let call = u32::try_from(call).unwrap();
        let mut program = [
            // The number of the call is the first word of what the filter is shown.
            instruction(load, 0, 0, 0),
            instruction(equal, 0, 1, call),
            instruction(end, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
            instruction(end, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
        nix::sys::prctl::set_no_new_privs()?;
        // SAFETY: the kernel copies the program, whose length is right, before the call returns.
        let result = unsafe {
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
