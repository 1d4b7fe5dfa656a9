//! A relay that is no controller: `anteroom-controller relay`.
//!
//! It has a key of its own, which operators name in the authority document, and the hash of the first such document.
//! It needs no controller in sight: gateways bring what it must know.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anteroom_proto::authority::{Authority, AuthorityChain, AuthorityError, MAX_CHAIN};
use anteroom_proto::cbor::{self, CborError};
use anteroom_proto::cose::{Document, Signed};
use anteroom_proto::key::{IdentityKey, PublicKey};
use anteroom_proto::relay::code::RelayCode;
use anteroom_transport::endpoint::{self, TransportError};
use anteroom_transport::tls::Protocol;
use quinn::Endpoint;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::Service;
use super::chain::Following;
use super::config::{Place, RelayConfig};
use crate::agents::admission::Admission;
use crate::agents::{Doors, Key, accept_all};
use crate::clock::{self, RandomError};
use crate::config::ConfigError;
use crate::directory::{Directory, DirectoryError, secret_text};

/// Longest chain that is read from disk, in bytes.
const MAX_KEPT: usize = MAX_CHAIN * Authority::MAX_LEN;
/// How long it may take to tell everyone that the relay ends.
const GRACE: Duration = Duration::from_secs(3);

/// Why there is no relay.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The directory, or a file in it.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// No random bytes.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// The endpoint.
    #[error("relay.listen: {0}")]
    Listen(#[from] TransportError),
    /// What is kept of the authority chain can't be read.
    #[error("{}: {problem}. Delete it: gateways bring the chain again", file.display())]
    Kept {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        problem: CborError,
    },
    /// What is kept of the authority chain doesn't hold.
    #[error("{}: {problem}. Delete it if relay.authority is right: gateways bring the chain again", file.display())]
    Chain {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        problem: AuthorityError,
    },
}

fn config_file(directory: &Directory) -> PathBuf {
    directory.path().join("relay.toml")
}

fn chain_file(directory: &Directory) -> PathBuf {
    directory.path().join("authority.chain")
}

/// Makes a relay in `directory`, and gives the key that operators must name.
///
/// # Errors
/// [`RelayError`], in particular where there is one already, or a controller.
pub fn init(directory: &Directory, place: &Place) -> Result<PublicKey, RelayError> {
    let text = RelayConfig::render(place);
    RelayConfig::parse(&config_file(directory), &text)?;
    if config_file(directory).symlink_metadata().is_ok() {
        return Err(DirectoryError::Exists { file: config_file(directory) }.into());
    }
    directory.prepare()?;
    let identity = IdentityKey::from_seed(&Zeroizing::new(clock::random::<32>()?));
    directory.create(&directory.identity(), secret_text(&identity.to_seed()).as_bytes())?;
    directory.create(&config_file(directory), text.as_bytes())?;
    Ok(identity.public())
}

/// What operators name the relay in `directory` by.
///
/// # Errors
/// [`RelayError`], in particular where there is none.
pub fn code(directory: &Directory) -> Result<RelayCode, RelayError> {
    let config = RelayConfig::load(&config_file(directory))?;
    let key = directory.load_identity()?.public();
    Ok(RelayCode { key, addresses: config.relay.advertise })
}

/// A running relay.
#[derive(Debug)]
pub struct RunningRelay {
    service: Arc<Service>,
    endpoint: Endpoint,
    key: Key,
    serving: JoinHandle<()>,
}

/// Starts the relay in `directory`.
///
/// # Errors
/// [`RelayError`], which names what is in the way.
pub fn start(directory: Directory) -> Result<RunningRelay, RelayError> {
    let config = RelayConfig::load(&config_file(&directory))?;
    let identity = directory.load_identity()?;
    let kept = read_chain(&directory, &config)?;
    let file = chain_file(&directory);
    let following = Following { pin: config.relay.authority, directory, file };
    let service = Service::build(identity.public(), config.limits.core(), Some(following));
    let service = Arc::new(service);
    let number = kept.as_ref().map_or(0, |chain| chain.newest().number);
    if let Some(chain) = kept {
        service.set_authority(Arc::new(chain));
    }
    let endpoint = endpoint::listen_for(config.relay.listen, &identity, &[Protocol::Relay])?;
    let fingerprint = identity.public().fingerprint();
    tracing::info!(quic = ?endpoint.local_addr().ok(), key = %fingerprint, authority = number, "relaying");
    let (doors, key, newcomers) = Doors::new(endpoint.clone(), &identity, &[Protocol::Relay])?;
    if let (true, Ok(address)) = (config.relay.tcp, endpoint.local_addr()) {
        doors.listen(address, newcomers);
    }
    let admission = Admission::new(config.limits.connections());
    let serving = tokio::spawn(serve(service.clone(), doors, admission));
    Ok(RunningRelay { service, endpoint, key, serving })
}

async fn serve(service: Arc<Service>, doors: Doors, admission: Admission) {
    accept_all(doors, &admission, move |connection, mut permit, deadline| {
        let service = service.clone();
        async move {
            service.serve(connection, &mut permit, deadline).await;
            permit
        }
    })
    .await;
}

fn read_chain(
    directory: &Directory,
    config: &RelayConfig,
) -> Result<Option<AuthorityChain>, RelayError> {
    let file = chain_file(directory);
    if file.symlink_metadata().is_err() {
        return Ok(None);
    }
    let bytes = directory.read_long(&file, MAX_KEPT)?;
    let kept = |problem| RelayError::Kept { file: file.clone(), problem };
    let documents: Vec<Signed<Authority>> = cbor::decode(&bytes, MAX_KEPT).map_err(kept)?;
    AuthorityChain::follow(config.relay.authority, &documents)
        .map(Some)
        .map_err(|problem| RelayError::Chain { file, problem })
}

impl RunningRelay {
    /// Where gateways are served.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Whether the newest authority document that it has seen names it.
    #[must_use]
    pub fn is_named(&self) -> bool {
        self.service.is_named()
    }

    /// What it does.
    #[must_use]
    pub const fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// Whether it has ended, though nobody stopped it.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.serving.is_finished()
    }

    /// Stops: everyone is told to go elsewhere.
    pub async fn stop(self) {
        self.key.shut("the relay ends; use another");
        if timeout(GRACE, self.endpoint.wait_idle()).await.is_err() {
            tracing::warn!("some gateways weren't told that the relay ends");
        }
        match self.serving.await {
            Err(error) if error.is_panic() => tracing::error!(%error, "ended badly"),
            _ => {}
        }
        tracing::info!("stopped");
    }
}
