//! A view: all that one gateway holds, put together from what operators and the controller signed.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::authority::Authority;
use crate::binding::TunnelKeyBinding;
use crate::cbor::{self, Blob, CborError};
use crate::cose::{SignatureError, Signed};
use crate::id::{GatewayId, OrganisationId};
use crate::intent::{Intent, IntentRoot, MAX_INTENT_LEN, PeerGateway};
use crate::key::Hash;
use crate::merkle::{Proof, leaf_hash};
use crate::operation::{Operation, ViewNumber};
use crate::time::UnixMillis;

/// A view as it travels and as a gateway keeps it on disk: the bytes that were signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedView {
    /// The gateway's leaf.
    pub intent: Blob,
    /// That the leaf stands under the root.
    pub proof: Proof,
    /// The root, signed by an operator.
    pub root: Signed<IntentRoot>,
    /// The controller's part.
    pub operation: Signed<Operation>,
}

impl SignedView {
    /// Longest encoded view in bytes.
    pub const MAX_LEN: usize = 2 * MAX_INTENT_LEN + 64 * 1024;
}

/// The numbers below which a gateway takes nothing: what stops a replay of an old view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Floor {
    /// Number of the newest view held.
    pub view: ViewNumber,
    /// Incarnation and number of the newest intent root held.
    pub revision: (u64, u64),
    /// The newest signed time held.
    pub time: UnixMillis,
}

/// Why a view isn't taken. Whatever was held before stays in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// A signature doesn't hold.
    #[error("view refused: {0}")]
    Signature(#[from] SignatureError),
    /// The intent can't be read.
    #[error("view refused: intent: {0}")]
    Intent(#[from] CborError),
    /// The leaf doesn't stand under the signed root.
    #[error("view refused: its intent isn't part of revision {revision} that operators signed")]
    Proof {
        /// The revision of the root.
        revision: u64,
    },
    /// Somebody else's view.
    #[error("view refused: it is for {found}, this is {expected}")]
    Gateway {
        /// This gateway.
        expected: GatewayId,
        /// The gateway that it is for.
        found: GatewayId,
    },
    /// Intent and operation of different revisions or incarnations.
    #[error(
        "view refused: its operation part is for revision {operation}, its intent is revision {intent}"
    )]
    Mismatch {
        /// What the operation part says.
        operation: u64,
        /// What the root says.
        intent: u64,
    },
    /// Older than what is held.
    #[error("view refused: {what} {found} is older than {held}, which is already held")]
    Rollback {
        /// Which number.
        what: &'static str,
        /// What came.
        found: String,
        /// What is held.
        held: String,
    },
}

/// A view whose signatures, proof and numbers were checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// What operators want.
    pub intent: Intent,
    /// The revision of the intent.
    pub revision: u64,
    /// The incarnation that the revision belongs to.
    pub incarnation: u64,
    /// When an operator signed it, by their clock.
    pub signed_at: UnixMillis,
    /// The intent's digest: the same in two revisions that are the same for this gateway.
    pub intent_hash: Hash,
    /// The controller's part.
    pub operation: Operation,
    /// The peers of the intent that aren't suspended, with what is known of their tunnel ends.
    pub peers: Vec<Peer>,
    /// What was left out of an otherwise good view, to be reported: tunnel keys with bad signatures.
    pub left_out: Vec<String>,
}

/// A peer gateway, ready to be spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Who, by the operators' word.
    pub gateway: PeerGateway,
    /// Where it may be reached, best first.
    pub endpoints: Vec<SocketAddr>,
    /// Its tunnel keys, signatures checked, highest serial first.
    pub keys: Vec<TunnelKeyBinding>,
}

impl View {
    /// Checks `signed` for `gateway`: against `authority`, and against replays below `floor`.
    ///
    /// # Errors
    /// [`ViewError`], which names what doesn't fit.
    pub fn verify(
        signed: &SignedView,
        gateway: GatewayId,
        authority: &Authority,
        floor: &Floor,
    ) -> Result<Self, ViewError> {
        let organisation = authority.organisation;
        let root = signed.root.verify(organisation, &authority.operator_keys())?;
        let intent_hash = leaf_hash(&signed.intent.0);
        if !signed.proof.leads(intent_hash, root.root) {
            return Err(ViewError::Proof { revision: root.number });
        }
        let intent: Intent = cbor::decode(&signed.intent.0, MAX_INTENT_LEN)?;
        let operation = signed.operation.verify(organisation, &authority.controller_keys())?;
        for found in [intent.gateway, operation.gateway] {
            if found != gateway {
                return Err(ViewError::Gateway { expected: gateway, found });
            }
        }
        if intent.organisation != organisation {
            let document = "anteroom/intent";
            return Err(SignatureError::Organisation { document, expected: organisation }.into());
        }
        if operation.revision != root.number {
            let (operation, intent) = (operation.revision, root.number);
            return Err(ViewError::Mismatch { operation, intent });
        }
        let number = operation.number;
        rollback("view", &number, &floor.view)?;
        rollback("incarnation", &root.incarnation, &floor.revision.0)?;
        if root.incarnation == floor.revision.0 {
            rollback("revision", &root.number, &floor.revision.1)?;
        }
        let mut left_out = Vec::new();
        let peers = intent
            .peers
            .iter()
            .filter(|peer| !operation.suspended.contains(&peer.gateway))
            .map(|peer| Peer::new(organisation, peer, &operation, &mut left_out))
            .collect();
        Ok(Self {
            peers,
            left_out,
            revision: root.number,
            incarnation: root.incarnation,
            signed_at: root.signed_at,
            intent_hash,
            intent,
            operation: operation.into_document(),
        })
    }

    /// The floor once this view is held.
    #[must_use]
    pub fn floor(&self, before: &Floor) -> Floor {
        Floor {
            view: self.operation.number,
            revision: (self.incarnation, self.revision),
            time: before.time.max(self.operation.issued_at).max(self.signed_at),
        }
    }
}

fn rollback<N: Copy + PartialOrd + ToString>(
    what: &'static str,
    found: &N,
    held: &N,
) -> Result<(), ViewError> {
    if found < held {
        Err(ViewError::Rollback { what, found: found.to_string(), held: held.to_string() })
    } else {
        Ok(())
    }
}

impl Peer {
    fn new(
        organisation: OrganisationId,
        gateway: &PeerGateway,
        operation: &Operation,
        left_out: &mut Vec<String>,
    ) -> Self {
        let known = operation.peers.iter().find(|peer| peer.gateway == gateway.gateway);
        let mut keys = Vec::new();
        for signed in known.map(|known| known.keys.as_slice()).unwrap_or_default() {
            match signed.verify(organisation, &[gateway.identity]) {
                Ok(binding) if binding.gateway == gateway.gateway => {
                    keys.push(binding.into_document());
                }
                Ok(binding) => left_out.push(format!(
                    "a tunnel key of {} that is offered as one of {}",
                    binding.gateway, gateway.gateway
                )),
                Err(error) => {
                    left_out.push(format!("a tunnel key of {}: {error}", gateway.gateway));
                }
            }
        }
        keys.sort_by_key(|key| std::cmp::Reverse(key.serial));
        let endpoints = known.map(|known| known.endpoints.clone()).unwrap_or_default();
        Self { gateway: gateway.clone(), endpoints, keys }
    }
}

#[cfg(test)]
mod tests;
