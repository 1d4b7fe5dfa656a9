//! Clocks that are wrong by days or years, each machine's by itself. Needs libfaketime (Debian's package of that name).

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::programs::Programs;

/// What agents, controllers and command lines take for the time, on each machine.
#[derive(Debug, Clone)]
pub struct Clocks {
    directory: PathBuf,
}

/// What lies about the time to the programs that load it.
fn liar() -> Option<PathBuf> {
    ["x86_64", "aarch64"]
        .map(|machine| format!("/usr/lib/{machine}-linux-gnu/faketime/libfaketime.so.1"))
        .into_iter()
        .map(PathBuf::from)
        .find(|file| file.is_file())
}

impl Clocks {
    /// Whether clocks can be wrong here.
    #[must_use]
    pub fn can_be_wrong() -> bool {
        liar().is_some()
    }

    /// Programs whose agent, controller and command line take the time of the machine that they are started on, which is right until
    /// it is [`set`](Self::set). What that needs lies in `directory`. `None` where libfaketime isn't installed.
    ///
    /// # Errors
    /// If nothing can be written there.
    pub fn lie_to(programs: Programs, directory: &Path) -> Result<Option<(Self, Programs)>> {
        let Some(liar) = liar() else { return Ok(None) };
        let clocks = Self { directory: directory.into() };
        std::fs::create_dir_all(directory)?;
        let agent = clocks.wrap(&liar, &programs.agent)?;
        let controller = clocks.wrap(&liar, &programs.controller)?;
        let cli = clocks.wrap(&liar, &programs.cli)?;
        Ok(Some((clocks, Programs { agent, controller, cli, ..programs })))
    }

    fn wrap(&self, liar: &Path, program: &Path) -> Result<PathBuf> {
        let wrapper = self.directory.join(program.file_name().context("a program has a name")?);
        let text = format!(
            "#!/bin/sh\nsteps=\"{0}/$(uname -n).steps\"\noffset=$(cat \"{0}/$(uname -n).clock\" 2>/dev/null)\n\
             export DONT_FAKE_MONOTONIC=1 FAKETIME_DONT_FAKE_MONOTONIC=1\n[ -e \"$steps\" ] && \
             LD_PRELOAD=\"{1}\" FAKETIME_TIMESTAMP_FILE=\"$steps\" FAKETIME_CACHE_DURATION=1 exec \"{2}\" \"$@\"\n[ -n \"$offset\" ] || exec \"{2}\" \"$@\"\n\
             LD_PRELOAD=\"{1}\" FAKETIME=$offset exec \"{2}\" \"$@\"\n",
            self.directory.display(),
            liar.display(),
            program.display()
        );
        std::fs::write(&wrapper, text).with_context(|| wrapper.display().to_string())?;
        std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755))?;
        Ok(wrapper)
    }

    /// By how many days a machine's clock is wrong, for programs that are started there from now on.
    ///
    /// # Errors
    /// If that can't be written down.
    pub fn set(&self, machine: &str, days: i64) -> Result<()> {
        self.set_hours(machine, days * 24)
    }

    /// By how many hours it is.
    ///
    /// # Errors
    /// If that can't be written down.
    pub fn set_hours(&self, machine: &str, hours: i64) -> Result<()> {
        let file = self.directory.join(format!("{machine}.clock"));
        let offset = if hours == 0 { String::new() } else { format!("{hours:+}h") };
        std::fs::write(&file, offset).with_context(|| file.display().to_string())
    }

    /// Steps a machine's clock under the programs that run there, to so many days from the right time: within a second or two. Those
    /// that were started there after the first step follow, whatever it is [`set`](Self::set) to.
    ///
    /// # Errors
    /// If that can't be written down.
    pub fn step(&self, machine: &str, days: i64) -> Result<()> {
        let file = self.directory.join(format!("{machine}.steps"));
        // In one piece, since it is read at any time.
        let new = file.with_extension("new");
        let written = std::fs::write(&new, format!("{:+}h\n", days * 24));
        written
            .and_then(|()| std::fs::rename(&new, &file))
            .with_context(|| file.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_the_right_time_until_it_is_set() {
        let directory = tempfile::tempdir().unwrap();
        let program = crate::programs::find("date").unwrap();
        let programs = Programs {
            agent: program.clone(),
            controller: program.clone(),
            cli: program,
            tools: PathBuf::new(),
        };
        let Some((clocks, programs)) = Clocks::lie_to(programs, directory.path()).unwrap() else {
            eprintln!("skipped: libfaketime isn't installed");
            return;
        };
        let year = || -> i64 {
            let said = std::process::Command::new(&programs.agent).arg("+%Y").output().unwrap();
            String::from_utf8_lossy(&said.stdout).trim().parse().unwrap()
        };
        let now = year();
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        clocks.set("elsewhere", 4_000).unwrap();
        assert!((now..=now + 1).contains(&year()));
        clocks.set(name.trim(), 4_000).unwrap();
        assert!(year() >= now + 10);
        clocks.set(name.trim(), -9_000).unwrap();
        assert!(year() <= now - 24);
        clocks.set(name.trim(), 0).unwrap();
        assert!(year() <= now + 1);
        clocks.step(name.trim(), 4_000).unwrap();
        assert!(year() >= now + 10);
        clocks.step(name.trim(), 0).unwrap();
        assert!((now..=now + 1).contains(&year()));
    }
}
