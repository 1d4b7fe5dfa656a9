//! A relay that stands alone, on a machine of the hospital.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::hospital::{Hospital, Machine};
use crate::process::{Process, wait_listening};
use crate::programs::Programs;

/// How long it may take to start.
const START: Duration = Duration::from_secs(60);

/// A relay. It is killed when this is dropped.
#[derive(Debug)]
pub struct Relay {
    /// What operators name it by.
    pub code: String,
    machine: Machine,
    port: u16,
    directory: PathBuf,
    log: PathBuf,
    programs: Arc<Programs>,
    process: Option<Process>,
}

impl Relay {
    /// Makes one on the machine of this name, which is to listen at this port, and doesn't start it. `name` is what its
    /// directory and its log are called.
    ///
    /// # Errors
    /// What the programs said.
    pub fn make(hospital: &Hospital, name: &str, machine: &str, port: u16) -> Result<Self> {
        let machine = hospital.machine(machine).clone();
        let directory = hospital.directory.join(name);
        let pin = hospital.operator.json(&["whoami"])?["authority_hash"].clone();
        let output = machine
            .host
            .command(&hospital.programs.controller)
            .args(["relay-init", "--dir", &directory.display().to_string()])
            .args(["--listen", &format!("0.0.0.0:{port}")])
            .args(["--advertise", &machine.at(port).to_string()])
            .args(["--authority", pin.as_str().context("no hash of the authority document")?])
            .output()
            .context("starting anteroom-controller")?;
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "relay-init: {said}{errors}");
        let mut words = said.split_whitespace();
        let code = words.find(|word| word.starts_with("anteroom-relay-1."));
        let code = code.with_context(|| format!("no code of a relay: {said}"))?.to_owned();
        let log = hospital.logs.join(format!("{name}.log"));
        let programs = hospital.programs.clone();
        Ok(Self { code, machine, port, directory, log, programs, process: None })
    }

    /// Starts it, and waits until it listens.
    ///
    /// # Errors
    /// What it said, if it doesn't come up.
    pub fn start(&mut self) -> Result<()> {
        let mut command = self.machine.host.command(&self.programs.controller);
        command.arg("relay").arg("--dir").arg(&self.directory);
        let mut process = Process::spawn("a relay", &mut command, &self.log)?;
        wait_listening(&self.machine.host, self.port, &mut process, START)?;
        self.process = Some(process);
        Ok(())
    }

    /// Kills it, as a power cut would.
    ///
    /// # Errors
    /// If it wasn't running.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("the relay isn't running")?.kill()
    }

    /// The machine that it stands on, and its port.
    #[must_use]
    pub fn place(&self) -> (&Machine, u16) {
        (&self.machine, self.port)
    }
}
