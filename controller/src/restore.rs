//! `backup`, `restore`, `new-key`, `code`: a controller that outlives its machine, or its key.
//!
//! What was restored is old, and nobody can tell from it how old. So a restored controller serves no gateway and
//! takes no change until an operator has signed a new incarnation into the authority document, and has brought along
//! the newest revision that their machine has seen. The same goes for a controller with another key: gateways learn
//! that key from the document.

use std::fs;
use std::path::{Path, PathBuf};

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
    undo_on_error(to, take(&BACKUP, directory, to).await)
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
    let steps: &[Step] = if new_key { &RESTORE_WITH_NEW_KEY } else { &RESTORE };
    let restored = take(steps, from, to).await.and_then(|()| code(to));
    undo_on_error(to, restored)
}

/// Gives the controller in `directory`, which must not be running, another key and another certificate.
///
/// # Errors
/// [`RestoreError`].
pub async fn new_key(directory: &Directory) -> Result<ControllerCode, RestoreError> {
    check_files(directory)?;
    // First, so that whatever happens in between, the new key isn't taken for the old one.
    let database = directory.database();
    if !wait_for_operators(&database, "controller new-key", directory.path()).await? {
        return Err(RestoreError::Unclaimed);
    }
    replace_keys(directory, &Config::load(&directory.config())?)?;
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

/// A part of making a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The database, under a name by which nobody takes it for one.
    Database,
    /// Checks that it is whole.
    Check,
    /// Notes in it that the controller waits for operators.
    Mark,
    /// Gives the database its name.
    Name,
    /// Keys, certificate and claim secret.
    Keys,
    /// Another key and another certificate in their place.
    NewKeys,
    /// The configuration: without it nothing runs, and nothing is restored.
    Config,
}

// A program that is killed, or a power cut, ends them anywhere. So what is restored is marked before it has its name,
// and the configuration, without which all else is of no use, comes last.
const BACKUP: [Step; 5] = [Step::Database, Step::Check, Step::Name, Step::Keys, Step::Config];
const RESTORE: [Step; 5] = [Step::Database, Step::Mark, Step::Name, Step::Keys, Step::Config];
const RESTORE_WITH_NEW_KEY: [Step; 6] =
    [Step::Database, Step::Mark, Step::Name, Step::Keys, Step::NewKeys, Step::Config];

async fn take(steps: &[Step], from: &Directory, to: &Directory) -> Result<(), RestoreError> {
    let draft = to.database_draft();
    for step in steps {
        match step {
            Step::Database => {
                // One that an earlier try left behind is of no use.
                discard(&draft);
                // SQLite gives its own files the mode of the one that it finds.
                to.create(&draft, &[])?;
                database::copy(&from.database(), &draft).await?;
            }
            Step::Check => database::check(&draft).await?,
            Step::Mark => {
                wait_for_operators(&draft, "controller restore", from.path()).await?;
                database::settle(&draft).await?;
            }
            Step::Name => to.rename(&draft, &to.database())?,
            Step::Keys => {
                copy_file(from, to, Directory::identity)?;
                copy_file(from, to, Directory::https_key)?;
                copy_file(from, to, Directory::certificate)?;
                if from.claim_secret().symlink_metadata().is_ok() {
                    copy_file(from, to, Directory::claim_secret)?;
                }
            }
            Step::NewKeys => replace_keys(to, &Config::load(&from.config())?)?,
            Step::Config => copy_file(from, to, Directory::config)?,
        }
    }
    Ok(())
}

fn copy_file(
    from: &Directory,
    to: &Directory,
    which: fn(&Directory) -> PathBuf,
) -> Result<(), DirectoryError> {
    to.create(&which(to), &from.read(&which(from))?)
}

/// Removes a database, if it is there, and what SQLite keeps beside it.
fn discard(database: &Path) {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let mut file = database.as_os_str().to_owned();
        file.push(suffix);
        let _ = fs::remove_file(PathBuf::from(file));
    }
}

fn undo_on_error<T>(made: &Directory, result: Result<T, RestoreError>) -> Result<T, RestoreError> {
    if result.is_err() {
        // Everything in there was made by this call: `prepare` saw to it.
        discard(&made.database_draft());
        discard(&made.database());
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

/// Checks the audit log and notes that the controller waits. False where nobody has claimed it, so that there is
/// nobody to wait for.
async fn wait_for_operators(
    database: &Path,
    action: &str,
    subject: &Path,
) -> Result<bool, RestoreError> {
    let store = SqliteStore::open(database, false, Limits::default()).await?;
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

fn replace_keys(directory: &Directory, config: &Config) -> Result<(), RestoreError> {
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
mod tests;
