//! Programs that run in hosts for a while, with their output in a file.

use std::fs::{File, OpenOptions};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::topology::Host;
use crate::wait;

/// A running program. It is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` (made by [`Host::command`]) with its output appended to `log`.
    ///
    /// # Errors
    /// If the program or the file can't be opened.
    pub fn spawn(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        if let Some(directory) = log.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let out: File = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("opening {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self { name: name.into(), child, log: log.into() })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Memory that it holds now, in kB.
    ///
    /// # Errors
    /// If it has ended.
    pub fn resident(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .with_context(|| format!("no VmRSS of {}", self.name))
    }

    /// Processor time that it has used, in the kernel too.
    ///
    /// # Errors
    /// If it has ended.
    pub fn processor_time(&self) -> Result<Duration> {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        // The name, in brackets, may have blanks in it; times are the 14th and 15th field, in hundredths of a second.
        let behind = stat.rsplit(')').next().unwrap_or_default();
        let mut times = behind.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
        match (times.next(), times.next()) {
            (Some(Ok(user)), Some(Ok(kernel))) => Ok(Duration::from_millis(10 * (user + kernel))),
            _ => bail!("no times of {} in {stat:?}", self.name),
        }
    }

    /// What it has printed so far.
    #[must_use]
    pub fn output(&self) -> String {
        std::fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The last lines that it printed.
    #[must_use]
    pub fn tail(&self) -> String {
        let output = self.output();
        let lines: Vec<&str> = output.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// If it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, signal).with_context(|| format!("sending {signal} to {}", self.name))
    }

    /// Kills it, as a power cut would.
    ///
    /// # Errors
    /// If it can't be waited for.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().ok();
        self.child.wait().with_context(|| format!("waiting for {}", self.name))?;
        Ok(())
    }

    /// Asks it to end, and waits.
    ///
    /// # Errors
    /// If it hasn't within `limit`; then it is killed.
    pub fn stop(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        let what = format!("{} to end", self.name);
        match wait::until(limit, &what, || self.ended()) {
            Ok(status) => Ok(status),
            Err(timed_out) => {
                self.kill()?;
                bail!("{timed_out}; the last that it printed:\n{}", self.tail())
            }
        }
    }

    /// Its threads: ids and names.
    ///
    /// # Errors
    /// If it has ended.
    pub fn threads(&self) -> Result<Vec<(i32, String)>> {
        let tasks = format!("/proc/{}/task", self.child.id());
        let entries = std::fs::read_dir(&tasks).with_context(|| format!("reading {tasks}"))?;
        let mut threads = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let id = path.file_name().and_then(|id| id.to_str()?.parse().ok());
            // One that has ended meanwhile has no name any more.
            if let (Some(id), Ok(name)) = (id, std::fs::read_to_string(path.join("comm"))) {
                threads.push((id, name.trim().to_owned()));
            }
        }
        Ok(threads)
    }

    /// Holds one thread still, as if it hung, until what this gives is dropped. Signals stop a program as a whole only;
    /// this is how a debugger holds a thread, and needs no more rights than over a program that one has started.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn hang(&self, thread: i32) -> Result<Hung> {
        let hung = Hung { thread, here: PhantomData };
        // SAFETY: the request takes no pointers that the kernel would follow.
        unsafe { hung.request(libc::PTRACE_SEIZE) }?;
        // SAFETY: as before.
        unsafe { hung.request(libc::PTRACE_INTERRUPT) }?;
        let mut status = 0;
        // SAFETY: the pointer is to a live integer.
        if unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) } != thread {
            let error = std::io::Error::last_os_error();
            bail!("holding a thread of {}: {error}", self.name);
        }
        Ok(hung)
    }

    /// An error with what it printed last, if it has ended.
    ///
    /// # Errors
    /// If it has ended.
    pub fn must_run(&mut self) -> Result<()> {
        match self.ended() {
            Some(status) => {
                bail!(
                    "{} ended with {status}; the last that it printed:\n{}",
                    self.name,
                    self.tail()
                )
            }
            None => Ok(()),
        }
    }
}

/// A thread that is held still. It goes on when this is dropped.
#[derive(Debug)]
pub struct Hung {
    thread: i32,
    /// The kernel takes requests from the thread alone that made the first.
    here: PhantomData<*const ()>,
}

impl Hung {
    /// # Safety
    /// The request must take no pointers.
    unsafe fn request(&self, request: libc::c_uint) -> Result<()> {
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: as the caller promises; nothing is read or written through the null pointers.
        if unsafe { libc::ptrace(request, self.thread, none, none) } == -1 {
            let error = std::io::Error::last_os_error();
            bail!("holding or letting go of thread {}: {error}", self.thread);
        }
        Ok(())
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        // SAFETY: the request takes no pointers. A thread that has ended needn't be let go.
        unsafe { self.request(libc::PTRACE_DETACH) }.ok();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Waits until something listens on a TCP port of a host.
///
/// # Errors
/// If nothing does within `limit`, or the program ends.
pub fn wait_listening(
    host: &Host,
    port: u16,
    process: &mut Process,
    limit: Duration,
) -> Result<()> {
    let wanted = format!(":{port:04X}");
    let listens = || {
        ["tcp", "tcp6"].iter().any(|table| {
            std::fs::read_to_string(format!("/proc/thread-self/net/{table}")).is_ok_and(|text| {
                text.lines().skip(1).any(|line| {
                    let mut fields = line.split_whitespace();
                    fields.nth(1).is_some_and(|local| local.ends_with(&wanted))
                        && fields.nth(1) == Some("0A")
                })
            })
        })
    };
    let what = format!("port {port} on {} to listen", host.name());
    wait::until(limit, &what, || {
        if process.must_run().is_err() {
            return Some(false);
        }
        host.enter(listens).unwrap_or(false).then_some(true)
    })
    .with_context(|| format!("the last that was printed:\n{}", process.tail()))?;
    process.must_run()
}
