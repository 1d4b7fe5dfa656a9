//! Approvals by two persons: a device that operators want handled so isn't enforced unless two of them have signed it.
//!
//! The demand and the approvals stand in the leaf of the device's own gateway, under the operator's signature. So no
//! controller drops the demand or makes an approval up, and a gateway that comes late, or lost what it held, can check
//! for itself.
//!
//! An approval is for one revision: the one in which it comes into force. Who may sign for that follows from the chain
//! of authority documents, each of which names the newest root of its day ([`AuthorityChain::operators_at`]). So an
//! approval goes on counting though an operator leaves later, and nothing that they sign afterwards does. Whoever
//! knows an earlier state of the device takes none that is older than that: approvals of what was taken back don't
//! come again, and a waiver is spent once the device is under a later demand.

mod demands;
mod proposal;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::authority::AuthorityChain;
use crate::cbor;
use crate::cose::{Document, Signed};
use crate::id::{MemberId, OrganisationId};
use crate::key::{Hash, PublicKey};
use crate::rollout::Trial;
use crate::time::UnixMillis;

pub use demands::{Demands, HeldBack, MAX_REMEMBERED, Upheld};
pub use proposal::ProposalWords;

/// How many operators must have signed.
pub const PERSONS: usize = 2;
/// Most approvals that a device bears.
pub const MAX_APPROVALS: usize = 8;

/// Where a revision stands among all: its incarnation, and its number in that.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// The incarnation.
    pub incarnation: u64,
    /// The revision's number.
    pub revision: u64,
}

impl Place {
    /// The place of revision `revision` of incarnation `incarnation`.
    #[must_use]
    pub const fn new(incarnation: u64, revision: u64) -> Self {
        Self { incarnation, revision }
    }
}

/// What an operator approves of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// The organisation.
    pub organisation: OrganisationId,
    /// The device.
    pub member: MemberId,
    /// What is to be done to it.
    pub step: Step,
    /// The revision that does it.
    pub at: Place,
    /// When the operator signed, by their clock.
    pub signed_at: UnixMillis,
}

impl Document for Approval {
    const TYPE: &'static str = "anteroom/approval";
    const MAX_LEN: usize = 1024;

    fn organisation(&self) -> OrganisationId {
        self.organisation
    }
}

/// What two operators must agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Step {
    /// The device is enforced.
    Enforce {
        /// Digest of the trial's terms; none: for good.
        trial: Option<Hash>,
    },
    /// One operator is enough for the device from now on.
    Waive {},
}

impl Step {
    /// The step that has a device enforced on these terms.
    #[must_use]
    pub fn enforce(trial: Option<&Trial>) -> Self {
        let digest = |trial| Hash::of("anteroom trial", &[&cbor::encode(trial)]);
        Self::Enforce { trial: trial.map(digest) }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Enforce { trial: None } => "enforce it",
            Self::Enforce { trial: Some(_) } => "enforce it on trial",
            Self::Waive {} => "let one operator decide on it from now on",
        })
    }
}

/// Who may approve: the organisation's operators, by the chain of its authority documents.
#[derive(Debug, Clone, Copy)]
pub struct Voters<'a> {
    /// The organisation.
    pub organisation: OrganisationId,
    /// The operators by their time.
    pub chain: &'a AuthorityChain,
}

impl Voters<'_> {
    /// Whether two operators of the day have approved of `step` for a device, for one revision that `counts`.
    #[must_use]
    pub fn agree(
        &self,
        member: MemberId,
        approvals: &[Signed<Approval>],
        step: Step,
        counts: impl Fn(Place) -> bool,
    ) -> bool {
        let mut by_place: BTreeMap<Place, BTreeSet<PublicKey>> = BTreeMap::new();
        for signed in approvals.iter().take(MAX_APPROVALS) {
            let Ok(read) = signed.verify_self_named() else { continue };
            if read.organisation == self.organisation
                && read.member == member
                && read.step == step
                && counts(read.at)
            {
                by_place.entry(read.at).or_default().insert(read.signer());
            }
        }
        by_place.into_iter().any(|(place, signers)| {
            let operators = self.chain.operators_at(place);
            signers.iter().filter(|signer| operators.contains(signer)).count() >= PERSONS
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;
