//! A controller's life: start, serve, stop.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anteroom_transport::endpoint::{self, TransportError};
use anteroom_transport::exchange::KeyExchange;
use anteroom_transport::tls::Protocol;
use axum_server::Handle;
use quinn::Endpoint;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::agents::{Agents, Doors, Key};
use crate::api::{self, serve};
use crate::audit::{self, AuditError};
use crate::clock;
use crate::config::{Config, ConfigError};
use crate::directory::{Directory, DirectoryError};
use crate::distribution::{self, Distribution};
use crate::state::{Controller, StateError};
use crate::store::sqlite::SqliteStore;
use crate::store::{Limits, Store, StoreError};

/// How long requests that are under way have at shutdown.
const GRACE: Duration = Duration::from_secs(3);
/// How often it is noted who is connected.
const PRESENCE: Duration = Duration::from_secs(30);

/// Why a controller doesn't start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The directory, or a file in it.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// What is stored.
    #[error(transparent)]
    State(#[from] StateError),
    /// The endpoint for gateways.
    #[error("quic.listen: {0}")]
    Quic(#[from] TransportError),
    /// HTTPS can't be set up with the certificate.
    #[error("https.crt and https.key: {0}")]
    Tls(#[from] rustls::Error),
    /// The listener for operators.
    #[error("https.listen: {address}: {problem}")]
    Https {
        /// Where it was to listen.
        address: SocketAddr,
        /// What the system says.
        problem: std::io::Error,
    },
}

/// A running controller.
#[derive(Debug)]
pub struct Running {
    controller: Arc<Controller>,
    endpoint: Endpoint,
    key: Key,
    https: SocketAddr,
    handle: Handle<SocketAddr>,
    server: JoinHandle<std::io::Result<()>>,
    agents: JoinHandle<()>,
    distribution: JoinHandle<()>,
    presence: JoinHandle<()>,
}

/// Starts the controller in `directory`. `despite_audit` starts it even where the audit log was altered.
///
/// # Errors
/// [`RunError`], which names what is in the way.
pub async fn start(directory: Directory, despite_audit: bool) -> Result<Running, RunError> {
    let config = Config::load(&directory.config())?;
    let identity = directory.load_identity()?;
    let exchange = KeyExchange::allowing_classic(config.https.allow_classic);
    let tls = serve::Tls::new(&directory.load_https()?, exchange)?;
    let secret = directory.load_claim_secret()?;
    let limits = Limits::default();
    let store: Arc<dyn Store> =
        Arc::new(SqliteStore::open(&directory.database(), false, limits).await?);
    match audit::check(store.as_ref()).await {
        Ok(entries) => tracing::info!(entries, "the audit log is whole"),
        Err(error @ AuditError::Broken { .. }) if despite_audit => tracing::error!("{error}"),
        Err(error) => return Err(error.into()),
    }
    let (events, queue) = mpsc::channel(distribution::QUEUE);
    let controller =
        Controller::load(directory, identity, secret, config.clone(), store, events).await?;
    let controller = Arc::new(controller);
    let distribution = Distribution::load(controller.clone()).await?;
    let address = config.https.listen;
    let problem = |problem| RunError::Https { address, problem };
    let listener = TcpListener::bind(address).map_err(problem)?;
    listener.set_nonblocking(true).map_err(problem)?;
    let https = listener.local_addr().map_err(problem)?;
    let endpoint = endpoint::listen_for(
        config.quic.listen,
        &controller.identity,
        &[Protocol::Control, Protocol::Relay],
    )?;
    let handle = Handle::new();
    let router = api::router(controller.clone());
    let protocols = [Protocol::Control, Protocol::Relay];
    let (doors, key, newcomers) = Doors::new(endpoint.clone(), &controller.identity, &protocols)?;
    let mut gateways = None;
    match endpoint.local_addr() {
        // What comes for them at the operators' port is told apart there.
        _ if config.quic.tcp && config.quic.is_at(&config.https) => gateways = Some(newcomers),
        Ok(address) if config.quic.tcp => doors.listen(address, newcomers),
        _ => {}
    }
    let limit = config.limits.operators;
    let server = serve::serve(listener, tls, limit, router, handle.clone(), gateways);
    let agents = Agents::new(controller.clone());
    tracing::info!(quic = ?endpoint.local_addr().ok(), %https, "serving");
    Ok(Running {
        https,
        handle,
        server: tokio::spawn(server),
        agents: tokio::spawn(agents.run(doors)),
        key,
        distribution: tokio::spawn(distribution.run(queue)),
        presence: tokio::spawn(note_presence(controller.clone())),
        controller,
        endpoint,
    })
}

async fn note_presence(controller: Arc<Controller>) {
    let mut every = tokio::time::interval(PRESENCE);
    loop {
        every.tick().await;
        let online = controller.online.gateways();
        if online.is_empty() {
            continue;
        }
        if let Err(error) = controller.store.record_seen(&online, clock::now()).await {
            tracing::warn!(%error, "who is connected wasn't noted");
        }
    }
}

impl Running {
    /// Where operators are served.
    #[must_use]
    pub const fn https(&self) -> SocketAddr {
        self.https
    }

    /// Where gateways are served.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn quic(&self) -> std::io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// What the parts share.
    #[must_use]
    pub const fn controller(&self) -> &Arc<Controller> {
        &self.controller
    }

    /// Whether some part has ended, though nobody stopped it.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.server.is_finished() || self.agents.is_finished() || self.distribution.is_finished()
    }

    /// Whether every part works and the store answers.
    pub async fn is_well(&self) -> bool {
        !self.has_ended() && self.controller.store.audit(0, 1).await.is_ok()
    }

    /// Stops: no more is taken in, what is under way is finished, agents are told to connect again.
    pub async fn stop(self) {
        self.presence.abort();
        self.handle.graceful_shutdown(Some(GRACE));
        self.key.shut("the controller ends; connect again");
        if timeout(GRACE, self.endpoint.wait_idle()).await.is_err() {
            tracing::warn!("some agents weren't told that the controller ends");
        }
        for (part, task) in [("gateways", self.agents), ("distribution", self.distribution)] {
            if part == "distribution" {
                // It waits for events; what it has begun is one transaction, done or not.
                task.abort();
            }
            match task.await {
                Err(error) if error.is_panic() => tracing::error!(part, %error, "ended badly"),
                _ => {}
            }
        }
        match self.server.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the API ended badly"),
            Err(error) => tracing::error!(%error, "the API ended badly"),
        }
        self.controller.store.close().await;
        tracing::info!("stopped");
    }
}
