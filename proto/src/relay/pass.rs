//! Passes: with whom a gateway shares a view, as the controller says it to relays.
//!
//! A relay forwards a packet only where the sender's pass names the receiver and the receiver's pass names the
//! sender. A pass opens nothing: what it lets through is sealed, and each gateway's own view decides whom it hears.
//!
//! Passes carry a time, but no relay holds it against a clock of its own. The controller numbers all its passes
//! upwards; a pass is *stale* once a relay has seen one of a higher number that was signed more than a
//! [`RelayPass::lifetime`] later. While no controller signs anything, nothing becomes stale.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::authority::Authority;
use crate::cose::{Document, SignatureError, Signed, Verified};
use crate::id::{GatewayId, OrganisationId};
use crate::key::PublicKey;
use crate::time::UnixMillis;

/// Most peers that one pass may name.
pub const MAX_PEERS: usize = 16_384;
/// Longest lifetime of a pass in seconds: a week.
pub const MAX_LIFETIME: u32 = 7 * 24 * 60 * 60;

/// A pass's place among all passes of an organisation. A restored controller begins a new incarnation.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(deny_unknown_fields)]
pub struct PassNumber {
    /// The controller's incarnation, from the authority document.
    pub incarnation: u64,
    /// Counts the organisation's passes upwards.
    pub sequence: u64,
}

impl fmt::Display for PassNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.incarnation, self.sequence)
    }
}

/// With whom a gateway shares a view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelayPass {
    /// The organisation.
    pub organisation: OrganisationId,
    /// The gateway that the pass is for.
    pub gateway: GatewayId,
    /// Its identity key: whoever shows the pass proves that they hold it.
    pub identity: PublicKey,
    /// Its place among all passes. A relay takes none of a gateway that is lower than one that it has seen.
    pub number: PassNumber,
    /// The gateways that it shares a view with, in ascending order, at most [`MAX_PEERS`].
    pub peers: Vec<GatewayId>,
    /// When the controller signed, by its clock.
    pub issued_at: UnixMillis,
    /// How much later, in seconds, the controller may have signed other passes before this one is stale; at most
    /// [`MAX_LIFETIME`].
    pub lifetime: u32,
}

impl Document for RelayPass {
    const TYPE: &'static str = "anteroom/relay-pass";
    const MAX_LEN: usize = 512 + MAX_PEERS * (GatewayId::LEN + 1);

    fn organisation(&self) -> OrganisationId {
        self.organisation
    }
}

/// Why a pass isn't taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PassError {
    /// The signature isn't a controller's.
    #[error("{0}. Only a controller that the newest authority document names can sign a pass")]
    Signature(#[from] SignatureError),
    /// Somebody else's.
    #[error("the relay pass is for {gateway} with the identity key {}, which isn't the one that the connection proved", identity.fingerprint())]
    Identity {
        /// Whose it is.
        gateway: GatewayId,
        /// The key that it names.
        identity: PublicKey,
    },
    /// Of an incarnation that no authority document held here has begun.
    #[error(
        "the relay pass is of incarnation {found}, but the newest authority document held here ({document}) is of {held}"
    )]
    Unannounced {
        /// What the pass names.
        found: u64,
        /// Number of the newest document held.
        document: u64,
        /// What that document has.
        held: u64,
    },
    /// It says what can't be.
    #[error("the relay pass says what can't be: {0}")]
    Content(&'static str),
}

impl RelayPass {
    /// Checks that a controller of `authority` signed the pass for whoever proved `identity`, and that it says what
    /// can be. Whether it is stale, or a newer one is known, is for whoever knows the other passes.
    ///
    /// # Errors
    /// [`PassError`].
    pub fn verify(
        signed: &Signed<Self>,
        authority: &Authority,
        identity: PublicKey,
    ) -> Result<Verified<Self>, PassError> {
        let pass = signed.verify(authority.organisation, &authority.controller_keys())?;
        if pass.identity != identity {
            return Err(PassError::Identity { gateway: pass.gateway, identity: pass.identity });
        }
        let (found, held) = (pass.number.incarnation, authority.incarnation);
        if found > held {
            return Err(PassError::Unannounced { found, document: authority.number, held });
        }
        match pass.fault() {
            Some(problem) => Err(PassError::Content(problem)),
            None => Ok(pass),
        }
    }

    fn fault(&self) -> Option<&'static str> {
        if self.peers.len() > MAX_PEERS {
            Some("it names too many peers")
        } else if !self.peers.is_sorted_by(|a, b| a < b) {
            Some("its peers aren't in ascending order")
        } else if self.names(self.gateway) {
            Some("it names its own gateway as a peer")
        } else if self.lifetime == 0 || self.lifetime > MAX_LIFETIME {
            Some("its lifetime is none, or longer than a week")
        } else {
            None
        }
    }

    /// Whether `gateway` is among the peers.
    #[must_use]
    pub fn names(&self, gateway: GatewayId) -> bool {
        self.peers.binary_search(&gateway).is_ok()
    }

    /// From what signed time on the pass is stale.
    #[must_use]
    pub const fn stale_at(&self) -> UnixMillis {
        self.issued_at.saturating_add(self.lifetime as u64 * 1000)
    }
}
