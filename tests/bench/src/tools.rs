//! Where the measured programs are, and how to get them.

use std::path::PathBuf;
use std::process::Command;

use anteroom_lab::programs::{self, Profile, Programs};
use anyhow::{Context as _, Result, bail};

use crate::subject::Kind;

/// The version of boringtun-cli that is measured.
const BORINGTUN: &str = "0.7.1";

/// Where each program is, or would be.
#[derive(Debug, Clone)]
pub struct Tools {
    /// This workspace's agent.
    pub agent: PathBuf,
    /// This workspace's controller, which relays, too.
    pub controller: PathBuf,
    /// Where `cargo install` puts things.
    root: PathBuf,
}

impl Tools {
    /// As they are for this build of the benchmark.
    #[must_use]
    pub fn of(profile: Profile) -> Self {
        let root = programs::target_directory().join(programs::BENCH_TOOLS);
        let Programs { agent, controller, .. } = Programs::of(profile);
        Self { agent, controller, root }
    }

    /// boringtun-cli.
    ///
    /// # Errors
    /// If it isn't installed: how to get it.
    pub fn boringtun(&self) -> Result<PathBuf> {
        let program = self.root.join("bin/boringtun-cli");
        let list = std::fs::read_to_string(self.root.join(".crates.toml")).unwrap_or_default();
        if program.is_file() && list.contains(&format!("\"boringtun-cli {BORINGTUN} ")) {
            return Ok(program);
        }
        bail!(
            "boringtun-cli {BORINGTUN} isn't there: --install fetches it, or `cargo install --locked \
             --version {BORINGTUN} --root {} boringtun-cli`",
            self.root.display()
        )
    }

    /// wireguard-go.
    ///
    /// # Errors
    /// If it isn't installed: how to get it.
    pub fn wireguard_go(&self) -> Result<PathBuf> {
        packaged("wireguard-go", "wireguard-go")
    }

    /// Nebula.
    ///
    /// # Errors
    /// If it isn't installed: how to get it.
    pub fn nebula(&self) -> Result<PathBuf> {
        packaged("nebula", "nebula")
    }

    /// Nebula's certificate maker.
    ///
    /// # Errors
    /// If it isn't installed: how to get it.
    pub fn nebula_cert(&self) -> Result<PathBuf> {
        packaged("nebula-cert", "nebula")
    }

    /// Whether all that a subject needs is there.
    ///
    /// # Errors
    /// If not: how to get it.
    pub fn have(&self, kind: &Kind) -> Result<()> {
        match kind {
            Kind::Routing | Kind::Aead => Ok(()),
            Kind::Anteroom | Kind::NoSensor | Kind::Lanes(..) => exists(&self.agent),
            Kind::Relay => exists(&self.agent).and_then(|()| exists(&self.controller)),
            Kind::Other(_, path) => exists(path),
            Kind::BoringtunOne | Kind::Boringtun => self.boringtun().map(drop),
            Kind::WireguardGo => self.wireguard_go().map(drop),
            Kind::Nebula => self.nebula().and_then(|_| self.nebula_cert()).map(drop),
        }
    }

    /// Fetches what a subject needs, where it may be fetched without root.
    ///
    /// # Errors
    /// What cargo said.
    pub fn install(&self, kind: &Kind) -> Result<()> {
        if !matches!(kind, Kind::BoringtunOne | Kind::Boringtun) || self.boringtun().is_ok() {
            return Ok(());
        }
        let mut command = programs::cargo();
        command.args(["install", "--locked", "--force", "--version", BORINGTUN]);
        // A directory of its own, so that it doesn't evict our own dependencies.
        command.arg("--target-dir").arg(self.root.join("build"));
        command.arg("--root").arg(&self.root).arg("boringtun-cli");
        command.current_dir(std::env::temp_dir());
        programs::run_cargo(&mut command, "installing boringtun-cli under target/ (once)", true)?;
        std::fs::remove_dir_all(self.root.join("build")).ok();
        Ok(())
    }

    /// Builds this workspace's agent, and the controller where it is to relay, where cargo started this program.
    ///
    /// # Errors
    /// What cargo said.
    pub fn build(&self, profile: Profile, relay: bool) -> Result<()> {
        if programs::through_sudo() || std::env::var_os("CARGO").is_none() {
            return exists(&self.agent);
        }
        let mut command = programs::cargo();
        command.args(["build", "--package", "anteroom-agent", "--bins"]);
        if relay {
            command.args(["--package", "anteroom-controller"]);
        }
        if profile == Profile::Release {
            command.arg("--release");
        }
        command.arg("--target-dir").arg(programs::target_directory());
        command.current_dir(programs::workspace());
        programs::run_cargo(&mut command, "building anteroom-agent", true)
    }
}

/// What a subject says of its version, in one line.
#[must_use]
pub fn version(kind: &Kind, tools: &Tools) -> Option<String> {
    let (program, argument) = match kind {
        Kind::Anteroom | Kind::NoSensor | Kind::Relay | Kind::Lanes(..) => {
            (tools.agent.clone(), "--version")
        }
        Kind::Other(_, path) => (path.clone(), "--version"),
        Kind::BoringtunOne | Kind::Boringtun => (tools.boringtun().ok()?, "--version"),
        Kind::WireguardGo => (tools.wireguard_go().ok()?, "--version"),
        Kind::Nebula => (tools.nebula().ok()?, "-version"),
        Kind::Routing | Kind::Aead => return None,
    };
    let output = Command::new(program).arg(argument).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next().map(|line| line.trim().to_owned())
}

fn exists(program: &std::path::Path) -> Result<()> {
    std::fs::metadata(program)
        .map(drop)
        .with_context(|| format!("{}: build it first", program.display()))
}

fn packaged(program: &str, package: &str) -> Result<PathBuf> {
    programs::find(program).with_context(|| {
        format!("{program} isn't installed: apt-get install {package} (Debian, Ubuntu)")
    })
}
