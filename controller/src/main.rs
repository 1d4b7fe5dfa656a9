//! `anteroom-controller`: the controller's command line.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anteroom_controller::directory::Directory;
use anteroom_controller::init::{InitOptions, init, setup_code};
use anteroom_controller::relay::config::Place;
use anteroom_controller::relay::standalone;
use anteroom_controller::restore;
use anteroom_controller::run::{self, Running};
use anteroom_proto::key::Hash;
use anteroom_proto::relay::code::RelayCode;
use anteroom_proto::setup::{ControllerCode, SetupCode};
use anyhow::Context;
use clap::{Parser, Subcommand};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// How often it is checked that every part works.
const CHECK: Duration = Duration::from_secs(2);

/// Keeps what operators have signed and gives every gateway its part.
#[derive(Debug, Parser)]
#[command(name = "anteroom-controller", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a new controller: keys, certificate, configuration (controller.toml) and database.
    Init {
        /// Where it is to live. Nothing there is overwritten.
        #[arg(long)]
        dir: PathBuf,
        /// Where to listen for gateways (UDP, and TCP where UDP doesn't get through), as in 0.0.0.0:443.
        #[arg(long, default_value = "0.0.0.0:4433")]
        quic: SocketAddr,
        /// Where to listen for operators (TCP). It may be the gateways' address and port.
        #[arg(long, default_value = "0.0.0.0:8443")]
        https: SocketAddr,
        /// A host name or address that gateways and operators reach this machine by. May be given again.
        #[arg(long, required = true)]
        advertise: Vec<String>,
    },
    /// Serve gateways and operators.
    Run {
        /// Where the controller lives.
        #[arg(long)]
        dir: PathBuf,
        /// Start even where the audit log was altered.
        #[arg(long)]
        despite_audit: bool,
    },
    /// Copy a controller, which may be running, into a new directory: its keys are in there, keep it as safe.
    Backup {
        /// Where the controller lives.
        #[arg(long)]
        dir: PathBuf,
        /// Where the copy is to go. Nothing there is overwritten.
        #[arg(long)]
        to: PathBuf,
    },
    /// Make a controller out of a backup. It serves nobody until an operator signs it back in.
    Restore {
        /// Where the backup is.
        #[arg(long)]
        from: PathBuf,
        /// Where the controller is to live. Nothing there is overwritten.
        #[arg(long)]
        dir: PathBuf,
        /// Give it another key and certificate: the old ones may be in other hands.
        #[arg(long)]
        new_key: bool,
    },
    /// Give a stopped controller another key and certificate. It serves nobody until an operator signs that.
    NewKey {
        /// Where the controller lives.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Make a relay, on a machine that holds no controller: a key and a configuration (relay.toml).
    RelayInit {
        /// Where it is to live. Nothing there is overwritten.
        #[arg(long)]
        dir: PathBuf,
        /// Where to listen for gateways (UDP, and TCP where UDP doesn't get through), as in 0.0.0.0:443.
        #[arg(long, default_value = "0.0.0.0:4433")]
        listen: SocketAddr,
        /// How gateways reach it, as host:port, best first. May be given again.
        #[arg(long, required = true)]
        advertise: Vec<String>,
        /// Hash of the organisation's first authority document, as `anteroom whoami` shows it.
        #[arg(long)]
        authority: Hash,
    },
    /// Print what operators name a relay by, for `anteroom relay add`.
    RelayCode {
        /// Where the relay lives.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Relay sealed packets between gateways that have no better way to each other. A controller does so as well.
    Relay {
        /// Where the relay lives.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Print what operators know the controller by, for `anteroom controller replace`.
    Code {
        /// Where the controller lives.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Print the setup code again, as long as nobody has claimed the controller.
    SetupCode {
        /// Where the controller lives.
        #[arg(long)]
        dir: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn,quinn=warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let threads = matches!(arguments.command, Command::Relay { .. }).then(relay_threads);
    let done = runtime(threads)
        .enable_all()
        .build()
        .context("the async runtime can't be started")
        .and_then(|runtime| runtime.block_on(command(arguments.command)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("anteroom-controller: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What runs everything, on so many threads, or on one for each core. One alone needs none of what makes tasks safe to move.
fn runtime(threads: Option<usize>) -> tokio::runtime::Builder {
    use tokio::runtime::Builder;
    let Some(threads) = threads else { return Builder::new_multi_thread() };
    if threads == 1 {
        return Builder::new_current_thread();
    }
    let mut runtime = Builder::new_multi_thread();
    runtime.worker_threads(threads);
    runtime
}

/// Threads of a relay: one core is left to the kernel, which does as much for each packet. On two cores a second thread would
/// only have packets handed from one to the other.
fn relay_threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    cores.saturating_sub(1).max(1)
}

async fn command(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Init { dir, quic, https, advertise } => {
            let options = InitOptions { quic, https, advertise };
            let code = init(&Directory::new(&dir), &options).await?;
            println!("A new controller is in {}. Start it:\n", dir.display());
            println!("  anteroom-controller run --dir {}\n", dir.display());
            print_code(&code);
        }
        Command::Backup { dir, to } => {
            restore::backup(&Directory::new(&dir), &Directory::new(&to)).await?;
            println!("A copy of the controller, keys included, is in {}.", to.display());
        }
        Command::Restore { from, dir, new_key } => {
            let (from, to) = (Directory::new(&from), Directory::new(&dir));
            let code = restore::restore(&from, &to, new_key).await?;
            println!("The controller was restored to {}. Start it:\n", dir.display());
            println!("  anteroom-controller run --dir {}\n", dir.display());
            if new_key {
                print_controller(&code);
            } else {
                println!("It serves nobody until an operator signs it back in:\n");
                println!("  anteroom controller restored");
            }
        }
        Command::NewKey { dir } => {
            let code = restore::new_key(&Directory::new(&dir)).await?;
            println!("The controller in {} has another key and certificate now.", dir.display());
            print_controller(&code);
        }
        Command::Code { dir } => print_controller(&restore::code(&Directory::new(&dir))?),
        Command::SetupCode { dir } => print_code(&setup_code(&Directory::new(&dir)).await?),
        Command::RelayInit { dir, listen, advertise, authority } => {
            let place = Place { listen, tcp: true, advertise, authority };
            let key = standalone::init(&Directory::new(&dir), &place)?;
            println!("A new relay is in {}. Start it:\n", dir.display());
            println!("  anteroom-controller relay --dir {}\n", dir.display());
            print_relay(&RelayCode { key, addresses: place.advertise });
        }
        Command::RelayCode { dir } => print_relay(&standalone::code(&Directory::new(&dir))?),
        Command::Relay { dir } => relay(&Directory::new(&dir)).await?,
        Command::Run { dir, despite_audit } => {
            // Signals that come while starting must not be lost.
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            let running = run::start(Directory::new(&dir), despite_audit).await?;
            notify(&[NotifyState::Ready]);
            let asked = tokio::select! {
                _ = terminate.recv() => true,
                _ = interrupt.recv() => true,
                () = watch(&running) => false,
            };
            notify(&[NotifyState::Stopping]);
            running.stop().await;
            anyhow::ensure!(asked, "a part of the controller ended; the log says why");
        }
    }
    Ok(())
}

async fn relay(directory: &Directory) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let running = standalone::start(directory.clone())?;
    if !running.is_named() {
        print_relay(&standalone::code(directory)?);
    }
    notify(&[NotifyState::Ready]);
    let limit = sd_notify::watchdog_enabled();
    let step = limit.map_or(CHECK, |limit| CHECK.min(limit / 3)).max(Duration::from_millis(100));
    let mut every = tokio::time::interval(step);
    let asked = loop {
        tokio::select! {
            _ = terminate.recv() => break true,
            _ = interrupt.recv() => break true,
            _ = every.tick() => {
                if running.has_ended() {
                    break false;
                }
                if limit.is_some() {
                    notify(&[NotifyState::Watchdog]);
                }
            }
        }
    };
    notify(&[NotifyState::Stopping]);
    running.stop().await;
    anyhow::ensure!(asked, "the relay ended; the log says why");
    Ok(())
}

/// Tells the service manager that all is well, as often as it wants to hear it. Returns when some part has
/// ended.
async fn watch(running: &Running) {
    let limit = sd_notify::watchdog_enabled();
    let step = limit.map_or(CHECK, |limit| CHECK.min(limit / 3)).max(Duration::from_millis(100));
    let mut every = tokio::time::interval(step);
    while !running.has_ended() {
        every.tick().await;
        if limit.is_none() {
            continue;
        }
        if matches!(tokio::time::timeout(step, running.is_well()).await, Ok(true)) {
            notify(&[NotifyState::Watchdog]);
        } else {
            tracing::error!("the store doesn't answer; the service manager will hear nothing");
        }
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "no service manager listens");
    }
}

fn print_controller(code: &ControllerCode) {
    println!("Operators sign its key, and learn it on further machines, with:\n");
    println!("  anteroom controller replace {code}\n");
    println!("Controller key  {}", code.controller.fingerprint());
    println!("HTTPS           {}", code.https.join(" "));
    println!("  fingerprint   {}", code.certificate);
    println!("QUIC            {}", code.quic.join(" "));
}

fn print_relay(code: &RelayCode) {
    println!("It relays nothing until an operator has named it. On their machine:\n");
    println!("  anteroom relay add NAME --code {code}\n");
    println!("Relay key    {}", code.key);
    println!("fingerprint  {}", code.key.fingerprint());
    println!("addresses    {}", code.addresses.join(" "));
}

fn print_code(code: &SetupCode) {
    println!(
        "Then, on the first operator's machine (this code is good once; keep it to yourself):\n"
    );
    println!("  anteroom login {code} --name YOUR-NAME\n");
    println!("Controller key  {}", code.controller.fingerprint());
    println!("HTTPS           {}", code.https.join(" "));
    println!("  fingerprint   {}", code.certificate);
    println!("QUIC            {}", code.quic.join(" "));
}
