//! What one operator proposes to another, as they sign it.

use serde::{Deserialize, Serialize};

use super::Place;
use crate::cose::Document;
use crate::id::OrganisationId;
use crate::key::Hash;
use crate::time::UnixMillis;

/// A proposal: what is to be done, in the proposer's words, and to which model it leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProposalWords {
    /// The organisation.
    pub organisation: OrganisationId,
    /// The revision that it would be.
    pub at: Place,
    /// Hash of the model that is proposed, as a root names it.
    pub model: Hash,
    /// What is done, such as `device mode`.
    pub action: String,
    /// To what.
    pub subject: String,
    /// Why.
    pub reason: Option<String>,
    /// When the operator signed, by their clock.
    pub signed_at: UnixMillis,
}

impl Document for ProposalWords {
    const TYPE: &'static str = "anteroom/proposal";
    const MAX_LEN: usize = 64 * 1024;

    fn organisation(&self) -> OrganisationId {
        self.organisation
    }
}
