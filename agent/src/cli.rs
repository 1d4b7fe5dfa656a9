//! The command line.

mod show;

use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anteroom_proto::bypass::BypassCode;
use anteroom_proto::invite::InviteCode;
use anteroom_proto::service::PortMatch;
use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use serde_json::json;
use tracing_subscriber::EnvFilter;

use crate::config::{Config, DEFAULT_PATH};
use crate::enroll::enrol;
use crate::local::client::ask;
use crate::local::protocol::{DEFAULT_FLOWS, Request, Response};
use crate::net;
use crate::state::{Sealing, StateDir, wiring_on_disk};
use crate::text::printable;

/// Exit status for a command line that can't be understood.
const USAGE: u8 = 64;
/// Longest file that is read for an invite.
const MAX_INVITE: u64 = 16 * 1024;

/// The gateway appliance of Anteroom.
#[derive(Debug, Parser)]
#[command(name = "anteroom-agent", version, disable_help_subcommand = true)]
struct Cli {
    /// What is logged to standard error: a level, or levels by module as in `info,anteroom_agent=debug`
    #[arg(long, global = true, value_name = "FILTER", default_value = "info")]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Common {
    /// The agent's configuration: interfaces and ports; docs/settings.md has every key
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
}

#[derive(Debug, Args)]
struct Output {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make this machine a gateway. Can be repeated
    Enroll {
        /// What `anteroom gateway invite` printed: the code, a file that holds it, or - for standard input
        invite: String,
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        output: Output,
    },
    /// Run the gateway, until SIGTERM
    Run {
        #[command(flatten)]
        common: Common,
    },
    /// How this gateway is. Exit status 2 while it isn't connected to a controller
    Status {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        output: Output,
    },
    /// What flows through this gateway, the most recently used first
    Flows {
        /// How many at most
        #[arg(long, default_value_t = DEFAULT_FLOWS)]
        limit: usize,
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        output: Output,
    },
    /// What would become of a flow here, and why
    Why {
        /// Address of whoever opens it
        from: Ipv4Addr,
        /// Address of whoever answers
        to: Ipv4Addr,
        /// With what: tcp/104, udp/161 or icmp/echo
        service: PortMatch,
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        output: Output,
    },
    /// Follow an operator's order to bypass a gateway, or to end that, while no controller is in reach
    Bypass {
        /// What `anteroom gateway bypass NAME --offline` made: the order, a file that holds it, or - for standard input
        order: String,
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        output: Output,
    },
    /// Shut the ports off from this machine's own network stack, or undo that
    Ports {
        /// isolate: before the agent runs. release: to take this machine out of service
        #[arg(value_enum)]
        action: PortsAction,
        #[command(flatten)]
        common: Common,
    },
    /// How this gateway's private keys are kept, or another way of keeping them. Stop the agent first to change it
    #[command(after_help = "With --seal, a copy of this machine's disk opens no keys:\n  \
        tpm2        sealed with the TPM 2.0 of this machine\n  \
        host        sealed with a secret of this machine, /var/lib/systemd/credential.secret\n  \
        host+tpm2   both\n  \
        none        plain files that only root can read\n\n\
        Keys that lay there plain may still be on the disk: seal before `enroll` where that matters.")]
    Keys {
        /// none, host, tpm2 or host+tpm2
        #[arg(long, value_name = "WITH")]
        seal: Option<Sealing>,
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        output: Output,
    },
    /// Who this gateway is: its id, and the fingerprint that operators compare when they approve it
    Identity {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum PortsAction {
    Isolate,
    Release,
}

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    // Whatever is made is this user's alone.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let filter = match EnvFilter::try_new(&cli.log) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("anteroom-agent: --log {:?}: {error}", cli.log);
            return ExitCode::from(USAGE);
        }
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    match start(cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("anteroom-agent: {}", printable(&sentence(&error)));
            ExitCode::FAILURE
        }
    }
}

/// The error with its causes, each said once: many errors name their cause themselves.
fn sentence(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) {
            text
        } else if text.is_empty() {
            cause
        } else {
            format!("{text}: {cause}")
        }
    })
}

fn start(command: Command) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the async runtime can't be started")?
        .block_on(execute(command))
}

async fn execute(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Enroll { invite, common, output } => {
            let config = Config::load(&common.config)?;
            let code = read_code(&invite, InviteCode::PREFIX, "an invite")?;
            let state = StateDir::open(&config.state)?;
            let enrolled = enrol(&state, &code).await?;
            if output.json {
                print_json(&json!({
                    "gateway": enrolled.gateway,
                    "organisation": enrolled.organisation,
                    "fingerprint": enrolled.fingerprint.to_string(),
                }))?;
            } else {
                print(&show::enrolled(&enrolled, config.host.is_some()))?;
            }
        }
        Command::Run { common } => crate::run::run(&Config::load(&common.config)?).await?,
        Command::Status { common, output } => {
            let Response::Status(status) = answer(&common, Request::Status {}).await? else {
                bail!("the agent answered something else: restart it after an update");
            };
            if output.json {
                print_json(&status)?;
            } else {
                print(&show::status(&status))?;
            }
            if status.control.as_ref().is_none_or(|control| control.connected.is_none()) {
                return Ok(ExitCode::from(2));
            }
        }
        Command::Flows { limit, common, output } => {
            let request = Request::Flows { limit: Some(limit) };
            let Response::Flows(flows) = answer(&common, request).await? else {
                bail!("the agent answered something else: restart it after an update");
            };
            if output.json {
                print_json(&flows)?;
            } else {
                print(&show::flows(&flows))?;
            }
        }
        Command::Why { from, to, service, common, output } => {
            let request = Request::Why { from, to, service: service.to_string() };
            let Response::Why(why) = answer(&common, request).await? else {
                bail!("the agent answered something else: restart it after an update");
            };
            if output.json {
                print_json(&why)?;
            } else {
                print(&show::why(&why))?;
            }
        }
        Command::Bypass { order, common, output } => {
            let order = read_code(&order, BypassCode::PREFIX, "a bypass order")?;
            let request = Request::Bypass { order: order.trim().to_owned() };
            let Response::Bypass(followed) = answer(&common, request).await? else {
                bail!("the agent answered something else: restart it after an update");
            };
            if output.json {
                print_json(&followed)?;
            } else {
                print(&show::followed(&followed))?;
            }
        }
        Command::Ports { action, common } => {
            let config = Config::load(&common.config)?;
            if config.host.is_some() {
                bail!("{}: a host has no ports to isolate or release", common.config.display());
            }
            let warnings = match action {
                PortsAction::Isolate => {
                    net::ports::isolate(&config, &wiring_on_disk(&config)).await?
                }
                PortsAction::Release => net::ports::release(&config).await?,
            };
            for warning in warnings {
                eprintln!("anteroom-agent: {warning}");
            }
        }
        Command::Keys { seal, common, output } => keys(seal, &common, &output)?,
        Command::Identity { common, output } => identity(&common, &output)?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn answer(common: &Common, request: Request) -> anyhow::Result<Response> {
    let config = Config::load(&common.config)?;
    match ask(&config.run, &request).await? {
        Response::Error(problem) => bail!("{problem}"),
        response => Ok(response),
    }
}

fn keys(seal: Option<Sealing>, common: &Common, output: &Output) -> anyhow::Result<()> {
    let config = Config::load(&common.config)?;
    let state = StateDir::open(&config.state)?;
    if let Some(sealing) = seal {
        let _agent = state.lock()?;
        let _enrolment = state.lock_enrolment()?;
        state.seal(sealing)?;
    }
    let (sealing, finished) = (state.sealing()?, state.sealing_is_finished()?);
    // Opened once: whether they can be is what the question is about.
    let identity = state.identity()?.is_some();
    let tunnels = state.tunnel_keys()?.len();
    if output.json {
        return print_json(&json!({
            "sealed": sealing, "finished": finished, "identity": identity, "tunnels": tunnels
        }));
    }
    print(&show::keys(sealing, finished, identity, tunnels))
}

fn identity(common: &Common, output: &Output) -> anyhow::Result<()> {
    let config = Config::load(&common.config)?;
    let state = StateDir::open(&config.state)?;
    let fingerprint = state.identity()?.map(|identity| identity.public().fingerprint().to_string());
    let enrolment = state.enrolment()?;
    let offered: Vec<String> = state
        .next_identities()?
        .iter()
        .rev()
        .map(|next| next.key.public().fingerprint().to_string())
        .filter(|offered| fingerprint.as_ref() != Some(offered))
        .collect();
    if output.json {
        return print_json(&json!({
            "gateway": enrolment.as_ref().map(|enrolment| enrolment.gateway),
            "organisation": enrolment.as_ref().map(|enrolment| enrolment.organisation),
            "fingerprint": fingerprint,
            "offered": offered,
        }));
    }
    print(&show::identity(enrolment.as_ref(), fingerprint.as_deref(), &offered))
}

/// The code itself, out of a file, or from standard input.
fn read_code(argument: &str, prefix: &str, what: &str) -> anyhow::Result<String> {
    let mut text = String::new();
    if argument == "-" {
        io::stdin()
            .take(MAX_INVITE)
            .read_to_string(&mut text)
            .context("standard input can't be read")?;
        return Ok(text);
    }
    let path = Path::new(argument);
    if argument.starts_with(prefix) {
        return Ok(argument.to_owned());
    }
    if !path.exists() {
        bail!(
            "{argument:?} is neither {what}, which begins with {prefix:?}, nor a file that holds one"
        );
    }
    fs::File::open(path)
        .and_then(|file| file.take(MAX_INVITE).read_to_string(&mut text))
        .with_context(|| format!("{argument} can't be read"))?;
    Ok(text)
}

fn print(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        // A reader that went away has read all that it wanted.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("standard output can't be written"),
    }
}

fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn commands_read_as_they_are_documented() {
        for line in [
            "enroll anteroom-invite-1.abc",
            "enroll - --config /tmp/agent.toml --json",
            "run --config /tmp/agent.toml --log debug",
            "status --json",
            "flows --limit 5",
            "why 10.0.0.1 10.0.0.2 tcp/104",
            "bypass anteroom-bypass-1.abc",
            "bypass - --json",
            "ports isolate",
            "ports release --config /tmp/agent.toml",
            "identity",
            "keys",
            "keys --seal host+tpm2 --json",
        ] {
            let words = std::iter::once("anteroom-agent").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_ok(), "{line}");
        }
        for line in [
            "",
            "enroll",
            "why 10.0.0.1 here tcp/104",
            "why 1.1.1.1 1.1.1.2 dicom",
            "ports",
            "keys --seal tpm",
        ] {
            let words = std::iter::once("anteroom-agent").chain(line.split_whitespace());
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
    }

    #[test]
    fn an_error_and_its_causes_are_said_once() {
        let inner = std::io::Error::other("the disk is full");
        let error = anyhow::Error::from(inner).context("x can't be written");
        assert_eq!(sentence(&error), "x can't be written: the disk is full");
        let named = anyhow::Error::from(crate::enroll::EnrolError::from(
            "hello".parse::<InviteCode>().unwrap_err(),
        ));
        assert_eq!(sentence(&named).matches("not an invite").count(), 1, "{}", sentence(&named));
    }

    #[test]
    fn an_invite_is_taken_from_where_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("invite");
        fs::write(&file, "anteroom-invite-1.abc\n").unwrap();
        let read = |argument: &str| read_code(argument, InviteCode::PREFIX, "an invite").unwrap();
        assert_eq!(read(file.to_str().unwrap()), "anteroom-invite-1.abc\n");
        assert_eq!(read("anteroom-invite-1.abc"), "anteroom-invite-1.abc");
        let read_code = |argument| read_code(argument, InviteCode::PREFIX, "an invite");
        let error = read_code("neither").unwrap_err().to_string();
        assert!(error.contains("neither an invite"), "{error}");
        assert!(read_code(directory.path().to_str().unwrap()).is_err());
    }
}
