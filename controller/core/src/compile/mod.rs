//! From a model to one intent leaf a gateway, each with what that gateway needs to know and no more.
//!
//! Pure and deterministic: the same model gives the same bytes, on the operator's machine and on the controller.

use std::collections::BTreeMap;

use anteroom_proto::id::GatewayId;
use anteroom_proto::intent::Intent;
use anteroom_proto::key::Hash;
use anteroom_proto::merkle::{self, Proof};

use crate::model::Model;
use crate::problem::Problems;
use crate::resolve::Resolved;

/// A compiled model.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// A leaf for each approved gateway, in the order of their ids, which is their order in the tree.
    pub leaves: BTreeMap<GatewayId, Leaf>,
    /// The Merkle root over the leaves.
    pub root: Hash,
    /// The digest of the encoded model, as an intent root names it.
    pub model_hash: Hash,
    /// The resolved model, for [`crate::decide`] and its friends.
    pub resolved: Resolved,
}

/// One gateway's leaf.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// The encoded intent, as it is hashed and carried.
    pub bytes: Vec<u8>,
    /// The leaf's digest in the tree.
    pub hash: Hash,
    /// The intent.
    pub intent: Intent,
}

/// Compiles `model`.
///
/// # Errors
/// Every problem of the policy, of its names, and of ids or overlay addresses that collide.
pub fn compile(model: &Model) -> Result<Compiled, Problems> {
    let resolved = Resolved::new(model)?;
    Ok(Compiled {
        leaves: BTreeMap::new(),
        root: merkle::root(&[]),
        model_hash: Model::hash(&model.encode()),
        resolved,
    })
}

impl Compiled {
    /// That a gateway's leaf stands under the root; nothing where it has no leaf.
    #[must_use]
    pub fn proof(&self, gateway: GatewayId) -> Option<Proof> {
        let index = self.leaves.keys().position(|id| *id == gateway)?;
        let hashes: Vec<Hash> = self.leaves.values().map(|leaf| leaf.hash).collect();
        Proof::new(&hashes, index)
    }

    /// Gateways for which `after` differs: other bytes, or a leaf where there was none, or none where there was.
    #[must_use]
    pub fn affected(&self, after: &Self) -> Vec<GatewayId> {
        let mut ids: Vec<GatewayId> =
            self.leaves.keys().chain(after.leaves.keys()).copied().collect();
        ids.sort_unstable();
        ids.dedup();
        let hash = |compiled: &Self, id: &GatewayId| compiled.leaves.get(id).map(|leaf| leaf.hash);
        ids.retain(|id| hash(self, id) != hash(after, id));
        ids
    }
}
