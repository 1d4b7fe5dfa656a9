//! `backup`, `restore`, `new-key`, `code`: a controller that outlives its machine, or its key.
//!
//! What was restored is old, and nobody can tell from it how old. So a restored controller serves no gateway and
//! takes no change until an operator has signed a new incarnation into the authority document, and has brought along
//! the newest revision that their machine has seen. The same goes for a controller with another key: gateways learn
//! that key from the document.

use std::fs;
use std::path::Path;

use anteroom_proto::key::IdentityKey;
use anteroom_proto::setup::ControllerCode;
use zeroize::Zeroizing;

use crate::audit::{self, AuditError};
use crate::clock::{self, RandomError};
use crate::config::{Config, ConfigError};
use crate::directory::{Directory, DirectoryError, secret_text};
use crate::init::{self, InitError};
use crate::store::sqlite::{SqliteStore, backup as database};
use crate::store::{Limits, NewAudit, Store, StoreError};

/// Why it wasn't done.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The directory, or a file in it.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// No random bytes.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// No certificate.
    #[error(transparent)]
    Certificate(#[from] InitError),
    /// Nobody knows the controller, so it needs no other key.
    #[error(
        "nobody has claimed this controller yet, so nobody would miss it: set up a new one with `anteroom-controller init`"
    )]
    Unclaimed,
}

/// Copies the controller in `directory`, which may be running, to `to`: keys, certificate, configuration, database.
/// Whoever has the copy has the controller's keys: keep it as safe.
///
/// # Errors
/// [`RestoreError`]; what was written before the failure is gone again.
pub async fn backup(directory: &Directory, to: &Directory) -> Result<(), RestoreError> {
    check_files(directory)?;
    to.prepare()?;
    let copied = async {
        copy(directory, to).await?;
        database::check(&to.database()).await?;
        Ok(())
    };
    undo_on_error(to, copied.await)
}

/// Makes a controller in `to` out of the backup in `from`; with `new_key`, one with keys of its own, because those in
/// the backup may be in other hands.
///
/// # Errors
/// [`RestoreError`], in particular where the backup is damaged. What was written before the failure is gone again.
pub async fn restore(
    from: &Directory,
    to: &Directory,
    new_key: bool,
) -> Result<ControllerCode, RestoreError> {
    check_files(from)?;
    database::check(&from.database()).await?;
    to.prepare()?;
    let restored = async {
        copy(from, to).await?;
        wait_for_operators(to, "controller restore", from.path()).await?;
        if new_key {
            replace_keys(to)?;
        }
        code(to)
    };
    undo_on_error(to, restored.await)
}

/// Gives the controller in `directory`, which must not be running, another key and another certificate.
///
/// # Errors
/// [`RestoreError`].
pub async fn new_key(directory: &Directory) -> Result<ControllerCode, RestoreError> {
    check_files(directory)?;
    // First, so that whatever happens in between, the new key isn't taken for the old one.
    if !wait_for_operators(directory, "controller new-key", directory.path()).await? {
        return Err(RestoreError::Unclaimed);
    }
    replace_keys(directory)?;
    code(directory)
}

/// What operators know the controller by.
///
/// # Errors
/// When a file isn't there or isn't what it should be.
pub fn code(directory: &Directory) -> Result<ControllerCode, RestoreError> {
    let config = Config::load(&directory.config())?;
    Ok(ControllerCode {
        https: config.https.advertise,
        certificate: directory.load_https()?.fingerprint,
        controller: directory.load_identity()?.public(),
        quic: config.quic.advertise,
    })
}

fn undo_on_error<T>(made: &Directory, result: Result<T, RestoreError>) -> Result<T, RestoreError> {
    if result.is_err() {
        // Everything in there was made by this call: `prepare` saw to it.
        for file in made.files() {
            let _ = fs::remove_file(file);
        }
    }
    result
}

/// Checks that there is a controller whose keys and configuration are of use.
fn check_files(directory: &Directory) -> Result<(), RestoreError> {
    Config::load(&directory.config())?;
    directory.load_identity()?;
    directory.load_https()?;
    Ok(())
}

async fn copy(from: &Directory, to: &Directory) -> Result<(), RestoreError> {
    for (source, target) in from.files().into_iter().zip(to.files()) {
        let is_database = source == from.database();
        if is_database || source.symlink_metadata().is_err() {
            continue;
        }
        to.create(&target, &from.read(&source)?)?;
    }
    // SQLite gives its own files the mode of the one that it finds.
    to.create(&to.database(), &[])?;
    Ok(database::copy(&from.database(), &to.database()).await?)
}

/// Checks the audit log and notes that the controller waits. False where nobody has claimed it, so that there is
/// nobody to wait for.
async fn wait_for_operators(
    directory: &Directory,
    action: &str,
    subject: &Path,
) -> Result<bool, RestoreError> {
    let store = SqliteStore::open(&directory.database(), false, Limits::default()).await?;
    let noted = async {
        let entries = audit::check(&store).await?;
        if store.authority().await?.is_empty() {
            return Ok(false);
        }
        let note = NewAudit {
            at: clock::now(),
            actor: "controller".into(),
            action: action.into(),
            subject: subject.display().to_string(),
            before: Some(format!("{entries} entries in the audit log")),
            after: Some("waits for an operator to sign a new incarnation".into()),
            ..NewAudit::default()
        };
        store.set_restored(&note).await?;
        Ok(true)
    };
    let noted = noted.await;
    store.close().await;
    noted
}

fn replace_keys(directory: &Directory) -> Result<(), RestoreError> {
    let config = Config::load(&directory.config())?;
    let hosts: Vec<String> = config.https.advertise.iter().filter_map(|url| host(url)).collect();
    let (certificate, key) = init::certificate(&hosts)?;
    let identity = IdentityKey::from_seed(&Zeroizing::new(clock::random::<32>()?));
    directory.replace(&directory.identity(), secret_text(&identity.to_seed()).as_bytes())?;
    directory.replace(&directory.https_key(), key.as_bytes())?;
    directory.replace(&directory.certificate(), certificate.as_bytes())?;
    Ok(())
}

/// The host in `https://host:port`.
fn host(url: &str) -> Option<String> {
    let (host, _) = url.strip_prefix("https://")?.rsplit_once(':')?;
    Some(host.trim_start_matches('[').trim_end_matches(']').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_out_of_addresses() {
        assert_eq!(host("https://controller.example:8443").as_deref(), Some("controller.example"));
        assert_eq!(host("https://[fd00::1]:8443").as_deref(), Some("fd00::1"));
        assert_eq!(host("controller:8443"), None);
    }
}
