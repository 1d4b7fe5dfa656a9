//! The audit log's chain: each entry holds the hash of the one before it.

use anteroom_proto::api::AuditEntry;
use anteroom_proto::authority::Operator;
use anteroom_proto::key::Hash;

use crate::store::{Store, StoreError};

/// Entries read at a time.
const PAGE: u32 = 1000;

/// How an operator is named in the audit log.
#[must_use]
pub fn actor(operator: &Operator) -> String {
    format!("{} ({})", operator.name, operator.key.fingerprint())
}

/// Why the audit log isn't believed.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// It can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It was altered.
    #[error(
        "the audit log was altered: entry {number} {problem}. Compare it with an exported copy or a backup; `--despite-audit` starts all the same"
    )]
    Broken {
        /// The first entry that doesn't fit.
        number: u64,
        /// How it doesn't fit.
        problem: &'static str,
    },
}

/// Checks that `entry` follows one numbered `number` whose hash is `previous`.
///
/// # Errors
/// What doesn't fit.
pub fn check_entry(number: u64, previous: Hash, entry: &AuditEntry) -> Result<(), &'static str> {
    if entry.number != number + 1 {
        Err("isn't the one that comes next: entries are missing before it")
    } else if entry.previous != previous {
        Err("doesn't follow the one before it")
    } else if entry.hash != entry.compute_hash() {
        Err("doesn't have the hash that it says")
    } else {
        Ok(())
    }
}

/// Checks the whole log. Returns how many entries there are.
///
/// # Errors
/// [`AuditError::Broken`] with the first entry that doesn't fit.
pub async fn check(store: &dyn Store) -> Result<u64, AuditError> {
    let (mut number, mut previous) = (0, Hash::ZERO);
    loop {
        let page = store.audit(number, PAGE).await?;
        if page.is_empty() {
            return Ok(number);
        }
        for entry in page {
            check_entry(number, previous, &entry)
                .map_err(|problem| AuditError::Broken { number: number + 1, problem })?;
            (number, previous) = (entry.number, entry.hash);
        }
    }
}
