//! `anteroom-controller`: the controller's command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anteroom_controller::directory::Directory;
use anteroom_controller::init::{InitOptions, init, setup_code};
use anteroom_controller::run::{self, Running};
use anteroom_proto::setup::SetupCode;
use anyhow::Context;
use clap::{Parser, Subcommand};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Keeps what operators have signed and gives every gateway its part.
#[derive(Debug, Parser)]
#[command(name = "anteroom-controller", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a new controller: keys, certificate, configuration and database.
    Init {
        /// Where it is to live. Nothing there is overwritten.
        #[arg(long)]
        dir: PathBuf,
        /// Where to listen for gateways (UDP).
        #[arg(long, default_value = "0.0.0.0:4433")]
        quic: SocketAddr,
        /// Where to listen for operators (TCP).
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
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let done = tokio::runtime::Runtime::new()
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

async fn command(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Init { dir, quic, https, advertise } => {
            let options = InitOptions { quic, https, advertise };
            let code = init(&Directory::new(&dir), &options).await?;
            println!("A new controller is in {}. Start it:\n", dir.display());
            println!("  anteroom-controller run --dir {}\n", dir.display());
            print_code(&code);
        }
        Command::SetupCode { dir } => print_code(&setup_code(&Directory::new(&dir)).await?),
        Command::Run { dir, despite_audit } => {
            // Signals that come while starting must not be lost.
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            let running = run::start(Directory::new(&dir), despite_audit).await?;
            notify(&[NotifyState::Ready]);
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                () = watch(&running) => {}
            }
            notify(&[NotifyState::Stopping]);
            running.stop().await;
        }
    }
    Ok(())
}

/// Tells the service manager that all is well, as often as it wants to hear it.
async fn watch(running: &Running) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return std::future::pending().await;
    };
    let mut every = tokio::time::interval((limit / 3).max(Duration::from_millis(100)));
    loop {
        every.tick().await;
        if matches!(tokio::time::timeout(limit / 3, running.is_well()).await, Ok(true)) {
            notify(&[NotifyState::Watchdog]);
        } else {
            tracing::error!("some part doesn't work; the service manager will hear nothing");
        }
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "no service manager listens");
    }
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
