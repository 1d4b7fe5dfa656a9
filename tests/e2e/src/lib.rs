//! End-to-end tests: the real programs, in a hospital of network namespaces, without root.
//!
//! A test begins with [`fixture`]. Outside, that builds the programs and runs the same test again in a private world;
//! inside, it gives the hospital.

pub mod attack;
pub mod chaos;
pub mod client;
pub mod dhcp;
pub mod place;
pub mod queue;
pub mod replay;
pub mod stolen;
pub mod talk;
pub mod wire;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use anteroom_lab::anteroom::Gateway;
use anteroom_lab::figures::enforced_hospital;
use anteroom_lab::hospital::Hospital;
use anteroom_lab::namespace;
use anteroom_lab::ping::Series;
use anteroom_lab::programs::{self, Profile, Programs};
use anyhow::Context as _;
use tempfile::TempDir;

/// How far a hospital has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Machines and cables; no program of Anteroom runs.
    Built,
    /// A controller with its first operator; the gateways are enrolled, running, and wires.
    Wires,
    /// Everything approved, named, and in enforce under the lab's policy.
    Enforced,
}

/// A hospital that tells what its programs said if the test fails.
#[derive(Debug)]
pub struct Fixture {
    /// The hospital.
    pub hospital: Hospital,
    directory: TempDir,
}

impl Fixture {
    /// A directory for the test's own files.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if std::thread::panicking() {
            print_logs(&self.hospital.logs);
        }
    }
}

fn print_logs(directory: &Path) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(30)..].join("\n");
        eprintln!("---- {}\n{tail}", entry.path().display());
    }
}

/// The programs of this workspace, built. `None` where the kernel denies private worlds: then nothing is built either.
///
/// # Panics
/// If the programs can't be built.
#[must_use]
pub fn own_programs() -> Option<Programs> {
    let programs = Programs::of(Profile::Dev);
    if !namespace::inside() {
        if let Err(denied) = namespace::available() {
            assert!(std::env::var_os(namespace::REQUIRE).is_none(), "{denied}");
            eprintln!("skipped: {denied}");
            return None;
        }
        static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
        let built =
            BUILT.get_or_init(|| programs.build(Profile::Dev, false).map_err(|e| format!("{e:#}")));
        if let Err(error) = built {
            panic!("{error}");
        }
    }
    Some(programs)
}

/// Whether the dicom-rs programs are there, which `cargo lab` installs: where they aren't, says in one line what isn't tested.
///
/// # Panics
/// If they are missing where every test is required, as in CI.
#[must_use]
pub fn dicom_programs(programs: &Programs, without: &str) -> bool {
    let missing = programs.missing_tools();
    let Some(first) = missing.first() else { return true };
    let required = std::env::var_os(namespace::REQUIRE).is_some();
    assert!(!required, "{first} isn't installed: run `cargo lab --once` first, which installs it");
    eprintln!("{first} isn't installed (cargo lab installs it): {without}");
    false
}

/// Where a program of the system's is; none where its package isn't installed, which is said in one line.
///
/// # Panics
/// If it is missing where every test is required, as in CI, which installs it.
#[must_use]
pub fn program(name: &str, package: &str) -> Option<PathBuf> {
    let found = programs::find(name);
    if found.is_none() {
        let missing = format!("{name} isn't installed (package {package})");
        assert!(std::env::var_os(namespace::REQUIRE).is_none(), "{missing}");
        eprintln!("skipped: {missing}");
    }
    found
}

/// The hospital of a test whose full name is `test`; `None` outside (and where the kernel denies private worlds), where the
/// test is to return.
///
/// # Panics
/// If the programs can't be built or the hospital can't be brought to this stage.
#[must_use]
pub fn fixture(test: &str, stage: Stage) -> Option<Fixture> {
    fixture_with(test, stage, |programs, _| programs)
}

/// As [`fixture`], with programs that `change` has changed; it is given a directory for what it needs to that end.
///
/// # Panics
/// As [`fixture`].
#[must_use]
pub fn fixture_with(
    test: &str,
    stage: Stage,
    change: impl FnOnce(Programs, &Path) -> Programs,
) -> Option<Fixture> {
    let programs = own_programs()?;
    if !namespace::in_private_network(test) {
        return None;
    }
    let directory = tempfile::Builder::new().prefix("anteroom-e2e-").tempdir().unwrap();
    let programs = change(programs, directory.path());
    let logs = directory.path().join("logs");
    let raised = if stage == Stage::Enforced {
        enforced_hospital(programs, directory.path(), &logs)
    } else {
        Hospital::build(programs, directory.path(), &logs).and_then(|mut hospital| {
            if stage == Stage::Wires {
                hospital.start_anteroom()?;
            }
            Ok(hospital)
        })
    };
    match raised {
        Ok(hospital) => Some(Fixture { hospital, directory }),
        Err(error) => {
            print_logs(&logs);
            panic!("the hospital isn't {stage:?}: {error:#}");
        }
    }
}

/// Has the agent of a gateway start anew with a line more under `[underlay]`.
///
/// # Panics
/// If its configuration can't be changed, or it doesn't come back.
pub fn with_underlay(hospital: &mut Hospital, gateway: &str, line: &str) {
    let gateway = hospital.gateway(gateway);
    gateway.stop().unwrap();
    let text = std::fs::read_to_string(&gateway.config).unwrap();
    let (before, after) = text.split_once("[underlay]\n").unwrap_or_else(|| panic!("{text}"));
    std::fs::write(&gateway.config, format!("{before}[underlay]\n{line}\n{after}")).unwrap();
    gateway.start().unwrap();
    gateway.wait_running().unwrap();
}

/// How long relays keep a packet that can't go on, but for what makes them late.
const KEPT: Duration = Duration::from_millis(200);

/// Asserts that none of these pings, one each `beat`, was lost. The machine alone may lose some: if it kept a thread (for `stall`) or a
/// packet waiting for longer than relays keep packets, then as many as were sent in twice that time.
///
/// # Panics
/// If more were lost.
#[track_caller]
pub fn none_lost(series: &Series, beat: Duration, stall: Duration, what: &str) {
    let waited = stall.max(Duration::from_micros(series.times.last().copied().unwrap_or(0)));
    println!("{what}: {} of {} pings lost; {waited:?} at worst", series.lost(), series.sent);
    let lost = beat * u32::try_from(series.lost()).unwrap_or(u32::MAX);
    let by_machine = waited >= KEPT && lost <= waited * 2;
    assert!(series.lost() == 0 || by_machine, "{what}: {stall:?}, {series:?}");
}

/// What a gateway has dropped since its start, by the word of the reason.
///
/// # Errors
/// If its agent doesn't answer.
pub fn drops(gateway: &Gateway) -> anyhow::Result<BTreeMap<String, u64>> {
    let status = gateway.status()?;
    let drops = status["data_plane"]["engine"]["drops"].clone();
    serde_json::from_value(drops).with_context(|| format!("no drops in {status}"))
}

/// All of them together.
#[must_use]
pub fn sum(drops: &BTreeMap<String, u64>) -> u64 {
    drops.values().sum()
}

/// Every file below a directory with its content: to see whether anything that was saved has changed.
#[must_use]
pub fn snapshot(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut open = vec![directory.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(next).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else {
                files.insert(path.clone(), std::fs::read(&path).unwrap_or_default());
            }
        }
    }
    files
}

/// Which files differ between two snapshots.
#[must_use]
pub fn differences(
    before: &BTreeMap<PathBuf, Vec<u8>>,
    after: &BTreeMap<PathBuf, Vec<u8>>,
) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = before.keys().chain(after.keys()).cloned().collect();
    paths.sort();
    paths.dedup();
    paths.retain(|path| before.get(path) != after.get(path));
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_loses_is_bounded_by_how_long_it_stood_still() {
        let beat = Duration::from_millis(10);
        let series = |lost: u64, slowest| Series {
            sent: 100,
            received: 100 - lost,
            times: vec![100, slowest],
            missing: vec![],
            untaken: 0,
            longest_gap: lost,
            first_reply_at: None,
            last_reply_at: None,
        };
        let holds = |series: &Series, stall| {
            std::panic::catch_unwind(|| none_lost(series, beat, stall, "a test")).is_ok()
        };
        let (quiet, stood) = (Duration::from_millis(50), Duration::from_millis(300));
        assert!(holds(&series(0, 200), quiet) && holds(&series(0, 900_000), stood));
        assert!(!holds(&series(1, 200), quiet), "nothing explains it");
        assert!(holds(&series(60, 200), stood) && holds(&series(60, 300_000), quiet));
        assert!(!holds(&series(61, 200), stood), "more than that explains");
    }

    #[test]
    fn a_changed_a_new_and_a_missing_file_are_differences() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        std::fs::create_dir(root.join("deep")).unwrap();
        for name in ["same", "changed", "deep/missing"] {
            std::fs::write(root.join(name), name).unwrap();
        }
        let before = snapshot(root);
        std::fs::write(root.join("changed"), "x").unwrap();
        std::fs::write(root.join("new"), "x").unwrap();
        std::fs::remove_file(root.join("deep/missing")).unwrap();
        let names = ["changed", "deep/missing", "new"].map(|name| root.join(name));
        assert_eq!(differences(&before, &snapshot(root)), names);
    }
}
