//! The lab that is running: who keeps it, and how a further command gets inside.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};

use crate::topology::Host;

/// Where a lab keeps its things.
#[derive(Debug, Clone)]
pub struct Places {
    /// Everything.
    pub root: PathBuf,
    /// State of the programs; gone when the lab ends.
    pub work: PathBuf,
    /// What the programs printed; stays.
    pub logs: PathBuf,
    /// Who runs.
    pub session: PathBuf,
}

impl Places {
    /// Those under the target directory.
    #[must_use]
    pub fn of_this_workspace() -> Self {
        let root = crate::programs::target_directory().join("lab");
        Self {
            work: root.join("work"),
            logs: root.join("logs"),
            session: root.join("session.json"),
            root,
        }
    }

    /// Removes what a lab leaves, but for its logs.
    pub fn clean(&self) {
        std::fs::remove_dir_all(&self.work).ok();
        std::fs::remove_file(&self.session).ok();
    }
}

/// A lab that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The process that holds the lab's namespaces.
    keeper: i32,
    /// When it started, in the kernel's ticks: tells it from a later process of the same number.
    started: u64,
}

/// When a process started, in ticks since the machine did.
fn start_of(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, spaces and parentheses included; it ends at the last one.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

impl Session {
    /// Records that the process `keeper` holds a lab.
    ///
    /// # Errors
    /// If it has ended, or the file can't be written.
    pub fn record(keeper: u32, places: &Places) -> Result<Self> {
        let keeper = i32::try_from(keeper)?;
        let started = start_of(keeper).context("the lab ended at once")?;
        let session = Self { keeper, started };
        std::fs::create_dir_all(&places.root)?;
        std::fs::write(&places.session, serde_json::to_vec(&session)?)?;
        Ok(session)
    }

    /// The lab that runs in these places, if one does.
    #[must_use]
    pub fn running(places: &Places) -> Option<Self> {
        let text = std::fs::read(&places.session).ok()?;
        let session: Self = serde_json::from_slice(&text).ok()?;
        (start_of(session.keeper) == Some(session.started)).then_some(session)
    }

    /// Which process holds it.
    #[must_use]
    pub fn keeper(&self) -> i32 {
        self.keeper
    }

    /// Takes this process, which must have one thread only, into the lab. Programs that it starts then are inside.
    ///
    /// # Errors
    /// If the kernel refuses, as it does when the lab is another user's.
    pub fn enter(&self) -> Result<()> {
        let directory = std::env::current_dir()?;
        let open = |name: &str| {
            let path = format!("/proc/{}/ns/{name}", self.keeper);
            File::open(&path).with_context(|| format!("the lab's {name} namespace ({path})"))
        };
        // All are opened first: after the first step the lab's processes have other numbers.
        let namespaces = [
            (open("user")?, CloneFlags::CLONE_NEWUSER),
            (open("pid_for_children")?, CloneFlags::CLONE_NEWPID),
            (open("ipc")?, CloneFlags::CLONE_NEWIPC),
            (open("uts")?, CloneFlags::CLONE_NEWUTS),
            (open("net")?, CloneFlags::CLONE_NEWNET),
            (open("mnt")?, CloneFlags::CLONE_NEWNS),
        ];
        for (namespace, kind) in &namespaces {
            setns(namespace, *kind).with_context(|| format!("entering the lab ({kind:?})"))?;
        }
        std::env::set_current_dir(directory).ok();
        Ok(())
    }
}

/// Runs a program on a host of the running lab, with this terminal, and gives back how it ended.
///
/// # Errors
/// If no lab runs, or it has no such host.
pub fn run_in_lab(
    places: &Places,
    host: &str,
    prepare: impl FnOnce(&Host) -> Command,
) -> Result<ExitStatus> {
    let Some(session) = Session::running(places) else {
        bail!("no lab is running: start one with `cargo lab`, and use another terminal for this");
    };
    session.enter()?;
    let names = host_names(Path::new("/run/netns"));
    if !names.iter().any(|name| name == host) {
        bail!("the lab has no host {host:?}; there are: {}", names.join(", "));
    }
    let host = Host::open(host)?;
    let mut command = prepare(&host);
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().with_context(|| format!("starting {name}"))?;
    Ok(child.wait()?)
}

fn host_names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_counts_only_while_its_keeper_lives() {
        let root = tempfile::tempdir().unwrap();
        let places = Places {
            root: root.path().into(),
            work: root.path().join("work"),
            logs: root.path().join("logs"),
            session: root.path().join("session.json"),
        };
        assert_eq!(Session::running(&places), None);
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let session = Session::record(child.id(), &places).unwrap();
        assert_eq!(Session::running(&places), Some(session.clone()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(Session::running(&places), None);
        // A later process of the same number isn't it.
        let this = Session { keeper: i32::try_from(std::process::id()).unwrap(), ..session };
        std::fs::write(&places.session, serde_json::to_vec(&this).unwrap()).unwrap();
        assert_eq!(Session::running(&places), None);
        places.clean();
        assert!(!places.session.exists());
    }
}
