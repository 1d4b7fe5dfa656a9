//! `init`: a new controller's keys, certificate, configuration and database.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anteroom_proto::cbor::Blob;
use anteroom_proto::key::IdentityKey;
use anteroom_proto::setup::SetupCode;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use zeroize::Zeroizing;

use crate::clock::{self, RandomError};
use crate::config::{Config, ConfigError, Listener};
use crate::directory::{Directory, DirectoryError, secret_text};
use crate::store::sqlite::SqliteStore;
use crate::store::{Limits, Store, StoreError};
use anteroom_proto::address::is_host_name;

/// Why there is no new controller. What was made before the failure is gone again.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The directory, or a file in it.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No random bytes.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// No certificate.
    #[error("the HTTPS certificate can't be made: {0}")]
    Certificate(#[from] rcgen::Error),
    /// An address that others can't be told.
    #[error(
        "--advertise {text:?}: name a host or an address, without a port, that gateways and operators reach this machine by"
    )]
    Advertise {
        /// What was said.
        text: String,
    },
    /// The controller has its first operator.
    #[error("{} holds a controller that has been claimed: its setup code is used up. Further operators log in with `anteroom login https://HOST:PORT --fingerprint …`", directory.display())]
    Claimed {
        /// The controller's directory.
        directory: PathBuf,
    },
}

/// What `init` is told.
#[derive(Debug, Clone)]
pub struct InitOptions {
    /// Where to listen for gateways.
    pub quic: SocketAddr,
    /// Where to listen for operators.
    pub https: SocketAddr,
    /// Hosts or addresses that this machine is reached by, best first.
    pub advertise: Vec<String>,
}

/// Makes a controller in `directory`.
///
/// # Errors
/// [`InitError`], in particular where there is one already.
pub async fn init(directory: &Directory, options: &InitOptions) -> Result<SetupCode, InitError> {
    let (quic, https) = listeners(options)?;
    let text = Config::render(&quic, &https);
    Config::parse(&directory.config(), &text)?;
    directory.prepare()?;
    let made = fill(directory, options, &text).await;
    if made.is_err() {
        // Everything in there was made by this call: `prepare` saw to it.
        for file in directory.files() {
            let _ = std::fs::remove_file(file);
        }
    }
    made?;
    setup_code(directory).await
}

async fn fill(directory: &Directory, options: &InitOptions, config: &str) -> Result<(), InitError> {
    let identity = IdentityKey::from_seed(&Zeroizing::new(clock::random::<32>()?));
    directory.create(&directory.identity(), secret_text(&identity.to_seed()).as_bytes())?;
    let (certificate, key) = certificate(&options.advertise)?;
    directory.create(&directory.https_key(), key.as_bytes())?;
    directory.create(&directory.certificate(), certificate.as_bytes())?;
    let secret = Zeroizing::new(clock::random::<32>()?);
    directory.create(&directory.claim_secret(), secret_text(&secret).as_bytes())?;
    // SQLite gives its own files the mode of the one that it finds.
    directory.create(&directory.database(), &[])?;
    let store = SqliteStore::open(&directory.database(), false, Limits::default()).await?;
    store.close().await;
    directory.create(&directory.config(), config.as_bytes())?;
    Ok(())
}

/// The setup code of a controller that nobody has claimed yet.
///
/// # Errors
/// [`InitError::Claimed`] once somebody has.
pub async fn setup_code(directory: &Directory) -> Result<SetupCode, InitError> {
    let config = Config::load(&directory.config())?;
    let store = SqliteStore::open(&directory.database(), false, Limits::default()).await?;
    let authority = store.authority().await;
    store.close().await;
    let claimed = || InitError::Claimed { directory: directory.path().into() };
    if !authority?.is_empty() {
        return Err(claimed());
    }
    let secret = directory.load_claim_secret()?.ok_or_else(claimed)?;
    Ok(SetupCode {
        https: config.https.advertise,
        certificate: directory.load_https()?.fingerprint,
        controller: directory.load_identity()?.public(),
        quic: config.quic.advertise,
        secret: Blob(secret.to_vec()),
    })
}

fn listeners(options: &InitOptions) -> Result<(Listener, Listener), InitError> {
    let mut quic = Listener::new(options.quic);
    let mut https = Listener::new(options.https);
    for host in &options.advertise {
        let host = match host.parse::<IpAddr>() {
            Ok(address) if address.is_unspecified() => {
                return Err(InitError::Advertise { text: host.clone() });
            }
            Ok(IpAddr::V6(address)) => format!("[{address}]"),
            Ok(IpAddr::V4(address)) => address.to_string(),
            Err(_) if is_host_name(host) => host.clone(),
            Err(_) => return Err(InitError::Advertise { text: host.clone() }),
        };
        quic.advertise.push(format!("{host}:{}", options.quic.port()));
        https.advertise.push(format!("https://{host}:{}", options.https.port()));
    }
    Ok((quic, https))
}

/// A certificate for `hosts` that doesn't expire at night, and its key, as PEM. It is pinned by its
/// fingerprint, so that nobody has to vouch for it.
pub(crate) fn certificate(hosts: &[String]) -> Result<(String, Zeroizing<String>), InitError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Anteroom controller");
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2099, 12, 31);
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), Zeroizing::new(key.serialize_pem())))
}
