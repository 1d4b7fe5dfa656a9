//! What the operator's machine holds against a controller that lies: the pinned chain, the newest revision.

use anteroom_proto::authority::{Authority, AuthorityChain, AuthorityError, RootId};
use anteroom_proto::cose::Signed;
use anteroom_proto::key::Hash;
use serde::{Deserialize, Serialize};

/// The authority chain as it was last followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trust {
    /// Hash of its first document.
    pub pinned: Hash,
    /// Its documents, first to newest.
    pub chain: Vec<Signed<Authority>>,
}

impl Trust {
    /// What to keep of `chain`.
    #[must_use]
    pub fn of(chain: &AuthorityChain) -> Self {
        Self { pinned: chain.pin(), chain: chain.to_signed() }
    }

    /// The kept chain, checked again.
    ///
    /// # Errors
    /// [`AuthorityError`] when the kept file was altered.
    pub fn follow(&self) -> Result<AuthorityChain, AuthorityError> {
        AuthorityChain::follow(self.pinned, &self.chain)
    }

    /// The chain that a controller `served`, if it holds every document of the kept one.
    ///
    /// # Errors
    /// [`AuthorityError`], which names what doesn't fit.
    pub fn replace(&self, served: &[Signed<Authority>]) -> Result<AuthorityChain, AuthorityError> {
        let held = self.follow()?;
        let newer = AuthorityChain::follow(self.pinned, served)?;
        held.check_replacement(&newer)?;
        Ok(newer)
    }
}

/// The newest revision that this machine has seen: no controller may serve an older one, or another of the
/// same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// The controller's incarnation.
    pub incarnation: u64,
    /// The revision's number.
    pub number: u64,
    /// Hash of its signed root.
    pub root: Hash,
}

impl Seen {
    /// Where it stands among all revisions.
    #[must_use]
    pub const fn place(&self) -> (u64, u64) {
        (self.incarnation, self.number)
    }

    /// As an authority document names it.
    #[must_use]
    pub const fn id(&self) -> RootId {
        RootId { incarnation: self.incarnation, number: self.number, hash: self.root }
    }
}

/// The newest entry of the audit log that this machine has verified: what comes before it can't be rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditSeen {
    /// The controller's incarnation: a restored one has lost entries, and operators have signed that.
    #[serde(default)]
    pub incarnation: u64,
    /// The entry's number.
    pub number: u64,
    /// Its hash.
    pub hash: Hash,
}
