//! Anteroom's own programs, used as people use them: by their command lines.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::Value;

use crate::process::{Process, wait_listening};
use crate::programs::Programs;
use crate::topology::Host;
use crate::wait;

/// How long a program may take to start.
const START: Duration = Duration::from_secs(60);

/// How long a command may take.
const COMMAND: Duration = Duration::from_secs(60);

/// The port on which the controller serves operators.
const HTTPS_PORT: u16 = 8443;
/// The port on which it serves gateways, if nobody wants another.
const QUIC_PORT: u16 = 4433;

/// What a command came to.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Its exit code.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
    /// What was run, for messages.
    pub command: String,
}

impl Outcome {
    /// Itself, if the exit code is 0.
    ///
    /// # Errors
    /// With all that it printed, if not.
    pub fn ok(self) -> Result<Self> {
        if self.code == 0 { Ok(self) } else { Err(anyhow!("{self}")) }
    }

    /// What it printed, as JSON.
    ///
    /// # Errors
    /// If it isn't.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("no JSON came of: {self}"))
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "`{}` ended with {}: {}{}",
            self.command,
            self.code,
            self.stdout,
            self.stderr.trim_end()
        )
    }
}

/// Runs a program to its end, for [`COMMAND`] at most.
fn run(host: &Host, program: &Path, arguments: &[&str]) -> Result<Outcome> {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let command = format!("{name} {}", arguments.join(" "));
    // Files, since nobody would empty a pipe while waiting.
    let (stdout, stderr) = (tempfile::NamedTempFile::new()?, tempfile::NamedTempFile::new()?);
    let mut child = host
        .command(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(stdout.reopen()?)
        .stderr(stderr.reopen()?)
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    let ended = wait::until(COMMAND, &format!("`{command}` to end"), || {
        child.try_wait().map_or(Some(None), |status| status.map(Some))
    });
    if ended.is_err() {
        child.kill().ok();
    }
    let status = child.wait()?;
    let read =
        |file: &Path| std::fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let outcome = Outcome {
        code: status.code().unwrap_or(-1),
        stdout: read(stdout.path())?,
        stderr: read(stderr.path())?,
        command,
    };
    match ended {
        Ok(_) => Ok(outcome),
        Err(timed_out) => Err(anyhow!("{timed_out}: {outcome}")),
    }
}

/// The controller on its machine.
#[derive(Debug)]
pub struct Controller {
    /// Its machine.
    pub host: Host,
    /// Its address.
    pub address: Ipv4Addr,
    /// Where its state is.
    pub directory: PathBuf,
    /// The UDP and TCP port on which it will serve gateways, and relay, once it is initialised.
    pub quic_port: u16,
    programs: Arc<Programs>,
    log: PathBuf,
    process: Option<Process>,
}

impl Controller {
    pub(crate) fn place(
        host: Host,
        address: Ipv4Addr,
        programs: Arc<Programs>,
        directory: &Path,
        logs: &Path,
    ) -> Self {
        let log = logs.join("controller.log");
        let directory = directory.join("controller");
        Self { host, address, directory, quic_port: QUIC_PORT, programs, log, process: None }
    }

    /// Runs `anteroom-controller` with these arguments to its end.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn command(&self, arguments: &[&str]) -> Result<Outcome> {
        run(&self.host, &self.programs.controller, arguments)
    }

    /// Makes its keys and files, and gives back the setup code for the first operator.
    ///
    /// # Errors
    /// What it said.
    pub fn init(&self) -> Result<String> {
        let directory = self.directory.display().to_string();
        let (quic, advertise) = (format!("0.0.0.0:{}", self.quic_port), self.address.to_string());
        let outcome = self
            .command(&["init", "--dir", &directory, "--quic", &quic, "--advertise", &advertise])?
            .ok()?;
        outcome
            .stdout
            .split_whitespace()
            .find(|word| word.starts_with("anteroom-setup-1."))
            .map(str::to_owned)
            .with_context(|| format!("no setup code came of: {outcome}"))
    }

    /// Starts it and waits until it serves operators.
    ///
    /// # Errors
    /// What it said, if it doesn't come up.
    pub fn start(&mut self) -> Result<()> {
        let mut command = self.host.command(&self.programs.controller);
        command.arg("run").arg("--dir").arg(&self.directory);
        let mut process = Process::spawn("anteroom-controller", &mut command, &self.log)?;
        wait_listening(&self.host, HTTPS_PORT, &mut process, START)?;
        self.process = Some(process);
        Ok(())
    }

    /// Its process.
    ///
    /// # Errors
    /// If it isn't running.
    pub fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("the controller isn't running")
    }

    /// Stops it in order.
    ///
    /// # Errors
    /// If it wasn't running, or doesn't end.
    pub fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the controller isn't running")?;
        process.stop(START).map(|_| ())
    }

    /// Kills it, as a power cut would.
    ///
    /// # Errors
    /// If it wasn't running.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("the controller isn't running")?.kill()
    }

    /// What it printed last.
    #[must_use]
    pub fn tail(&self) -> String {
        self.process.as_ref().map(Process::tail).unwrap_or_default()
    }
}

/// The operator on their machine.
#[derive(Debug)]
pub struct Operator {
    /// Their machine.
    pub host: Host,
    /// What their command line keeps.
    pub home: PathBuf,
    /// Where they keep files of their own.
    pub desk: PathBuf,
    programs: Arc<Programs>,
}

impl Operator {
    pub(crate) fn place(host: Host, programs: Arc<Programs>, directory: &Path) -> Self {
        let desk = directory.join("operator");
        Self { host, home: desk.join("home"), desk, programs }
    }

    /// Another operator's view of the world: the same machine with a home of its own.
    #[must_use]
    pub fn with_home(&self, home: &Path) -> Self {
        Self {
            host: self.host.clone(),
            home: home.into(),
            desk: self.desk.clone(),
            programs: self.programs.clone(),
        }
    }

    /// Runs `anteroom` with these arguments to its end.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn command(&self, arguments: &[&str]) -> Result<Outcome> {
        let home = self.home.display().to_string();
        let mut all = vec!["--home", &home];
        all.extend(arguments);
        let mut outcome = run(&self.host, &self.programs.cli, &all)?;
        outcome.command = format!("anteroom {}", arguments.join(" "));
        Ok(outcome)
    }

    /// Runs `anteroom` with these arguments, which must succeed.
    ///
    /// # Errors
    /// What it said.
    pub fn ok(&self, arguments: &[&str]) -> Result<Outcome> {
        self.command(arguments)?.ok()
    }

    /// Runs `anteroom --json` with these arguments, which must succeed, and parses what it printed.
    ///
    /// # Errors
    /// What it said.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let mut all = vec!["--json"];
        all.extend(arguments);
        self.ok(&all)?.json()
    }

    /// Becomes the first operator.
    ///
    /// # Errors
    /// What the command line said.
    pub fn claim(&self, setup_code: &str) -> Result<()> {
        std::fs::create_dir_all(&self.desk)?;
        let recovery = self.desk.join("recovery.key").display().to_string();
        self.ok(&["login", setup_code, "--name", "ana", "--recovery-out", &recovery])?;
        Ok(())
    }

    /// Makes an invite, and gives back its code.
    ///
    /// # Errors
    /// What the command line said.
    pub fn invite(&self, gateway: &str, site: &str) -> Result<String> {
        let file = self.desk.join(format!("{gateway}.invite"));
        let path = file.display().to_string();
        self.ok(&["gateway", "invite", gateway, "--site", site, "--out", &path])?;
        Ok(std::fs::read_to_string(file)?.trim().to_owned())
    }

    /// Writes a policy file.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn write_policy(&self, name: &str, text: &str) -> Result<String> {
        std::fs::create_dir_all(&self.desk)?;
        let path = self.desk.join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    /// Plans a policy file, applies the plan and waits for the gateways.
    ///
    /// # Errors
    /// What the command line said, also if a gateway lags.
    pub fn apply(&self, file: &str, reason: &str) -> Result<Outcome> {
        let plan = format!("{file}.plan");
        self.ok(&["policy", "plan", file, "--out", &plan])?;
        self.ok(&["policy", "apply", &plan, "--reason", reason, "--yes"])
    }

    /// Sets the mode of devices and waits for the gateways. Enforce is confirmed by name, and forced: no lab watches for
    /// weeks.
    ///
    /// # Errors
    /// What the command line said, also if a gateway lags.
    pub fn mode(&self, devices: &[&str], mode: &str, reason: &str) -> Result<Outcome> {
        let mut arguments = vec!["device", "mode"];
        arguments.extend(devices);
        arguments.extend([mode, "--reason", reason, "--yes"]);
        let names = devices.join(",");
        if mode == "enforce" {
            arguments.extend(["--force", "--confirm", &names]);
        }
        self.ok(&arguments)
    }
}

/// A gateway on its machine.
#[derive(Debug)]
pub struct Gateway {
    /// Its machine.
    pub host: Host,
    /// Its configuration file.
    pub config: PathBuf,
    /// Where its state is.
    pub state: PathBuf,
    name: String,
    programs: Arc<Programs>,
    log: PathBuf,
    process: Option<Process>,
}

impl Gateway {
    pub(crate) fn place(
        name: &str,
        host: Host,
        ports: &[&str],
        programs: Arc<Programs>,
        directory: &Path,
        logs: &Path,
    ) -> Result<Self> {
        let directory = directory.join(host.name());
        std::fs::create_dir_all(&directory)?;
        let (state, config) = (directory.join("state"), directory.join("agent.toml"));
        // The path of a local socket may have some hundred characters only; /run is the lab's own.
        let mut text = format!(
            "state = {:?}\nrun = \"/run/lab/{}\"\n\n[uplink]\ninterface = \"uplink\"\n\n\
             [underlay]\nlisten = \"0.0.0.0:51820\"\n",
            state.display().to_string(),
            host.name()
        );
        for port in ports {
            text.push_str(&format!("\n[[port]]\nname = {port:?}\ninterface = {port:?}\n"));
        }
        std::fs::create_dir_all(format!("/run/lab/{}", host.name()))?;
        std::fs::write(&config, text)?;
        let log = logs.join(format!("{}.log", host.name()));
        Ok(Self { name: name.into(), host, config, state, programs, log, process: None })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `anteroom-agent` with these arguments (and its configuration) to its end.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn command(&self, arguments: &[&str]) -> Result<Outcome> {
        let config = self.config.display().to_string();
        let mut all = arguments.to_vec();
        all.extend(["--config", &config]);
        run(&self.host, &self.programs.agent, &all)
    }

    /// Enrols with an invite.
    ///
    /// # Errors
    /// What the agent said.
    pub fn enroll(&self, invite: &str) -> Result<Outcome> {
        self.command(&["enroll", invite])?.ok()
    }

    /// The fingerprint that its console shows.
    ///
    /// # Errors
    /// What the agent said.
    pub fn fingerprint(&self) -> Result<String> {
        let outcome = self.command(&["identity"])?.ok()?;
        let looks_like_one = |word: &&str| {
            let parts: Vec<&str> = word.split('-').collect();
            parts.len() >= 4 && parts.iter().all(|part| part.len() == 4)
        };
        outcome
            .stdout
            .split_whitespace()
            .find(looks_like_one)
            .map(str::to_owned)
            .with_context(|| format!("no fingerprint came of: {outcome}"))
    }

    /// Starts the agent; doesn't wait for anything.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start(&mut self) -> Result<()> {
        let mut command = self.host.command(&self.programs.agent);
        command.arg("run").arg("--config").arg(&self.config);
        self.process = Some(Process::spawn("anteroom-agent", &mut command, &self.log)?);
        Ok(())
    }

    /// Waits until the agent answers on its local socket.
    ///
    /// # Errors
    /// What it said, if it doesn't.
    pub fn wait_running(&mut self) -> Result<()> {
        wait::until_ok(START, &format!("the agent of {} to answer", self.name), || self.status())
            .map_err(|error| error.context(self.tail()))?;
        self.process()?.must_run()
    }

    /// What `anteroom-agent status --json` says, whether or not all is well.
    ///
    /// # Errors
    /// If the agent doesn't answer.
    pub fn status(&self) -> Result<Value> {
        let outcome = self.command(&["status", "--json"])?;
        // 2 is an answer too: something isn't well.
        if outcome.code == 0 || outcome.code == 2 {
            outcome.json()
        } else {
            Err(anyhow!("{outcome}"))
        }
    }

    /// Stops the agent in order.
    ///
    /// # Errors
    /// If it wasn't running, or doesn't end.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else {
            bail!("the agent of {} isn't running", self.name)
        };
        let status = process.stop(START)?;
        if !status.success() {
            bail!("the agent of {} ended with {status}: {}", self.name, process.tail());
        }
        Ok(())
    }

    /// Its process.
    ///
    /// # Errors
    /// If it isn't running.
    pub fn process(&mut self) -> Result<&mut Process> {
        let name = &self.name;
        self.process.as_mut().with_context(|| format!("the agent of {name} isn't running"))
    }

    /// Makes it as new: all that the agent kept is gone, the marker beside its state included.
    ///
    /// # Errors
    /// If the agent is running, or a directory can't be removed.
    pub fn forget(&self) -> Result<()> {
        if self.process.is_some() {
            bail!("the agent of {} is running", self.name);
        }
        let marker = self.state.with_file_name("state-marker");
        for directory in [&self.state, &marker] {
            if directory.exists() {
                std::fs::remove_dir_all(directory)
                    .with_context(|| format!("removing {}", directory.display()))?;
            }
        }
        Ok(())
    }

    /// Kills the agent, as a power cut would.
    ///
    /// # Errors
    /// If it wasn't running.
    pub fn kill(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else {
            bail!("the agent of {} isn't running", self.name)
        };
        process.kill()
    }

    /// What it printed last.
    #[must_use]
    pub fn tail(&self) -> String {
        self.process.as_ref().map(Process::tail).unwrap_or_default()
    }
}
