//! A view: all that one gateway holds, put together from what operators and the controller signed.

mod keys;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::approval::{Demands, Place, Upheld, Voters};
use crate::authority::{Authority, AuthorityChain};
use crate::binding::TunnelKeyBinding;
use crate::cbor::{self, Blob, CborError};
use crate::cose::{SignatureError, Signed};
use crate::id::{GatewayId, MemberId, OrganisationId};
use crate::intent::{Client, Intent, IntentRoot, MAX_INTENT_LEN, PeerGateway};
use crate::key::{Hash, PublicKey, TunnelPublicKey};
use crate::merkle::{Proof, leaf_hash};
use crate::mode::Mode;
use crate::operation::{Operation, ViewNumber};
use crate::time::UnixMillis;

pub use keys::KnownKeys;

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
    /// Hash of that root's signed bytes: two operators may have signed a root of one number, and only one of them
    /// counts. None where an agent wrote this that didn't know it.
    #[serde(default)]
    pub root: Option<Hash>,
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
        "view refused: its operation part is for {what} {operation}, its intent is of {what} {intent}"
    )]
    Mismatch {
        /// `revision` or `incarnation`.
        what: &'static str,
        /// What the operation part says.
        operation: u64,
        /// What the root says.
        intent: u64,
    },
    /// Signed under an authority document that isn't held, or in an incarnation that none has begun.
    #[error(
        "view refused: it names {what} {found}, but the newest authority document held ({document}) is of {what} {held}: the controller holds a newer one back, or makes this up"
    )]
    Unannounced {
        /// `authority document` or `incarnation`.
        what: &'static str,
        /// What the view names.
        found: u64,
        /// Number of the newest document held.
        document: u64,
        /// What that document has.
        held: u64,
    },
    /// Older than what operators have called the newest, or another in its place.
    #[error(
        "view refused: revision {found} was replaced: authority document {document} names revision {newest} as the newest"
    )]
    Superseded {
        /// The revision of the view.
        found: u64,
        /// The document that knows better.
        document: u64,
        /// What it names.
        newest: u64,
    },
    /// Another root in the place of the one that is held, and no authority document says that it is to replace it.
    #[error(
        "view refused: revision {revision} is held already, from another root that operators signed: two were signed under one number, and only a newer revision replaces either"
    )]
    Forked {
        /// The revision.
        revision: u64,
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
    /// What operators want; devices that lack an approval as they are held back.
    pub intent: Intent,
    /// What two operators must agree on.
    pub upheld: Upheld,
    /// The revision of the intent.
    pub revision: u64,
    /// Hash of the signed root.
    pub root_hash: Hash,
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
    /// The UDP port where it takes QUIC connections of its peers, if it does.
    pub quic: Option<u16>,
}

impl View {
    /// Checks `signed`, which has just come, for `gateway`: against `authority`, the document in force, and against
    /// replays below `floor`.
    ///
    /// Who signed the root must be an operator now, or operators must still vouch for it: a root that somebody
    /// signs, or says to have signed, after they were removed is refused.
    ///
    /// # Errors
    /// [`ViewError`], which names what doesn't fit.
    pub fn verify(
        signed: &SignedView,
        gateway: GatewayId,
        authority: &Authority,
        floor: &Floor,
    ) -> Result<Self, ViewError> {
        let mut operators = authority.operator_keys();
        let vouched = authority.vouches_for(signed.root.hash());
        if vouched {
            operators.push(signed.root.verify_self_named()?.signer());
        }
        let controllers = authority.controller_keys();
        let signers = Signers { operators, controllers, vouched };
        let (view, root) = Self::check(signed, gateway, authority.organisation, &signers, floor)?;
        for (what, found, held) in [
            ("authority document", root.authority, authority.number),
            ("incarnation", root.incarnation, authority.incarnation),
        ] {
            if found > held {
                let document = authority.number;
                return Err(ViewError::Unannounced { what, found, document, held });
            }
        }
        rollback("incarnation", &root.incarnation, &authority.incarnation)?;
        let place = (root.incarnation, root.number);
        match authority.root {
            Some(newest)
                if place < newest.place()
                    || (place == newest.place() && newest.hash != signed.root.hash()) =>
            {
                let (found, document) = (root.number, authority.number);
                Err(ViewError::Superseded { found, document, newest: newest.number })
            }
            _ => Ok(view),
        }
    }

    /// As [`View::verify`], with the newest document of `chain`; devices on which two operators must agree, and don't, are
    /// held back. `held` is the view in force, `demands` what is remembered with it, or from before it was lost.
    ///
    /// # Errors
    /// [`ViewError`], which names what doesn't fit.
    pub fn verify_next(
        signed: &SignedView,
        gateway: GatewayId,
        chain: &AuthorityChain,
        floor: &Floor,
        held: Option<&Self>,
        demands: &Demands,
    ) -> Result<Self, ViewError> {
        let mut view = Self::verify(signed, gateway, chain.newest(), floor)?;
        let voters = Voters { organisation: chain.newest().organisation, chain };
        let held = held.map(|held| (&held.intent, held.place()));
        let at = view.place();
        view.upheld = demands.uphold(&mut view.intent, at, held, &voters);
        Ok(view)
    }

    /// The intent with the modes that operators signed, held back or not: by those other gateways go.
    #[must_use]
    pub fn intent_as_signed(&self) -> Cow<'_, Intent> {
        let held_back = &self.upheld.held_back;
        if held_back.iter().all(|back| back.mode == back.signed) {
            return Cow::Borrowed(&self.intent);
        }
        let signed: BTreeMap<MemberId, Mode> =
            held_back.iter().map(|back| (back.member, back.signed)).collect();
        let mut intent = self.intent.clone();
        for device in &mut intent.devices {
            if let Some(mode) = signed.get(&device.member.id) {
                device.member.mode = *mode;
            }
        }
        Cow::Owned(intent)
    }

    /// Where its revision stands among all.
    #[must_use]
    pub const fn place(&self) -> Place {
        Place::new(self.incarnation, self.revision)
    }

    /// Checks `signed`, which was taken earlier and comes from disk, for `gateway`. It was taken under the authority
    /// of its day: an operator or controller who left since then doesn't undo it, and neither does a newer revision
    /// that changes nothing here. `demands` is what was remembered with it; where that is lost, all that was signed is
    /// in force, so that nothing opens by the loss.
    ///
    /// # Errors
    /// [`ViewError`], which names what doesn't fit.
    pub fn verify_held(
        signed: &SignedView,
        gateway: GatewayId,
        chain: &AuthorityChain,
        floor: &Floor,
        demands: Option<&Demands>,
    ) -> Result<Self, ViewError> {
        let signers = Signers {
            operators: chain.all_operator_keys(),
            controllers: chain.all_controller_keys(),
            vouched: chain.ever_vouched_for(signed.root.hash()),
        };
        let organisation = chain.newest().organisation;
        let (mut view, _) = Self::check(signed, gateway, organisation, &signers, floor)?;
        let at = view.place();
        view.upheld = match demands {
            Some(demands) => demands.uphold_again(&mut view.intent, at),
            None => Upheld { demands: Demands::of(&view.intent, at), held_back: Vec::new() },
        };
        Ok(view)
    }

    /// All that holds for a view whenever it is looked at.
    fn check(
        signed: &SignedView,
        gateway: GatewayId,
        organisation: OrganisationId,
        signers: &Signers,
        floor: &Floor,
    ) -> Result<(Self, IntentRoot), ViewError> {
        let root = signed.root.verify(organisation, &signers.operators)?;
        let intent_hash = leaf_hash(&signed.intent.0);
        if !signed.proof.leads(intent_hash, root.root) {
            return Err(ViewError::Proof { revision: root.number });
        }
        let intent: Intent = cbor::decode(&signed.intent.0, MAX_INTENT_LEN)?;
        let operation = signed.operation.verify(organisation, &signers.controllers)?;
        for found in [intent.gateway, operation.gateway] {
            if found != gateway {
                return Err(ViewError::Gateway { expected: gateway, found });
            }
        }
        if intent.organisation != organisation {
            let document = "anteroom/intent";
            return Err(SignatureError::Organisation { document, expected: organisation }.into());
        }
        for (what, operation, intent) in [
            ("revision", operation.revision, root.number),
            ("incarnation", operation.number.incarnation, root.incarnation),
        ] {
            if operation != intent {
                return Err(ViewError::Mismatch { what, operation, intent });
            }
        }
        let number = operation.number;
        rollback("view", &number, &floor.view)?;
        rollback("incarnation", &root.incarnation, &floor.revision.0)?;
        if root.incarnation == floor.revision.0 {
            rollback("revision", &root.number, &floor.revision.1)?;
        }
        let root_hash = signed.root.hash();
        let same_place = (root.incarnation, root.number) == floor.revision;
        if same_place && !signers.vouched && floor.root.is_some_and(|held| held != root_hash) {
            return Err(ViewError::Forked { revision: root.number });
        }
        let mut left_out = Vec::new();
        let mut peers: Vec<Peer> = intent
            .peers
            .iter()
            .filter(|peer| !operation.suspended.contains(&peer.gateway))
            .map(|peer| Peer::new(organisation, peer, &operation, &mut left_out))
            .collect();
        leave_out_clients_keys(&mut peers, &intent, &mut left_out);
        leave_out_shared_keys(&mut peers, &mut left_out);
        let view = Self {
            peers,
            left_out,
            revision: root.number,
            root_hash,
            incarnation: root.incarnation,
            signed_at: root.signed_at,
            intent_hash,
            intent,
            upheld: Upheld::default(),
            operation: operation.into_document(),
        };
        Ok((view, root.into_document()))
    }

    /// The floor once this view is held. A new incarnation, which operators sign, takes back a time that the
    /// controller before it may have made up.
    #[must_use]
    pub fn floor(&self, before: &Floor) -> Floor {
        let signed = self.operation.issued_at.max(self.signed_at);
        let anew = self.incarnation > before.revision.0;
        Floor {
            view: self.operation.number,
            revision: (self.incarnation, self.revision),
            root: Some(self.root_hash),
            time: if anew { signed } else { before.time.max(signed) },
        }
    }
}

/// Whose signatures count.
struct Signers {
    operators: Vec<PublicKey>,
    controllers: Vec<PublicKey>,
    /// Whether an authority document names this very root as the newest, and so in the place of any other.
    vouched: bool,
}

/// A tunnel key that two peers claim is nobody's: a gateway signs what it likes as its own, and only one of the two
/// can have the private half.
fn leave_out_shared_keys(peers: &mut [Peer], left_out: &mut Vec<String>) {
    let mut owners: BTreeMap<TunnelPublicKey, BTreeSet<GatewayId>> = BTreeMap::new();
    for peer in peers.iter() {
        for key in &peer.keys {
            owners.entry(key.x25519).or_default().insert(peer.gateway.gateway);
        }
    }
    owners.retain(|_, owners| owners.len() > 1);
    for (key, owners) in &owners {
        let names: Vec<String> = owners.iter().map(ToString::to_string).collect();
        left_out.push(format!("the tunnel key {key}, which {} claim", names.join(" and ")));
    }
    for peer in peers {
        peer.keys.retain(|key| !owners.contains_key(&key.x25519));
    }
}

/// A client's key has operators' word for it: a gateway that names it as its own is left without.
fn leave_out_clients_keys(peers: &mut [Peer], intent: &Intent, left_out: &mut Vec<String>) {
    let clients: BTreeMap<TunnelPublicKey, &Client> =
        intent.clients.iter().map(|client| (client.key, client)).collect();
    for peer in peers {
        peer.keys.retain(|key| {
            let owner = clients.get(&key.x25519);
            if let Some(client) = owner {
                left_out.push(format!(
                    "the tunnel key {}, which {} claims and operators gave to client {}",
                    key.x25519, peer.gateway.gateway, client.id
                ));
            }
            owner.is_none()
        });
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
                    // What a controller hands on that doesn't know such keys.
                    if binding.is_for_clients() {
                        continue;
                    }
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
        let quic = known.and_then(|known| known.quic).filter(|port| *port != 0);
        Self { gateway: gateway.clone(), endpoints, keys, quic }
    }
}

#[cfg(test)]
mod tests;
