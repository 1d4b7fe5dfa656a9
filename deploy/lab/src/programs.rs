//! Where the programs are, and how they get there: the workspace's own are built, DICOM's come from crates.io.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// Where the lab's `cargo install` puts programs, below the target directory.
pub const LAB_TOOLS: &str = "lab-tools";
/// Where the benchmark's `cargo install` puts programs, below the target directory.
pub const BENCH_TOOLS: &str = "bench-tools";

/// Version of the dicom-rs programs.
const DICOM_RS: &str = "0.10.1";

/// The dicom-rs programs, which are crates of the same names.
const DICOM_TOOLS: [&str; 3] = ["dicom-storescu", "dicom-storescp", "dicom-echoscu"];

/// How they are built: soon done. The devices here send a few pictures as they are, which takes neither the codecs that the
/// defaults bring nor much optimisation.
const DICOM_BUILD: [&str; 3] = ["--no-default-features", "--config", "profile.release.opt-level=1"];

/// The packages of the workspace's own programs, which bear the same names.
const OWN: [&str; 3] = ["anteroom-agent", "anteroom-controller", "anteroom"];

/// How the workspace's programs are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Quick to build; what tests use.
    Dev,
    /// What is shipped.
    Release,
}

/// Where each program is.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The gateway's.
    pub agent: PathBuf,
    /// The controller's.
    pub controller: PathBuf,
    /// The operator's.
    pub cli: PathBuf,
    /// Where dicom-rs' programs are.
    pub tools: PathBuf,
}

/// The first program of this name in the search path, or where administrators' programs are.
#[must_use]
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|program| program.is_file())
}

/// `ip` of iproute2, which ordinary users often have outside their search path.
#[must_use]
pub fn ip() -> &'static Path {
    static IP: OnceLock<PathBuf> = OnceLock::new();
    IP.get_or_init(|| find("ip").unwrap_or_else(|| "ip".into()))
}

/// The workspace's target directory, found from where this program itself is.
#[must_use]
pub fn target_directory() -> PathBuf {
    let fallback = || workspace().join("target");
    let Ok(this) = std::env::current_exe() else { return fallback() };
    this.ancestors()
        .skip(1)
        .find(|directory| directory.join("CACHEDIR.TAG").is_file())
        .map_or_else(fallback, Path::to_path_buf)
}

/// The workspace that this program was built from.
#[must_use]
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Whether this runs as root on behalf of another user, where cargo must not run.
#[must_use]
pub fn through_sudo() -> bool {
    nix::unistd::geteuid().is_root() && std::env::var_os("SUDO_UID").is_some_and(|uid| uid != "0")
}

impl Programs {
    /// Where the programs of a profile are, or will be.
    #[must_use]
    pub fn of(profile: Profile) -> Self {
        let target = target_directory();
        let built = target.join(match profile {
            Profile::Dev => "debug",
            Profile::Release => "release",
        });
        Self {
            agent: built.join("anteroom-agent"),
            controller: built.join("anteroom-controller"),
            cli: built.join("anteroom"),
            tools: target.join(LAB_TOOLS).join("bin"),
        }
    }

    /// A dicom-rs program.
    #[must_use]
    pub fn tool(&self, name: &str) -> PathBuf {
        self.tools.join(name)
    }

    /// Builds the workspace's programs. Where cargo hasn't started this program they are taken as they are; as root for
    /// another user they must be there already.
    ///
    /// # Errors
    /// What cargo said.
    pub fn build(&self, profile: Profile, progress: bool) -> Result<()> {
        let missing = [&self.agent, &self.controller, &self.cli]
            .into_iter()
            .find(|program| !program.is_file());
        match missing {
            None if through_sudo() || std::env::var_os("CARGO").is_none() => return Ok(()),
            Some(missing) if through_sudo() => bail!(
                "{} isn't built: run `cargo build --release` as yourself, without sudo",
                missing.display()
            ),
            _ => {}
        }
        let mut command = cargo();
        command.arg("build").current_dir(workspace());
        command.arg("--target-dir").arg(target_directory());
        match profile {
            // The same selection as `cargo test --workspace`, so that dependencies are built once.
            Profile::Dev => {
                command.args(["--workspace", "--bins"]);
            }
            // Without the lab itself: a running program mustn't be replaced.
            Profile::Release => {
                command.arg("--release");
                for package in OWN {
                    command.args(["--package", package]);
                }
                command.arg("--bins");
            }
        }
        run_cargo(&mut command, "building Anteroom", progress)
    }

    /// The dicom-rs programs that aren't installed under the target directory, or not in the version that we want.
    #[must_use]
    pub fn missing_tools(&self) -> Vec<&'static str> {
        let root = self.tools.parent().unwrap_or(&self.tools);
        let have = installed(&root.join(".crates.toml"));
        DICOM_TOOLS
            .into_iter()
            .filter(|tool| !self.tool(tool).is_file() || !have.contains(*tool))
            .collect()
    }

    /// Installs the dicom-rs programs under the target directory, unless they are there.
    ///
    /// # Errors
    /// What cargo said.
    pub fn install_tools(&self, progress: bool) -> Result<()> {
        let missing = self.missing_tools();
        if missing.is_empty() {
            return Ok(());
        }
        if through_sudo() {
            bail!("{} isn't installed: run `cargo lab` once as yourself, without sudo", missing[0]);
        }
        let root = self.tools.parent().context("the tools' directory has a parent")?;
        for tool in missing {
            let mut command = cargo();
            command.args(["install", "--locked", "--version", DICOM_RS]).args(DICOM_BUILD);
            // A directory of their own, so that they don't evict each other's or our dependencies.
            command.arg("--target-dir").arg(root.join("build"));
            command.arg("--root").arg(root).arg(tool);
            command.current_dir(std::env::temp_dir());
            let what = format!("installing {tool} under target/ (once)");
            run_cargo(&mut command, &what, progress)?;
        }
        std::fs::remove_dir_all(root.join("build")).ok();
        Ok(())
    }
}

/// What `cargo install` says it has put there, in the version that we want.
fn installed(list: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(list).unwrap_or_default();
    DICOM_TOOLS
        .into_iter()
        .filter(|tool| text.contains(&format!("\"{tool} {DICOM_RS} ")))
        .map(String::from)
        .collect()
}

/// Cargo, as a person would start it: without what a cargo around this program has set.
#[must_use]
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Cargo sets these for what it runs; a cargo within would take them for wishes.
    for (key, _) in std::env::vars_os() {
        let name = key.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&key);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// Runs cargo with its last line as our progress; all that it said is shown only if it fails.
///
/// # Errors
/// What it said.
pub fn run_cargo(command: &mut Command, what: &str, progress: bool) -> Result<()> {
    use std::io::{BufRead as _, BufReader};
    let bar = if progress { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    if let Ok(style) =
        ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg:.dim}")
    {
        bar.set_style(style);
    }
    bar.set_prefix(what.to_owned());
    bar.enable_steady_tick(std::time::Duration::from_millis(120));
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting cargo: is it in the search path?")?;
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            bar.set_message(line.trim().to_owned());
            said.push(line);
        }
    }
    let status = child.wait()?;
    bar.finish_and_clear();
    if status.success() {
        return Ok(());
    }
    let tail = &said[said.len().saturating_sub(60)..];
    bail!("{what} failed:\n{}", tail.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_wanted_version_counts_as_installed() {
        let directory = tempfile::tempdir().unwrap();
        let list = directory.path().join(".crates.toml");
        assert!(installed(&list).is_empty());
        std::fs::write(
            &list,
            "[v1]\n\"dicom-echoscu 0.9.0 (registry+x)\" = [\"dicom-echoscu\"]\n\
             \"dicom-storescp 0.10.1 (registry+x)\" = [\"dicom-storescp\"]\n",
        )
        .unwrap();
        assert_eq!(installed(&list), BTreeSet::from(["dicom-storescp".to_owned()]));
    }

    #[test]
    fn the_target_directory_is_the_one_that_this_test_was_built_into() {
        let target = target_directory();
        assert!(std::env::current_exe().unwrap().starts_with(&target), "{}", target.display());
        assert!(find("sh").is_some() && find("no such program").is_none());
    }
}
