//! What operators change: the claim, invites, revisions of the model. Each is checked whole before anything is
//! stored, and is stored with its audit entry or not at all.

mod authority;
mod bypass;
mod claim;
mod describe;
mod invite;
mod model;
mod rekey;
mod rotate;

use crate::state::Controller;
use crate::store::StoreError;

pub use authority::authority;
pub use bypass::note_bypass;
pub use claim::claim;
pub use describe::{describe, describe_authority};
pub use invite::invite;
pub use model::update;
pub use rekey::rekey;
pub use rotate::rotate;

/// Longest text of a change that is kept: an action, a subject, a reason.
const MAX_TEXT: usize = 1000;

/// Why a change isn't made. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// What came isn't right.
    #[error("{0}")]
    Invalid(String),
    /// Not this operator's to do.
    #[error("{0}")]
    Forbidden(String),
    /// It was right once, and something has changed since.
    #[error("{0}")]
    Conflict(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn invalid(problem: impl Into<String>) -> ChangeError {
    ChangeError::Invalid(problem.into())
}

/// Refuses every change but the one that signs a restored controller back in.
fn check_ready(controller: &Controller) -> Result<(), ChangeError> {
    match controller.restored() {
        Some(_) => Err(ChangeError::Conflict(authority::WAITING.into())),
        None => Ok(()),
    }
}

/// Checks a text that goes into the audit log.
fn check_text(field: &str, text: &str) -> Result<(), ChangeError> {
    if text.chars().count() > MAX_TEXT {
        Err(invalid(format!("{field}: longer than {MAX_TEXT} characters")))
    } else if text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
        Err(invalid(format!("{field}: holds control characters")))
    } else {
        Ok(())
    }
}
