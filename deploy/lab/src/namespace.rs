//! A private world for the lab: user, network, mount, process, IPC and host-name namespaces that need no root and
//! end, with everything in them, when the lab does.
//!
//! A command that [`privately`] has prepared starts in such a world as uid 0. Three processes stand behind it:
//! a keeper in the old process namespace, that hands on the exit status; an init, that reaps orphans; and the program.
//! Each dies when the one before it does, and the kernel kills the rest when the init ends.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};

use nix::libc;

/// Set in programs that run inside a private world.
pub const INSIDE: &str = "ANTEROOM_LAB_INSIDE";

/// Set where tests must fail rather than skip when the kernel denies private namespaces.
pub const REQUIRE: &str = "ANTEROOM_REQUIRE_NAMESPACES";

/// Why the kernel denies a private world.
#[derive(Debug, Clone, thiserror::Error)]
#[error("this kernel gives no usable private network to an ordinary user: {0}")]
pub struct Denied(pub String);

/// Whether this process runs inside a private world.
#[must_use]
pub fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Whether private worlds work here, found out once by making a pair of virtual cables in one: some systems grant the
/// namespace and then deny what can be done in it.
///
/// # Errors
/// What the kernel, or `ip`, said.
pub fn available() -> Result<(), Denied> {
    static ANSWER: OnceLock<Result<(), Denied>> = OnceLock::new();
    ANSWER
        .get_or_init(|| {
            let mut probe = Command::new(crate::programs::ip());
            probe.args(["link", "add", "name", "probe0", "type", "veth", "peer", "name", "probe1"]);
            probe.stdin(Stdio::null());
            match privately(&mut probe).output() {
                Ok(output) if output.status.success() => Ok(()),
                Ok(output) => Err(Denied(format!(
                    "making a virtual cable in it failed: {}",
                    String::from_utf8_lossy(&output.stderr).trim()
                ))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    Err(Denied("`ip` isn't installed (package iproute2)".into()))
                }
                Err(error) => Err(Denied(error.to_string())),
            }
        })
        .clone()
}

/// Prepares `command` to start in a world of its own, with an empty network, an empty `/run` and uid 0.
pub fn privately(command: &mut Command) -> &mut Command {
    prepared(command, Maps::of_this_process())
}

/// As [`privately`], but the program stays the user that it is: for measurements, since a program that is root in a user
/// namespace of its own alone may not have large socket buffers. Only root can start it.
pub fn privately_as_root(command: &mut Command) -> &mut Command {
    prepared(command, Maps { user: false, wide: None, narrow: Default::default() })
}

fn prepared(command: &mut Command, maps: Maps) -> &mut Command {
    let parent = std::process::id();
    command.env(INSIDE, "1");
    // SAFETY: the closure runs in the forked child, makes system calls only, and allocates nothing; all that it
    // reads was prepared before.
    unsafe { command.pre_exec(move || enter(&maps, parent)) }
}

/// Runs one test of the calling test program in a private world, and says whether the caller is already inside it.
///
/// A test begins with `if !in_private_network("path::of::test") { return; }`: outside, this runs the same test again
/// in a world of its own, waits, and panics with its output where it failed; inside, it returns `true`. Where the
/// kernel denies private worlds the test is skipped with one line, unless [`REQUIRE`] is set.
///
/// # Panics
/// If the test fails inside, can't be started, or is denied while [`REQUIRE`] is set.
pub fn in_private_network(test_name: &str) -> bool {
    if inside() {
        return true;
    }
    if let Err(denied) = available() {
        assert!(std::env::var_os(REQUIRE).is_none(), "{denied}, and {REQUIRE} is set");
        eprintln!("skipped {test_name}: {denied}");
        return false;
    }
    let _place = Place::wait();
    let this = std::env::current_exe().expect("a running program has a path");
    let mut again = Command::new(this);
    again.args(["--exact", test_name, "--nocapture", "--include-ignored", "--test-threads", "1"]);
    again.stdin(Stdio::null());
    let output = privately(&mut again).output().expect("the test starts in a private network");
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{test_name}, in its private network:\n{text}");
    assert!(text.contains("1 passed"), "no test is called {test_name:?}:\n{text}");
    print!("{text}");
    false
}

/// A place among the private worlds that one test program has at once: as many as the machine has cores. Each is a
/// machine room of its own with a dozen programs, while tests are started many at a time, since most of them only wait.
struct Place;

impl Place {
    fn taken() -> (&'static Mutex<usize>, &'static Condvar) {
        static TAKEN: Mutex<usize> = Mutex::new(0);
        static LEFT: Condvar = Condvar::new();
        (&TAKEN, &LEFT)
    }

    fn wait() -> Self {
        let (taken, left) = Self::taken();
        let most = std::thread::available_parallelism().map_or(1, usize::from);
        let taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken =
            left.wait_while(taken, |taken| *taken >= most).unwrap_or_else(PoisonError::into_inner);
        *taken += 1;
        Self
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let (taken, left) = Self::taken();
        *taken.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        left.notify_one();
    }
}

/// Turns the exit status of a private command into an exit code for this process.
#[must_use]
pub fn exit_code(status: ExitStatus) -> u8 {
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// Contents of the id maps, as bytes that a forked child can write.
struct Maps {
    /// Whether there is a user namespace to map at all.
    user: bool,
    wide: Option<(Vec<u8>, Vec<u8>)>,
    narrow: (Vec<u8>, Vec<u8>),
}

impl Maps {
    /// For root every id keeps its number, since root must be able to read what its users own; for an ordinary user
    /// just their own id becomes 0.
    fn of_this_process() -> Self {
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        let identity = |path: &str| {
            let map = std::fs::read_to_string(path).ok()?;
            let mut lines = String::new();
            for line in map.lines() {
                let mut fields = line.split_whitespace();
                let (inside, _, count) = (fields.next()?, fields.next()?, fields.next()?);
                lines.push_str(&format!("{inside} {inside} {count}\n"));
            }
            Some(lines.into_bytes())
        };
        let wide = if uid.is_root() {
            identity("/proc/self/uid_map").zip(identity("/proc/self/gid_map"))
        } else {
            None
        };
        Self {
            user: true,
            wide,
            narrow: (format!("0 {uid} 1\n").into_bytes(), format!("0 {gid} 1\n").into_bytes()),
        }
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn write_file(path: &std::ffi::CStr, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the path ends in NUL; the buffer is valid for its length; the descriptor is closed on each way out.
    unsafe {
        let fd = check(libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC))?;
        let written = libc::write(fd, bytes.as_ptr().cast(), bytes.len());
        let result = if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
        libc::close(fd);
        result
    }
}

/// Writes `/proc/PID/NAME` into `buffer` without allocating.
fn proc_path(buffer: &mut [u8; 64], pid: libc::pid_t, name: &[u8]) {
    let mut digits = [0_u8; 12];
    let mut at = digits.len();
    let mut rest = pid.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    let parts: [&[u8]; 4] = [b"/proc/", &digits[at..], b"/", name];
    let mut end = 0;
    for part in parts {
        buffer[end..end + part.len()].copy_from_slice(part);
        end += part.len();
    }
    buffer[end] = 0;
}

fn write_proc(pid: libc::pid_t, name: &[u8], bytes: &[u8]) -> io::Result<()> {
    let mut buffer = [0_u8; 64];
    proc_path(&mut buffer, pid, name);
    let path = std::ffi::CStr::from_bytes_until_nul(&buffer)
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    write_file(path, bytes)
}

fn write_maps(pid: libc::pid_t, maps: &Maps) -> io::Result<()> {
    if let Some((uids, gids)) = &maps.wide
        && write_proc(pid, b"uid_map", uids).is_ok()
    {
        return write_proc(pid, b"gid_map", gids);
    }
    write_proc(pid, b"setgroups", b"deny")?;
    write_proc(pid, b"uid_map", &maps.narrow.0)?;
    write_proc(pid, b"gid_map", &maps.narrow.1)
}

/// Makes the user namespace together with all others. The id maps are written by a helper that stayed outside: inside
/// it, a process may map one id only.
fn unshare_all(maps: &Maps) -> io::Result<()> {
    let all = libc::CLONE_NEWNS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS;
    if !maps.user {
        // SAFETY: a plain system call.
        return check(unsafe { libc::unshare(all) }).map(|_| ());
    }
    // SAFETY: plain system calls on descriptors made here; the helper only writes files and ends with _exit.
    unsafe {
        let mut go = [0; 2];
        check(libc::pipe2(go.as_mut_ptr(), libc::O_CLOEXEC))?;
        let this = libc::getpid();
        let helper = check(libc::fork())?;
        if helper == 0 {
            libc::close(go[1]);
            let mut byte = 0_u8;
            if libc::read(go[0], (&raw mut byte).cast(), 1) != 1 {
                libc::_exit(0);
            }
            let code = match write_maps(this, maps) {
                Ok(()) => 0,
                Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
            };
            libc::_exit(code);
        }
        libc::close(go[0]);
        let unshared = check(libc::unshare(libc::CLONE_NEWUSER | all));
        // The change of user namespace made /proc/self unwritable for its owner.
        libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
        if unshared.is_ok() {
            libc::write(go[1], [1_u8].as_ptr().cast(), 1);
        }
        libc::close(go[1]);
        let mut status = 0;
        while libc::waitpid(helper, &raw mut status, 0) < 0
            && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
        {}
        unshared?;
        match libc::WEXITSTATUS(status) {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }
}

fn mount(
    source: &std::ffi::CStr,
    target: &std::ffi::CStr,
    kind: &std::ffi::CStr,
) -> io::Result<()> {
    let flags = libc::MS_NOSUID | libc::MS_NODEV;
    // SAFETY: all strings end in NUL; no data.
    check(unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null())
    })
    .map(|_| ())
}

/// Waits for `child`, reaping whatever else ends meanwhile, and ends with its status.
fn keep(child: libc::pid_t) -> ! {
    // SAFETY: plain system calls; closing every descriptor but the standard ones lets the parent see that the program
    // has started. This process never returns to Rust code.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32);
        let mut status = 0;
        loop {
            let ended = libc::waitpid(-1, &raw mut status, 0);
            if ended == child {
                break;
            }
            if ended < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                libc::_exit(1);
            }
        }
        if libc::WIFEXITED(status) {
            libc::_exit(libc::WEXITSTATUS(status));
        }
        libc::_exit(128 + libc::WTERMSIG(status));
    }
}

/// The steps from a forked child to a program in its private world.
fn enter(maps: &Maps, parent: u32) -> io::Result<()> {
    // SAFETY: plain system calls in a process with one thread.
    unsafe {
        unshare_all(maps)?;
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0))?;
        if libc::getppid().cast_unsigned() != parent {
            libc::_exit(1);
        }
        check(libc::mount(
            c"none".as_ptr(),
            c"/".as_ptr(),
            std::ptr::null(),
            libc::MS_REC | libc::MS_PRIVATE,
            std::ptr::null(),
        ))?;
        mount(c"tmpfs", c"/run", c"tmpfs")?;
        libc::signal(libc::SIGINT, libc::SIG_IGN);
        libc::signal(libc::SIGTERM, libc::SIG_IGN);
        libc::signal(libc::SIGHUP, libc::SIG_IGN);
        let init = check(libc::fork())?;
        if init != 0 {
            keep(init);
        }
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0))?;
        // Denied in containers that hide parts of /proc; the old one then still serves.
        mount(c"proc", c"/proc", c"proc").ok();
        let program = check(libc::fork())?;
        if program != 0 {
            keep(program);
        }
        libc::signal(libc::SIGINT, libc::SIG_DFL);
        libc::signal(libc::SIGTERM, libc::SIG_DFL);
        libc::signal(libc::SIGHUP, libc::SIG_DFL);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_proc_are_written_without_allocating() {
        let mut buffer = [0; 64];
        proc_path(&mut buffer, 4_194_304, b"uid_map");
        assert!(buffer.starts_with(b"/proc/4194304/uid_map\0"));
        proc_path(&mut buffer, 1, b"gid_map");
        assert!(buffer.starts_with(b"/proc/1/gid_map\0"));
    }

    #[test]
    fn a_private_program_of_root_stays_the_same_user_in_a_network_of_its_own() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: only root can");
            return;
        }
        let link = |name: &str| std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        let mut show = Command::new("readlink");
        show.args(["/proc/self/ns/user", "/proc/self/ns/net"]);
        let Ok(output) = privately_as_root(&mut show).output() else {
            assert!(std::env::var_os(REQUIRE).is_none(), "denied, and {REQUIRE} is set");
            eprintln!("skipped: this root may not make namespaces");
            return;
        };
        let text = String::from_utf8_lossy(&output.stdout);
        let mut lines = text.lines();
        assert_eq!(lines.next().map(std::path::PathBuf::from), Some(link("user")), "{text}");
        let network = lines.next().map(std::path::PathBuf::from);
        assert!(network.is_some_and(|network| network != link("net")), "{text}");
    }

    #[test]
    fn a_private_program_is_root_alone_and_its_status_comes_back() {
        if available().is_err() {
            eprintln!("skipped: {}", available().unwrap_err());
            return;
        }
        let script = "test $(id -u) = 0 && test -z \"$(ls /run)\" && test $$ -lt 10 && exit 42";
        let mut shell = Command::new("sh");
        shell.args(["-c", script]);
        let output = privately(&mut shell).output().unwrap();
        assert_eq!(output.status.code(), Some(42), "{output:?}");
    }

    #[test]
    fn a_missing_program_is_an_error_at_start() {
        if available().is_err() {
            return;
        }
        let error = privately(&mut Command::new("/nowhere/at/all")).status().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn all_that_a_private_program_left_running_dies_with_it() {
        if available().is_err() {
            return;
        }
        let mark = format!("{}.5", 100_000 + std::process::id());
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("setsid sleep {mark} & exec sleep 0")]);
        assert!(privately(&mut shell).status().unwrap().success());
        crate::wait::until(std::time::Duration::from_secs(60), "the orphan to end", || {
            let running = std::fs::read_dir("/proc").ok()?.flatten().any(|entry| {
                std::fs::read_to_string(entry.path().join("cmdline"))
                    .is_ok_and(|line| line.contains(&mark) && line.starts_with("sleep"))
            });
            (!running).then_some(())
        })
        .unwrap();
    }
}
