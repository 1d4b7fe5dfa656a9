//! Merkle trees over what each gateway is to do, shaped as in RFC 9162 (Certificate Transparency): an operator
//! signs one root, and each gateway gets its own leaf with a proof, and nothing of the others.

use serde::{Deserialize, Serialize};

use crate::key::Hash;

/// Longest path that is read: more leaves than any organisation has gateways.
const MAX_PATH: usize = 32;

/// The digest of one leaf's bytes.
#[must_use]
pub fn leaf_hash(leaf: &[u8]) -> Hash {
    Hash::of("anteroom merkle leaf", &[leaf])
}

fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Hash::of("anteroom merkle node", &[left.as_bytes(), right.as_bytes()])
}

/// The root over `leaves` in their order. [`Hash::ZERO`] where there are none.
#[must_use]
pub fn root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => Hash::ZERO,
        [leaf] => *leaf,
        _ => {
            let (left, right) = leaves.split_at(split(leaves.len()));
            node_hash(&root(left), &root(right))
        }
    }
}

/// The largest power of two below `len`, which is at least 2.
const fn split(len: usize) -> usize {
    1 << (usize::BITS - 1 - (len - 1).leading_zeros())
}

/// That a leaf stands at a place under a root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// The leaf's place, from 0.
    pub index: u64,
    /// How many leaves the tree has.
    pub size: u64,
    /// Sibling digests from the leaf up.
    pub path: Vec<Hash>,
}

/// A whole tree, kept so that each proof costs its path only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// Digests from the leaves up to the root; a digest without a sibling stands on the next level as it is.
    levels: Vec<Vec<Hash>>,
}

impl Tree {
    /// The tree over `leaves` in their order.
    #[must_use]
    pub fn new(leaves: Vec<Hash>) -> Self {
        let mut levels = vec![leaves];
        while let Some(below) = levels.last().filter(|level| level.len() > 1) {
            let above = below.chunks(2).map(|pair| match pair {
                [left, right] => node_hash(left, right),
                alone => alone.first().copied().unwrap_or(Hash::ZERO),
            });
            let above = above.collect();
            levels.push(above);
        }
        Self { levels }
    }

    /// The same as [`root`] over the leaves.
    #[must_use]
    pub fn root(&self) -> Hash {
        self.levels.last().and_then(|level| level.first()).copied().unwrap_or(Hash::ZERO)
    }

    /// The same as [`Proof::new`] over the leaves.
    #[must_use]
    pub fn proof(&self, index: usize) -> Option<Proof> {
        let size = self.levels.first().map_or(0, Vec::len);
        if index >= size {
            return None;
        }
        let siblings = self.levels.iter().enumerate();
        let siblings = siblings.filter_map(|(height, level)| level.get((index >> height) ^ 1));
        Some(Proof { index: index as u64, size: size as u64, path: siblings.copied().collect() })
    }
}

impl Proof {
    /// The proof for the leaf at `index`, or nothing where there is no such leaf.
    #[must_use]
    pub fn new(leaves: &[Hash], index: usize) -> Option<Self> {
        if index >= leaves.len() {
            return None;
        }
        let mut path = Vec::new();
        let (mut rest, mut at) = (leaves, index);
        while rest.len() > 1 {
            let (left, right) = rest.split_at(split(rest.len()));
            if at < left.len() {
                path.push(root(right));
                rest = left;
            } else {
                path.push(root(left));
                at -= left.len();
                rest = right;
            }
        }
        path.reverse();
        Some(Self { index: index as u64, size: leaves.len() as u64, path })
    }

    /// Whether the proof leads from `leaf` to `root`.
    #[must_use]
    pub fn leads(&self, leaf: Hash, root: Hash) -> bool {
        if self.index >= self.size || self.path.len() > MAX_PATH {
            return false;
        }
        let (mut at, mut last, mut hash) = (self.index, self.size - 1, leaf);
        for sibling in &self.path {
            if last == 0 {
                return false;
            }
            if at & 1 == 1 || at == last {
                hash = node_hash(sibling, &hash);
                // A subtree that ends the tree has no sibling on lower levels: climb to where it has one.
                while at & 1 == 0 && at != 0 {
                    at >>= 1;
                    last >>= 1;
                }
            } else {
                hash = node_hash(&hash, sibling);
            }
            at >>= 1;
            last >>= 1;
        }
        last == 0 && hash == root
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(count: u32) -> Vec<Hash> {
        (0..count).map(|i| leaf_hash(&i.to_be_bytes())).collect()
    }

    #[test]
    fn each_leaf_of_each_size_is_proved() {
        for count in 1..=40 {
            let leaves = leaves(count);
            for index in 0..leaves.len() {
                let proof = Proof::new(&leaves, index).unwrap();
                assert!(proof.leads(leaves[index], root(&leaves)), "leaf {index} of {count}");
            }
            assert_eq!(Proof::new(&leaves, leaves.len()), None);
        }
    }

    #[test]
    fn a_tree_gives_the_same_root_and_proofs() {
        for count in 0..=40 {
            let leaves = leaves(count);
            let tree = Tree::new(leaves.clone());
            assert_eq!(tree.root(), root(&leaves), "of {count}");
            for index in 0..=leaves.len() {
                assert_eq!(tree.proof(index), Proof::new(&leaves, index), "{index} of {count}");
            }
        }
    }

    #[test]
    fn a_proof_fits_its_own_leaf_place_and_tree_only() {
        for count in 1..=12 {
            let leaves = leaves(count);
            let root = root(&leaves);
            for index in 0..leaves.len() {
                let proof = Proof::new(&leaves, index).unwrap();
                for other in 0..leaves.len() {
                    assert_eq!(proof.leads(leaves[other], root), other == index);
                    let moved = Proof { index: other as u64, ..proof.clone() };
                    assert_eq!(
                        moved.leads(leaves[index], root),
                        other == index,
                        "{index} as {other} of {count}"
                    );
                }
                let longer = Proof {
                    path: [proof.path.clone(), vec![Hash::ZERO]].concat(),
                    ..proof.clone()
                };
                assert!(!longer.leads(leaves[index], root));
                let outside = Proof { index: u64::from(count), ..proof.clone() };
                assert!(!outside.leads(leaves[index], root));
                let endless = Proof { path: vec![Hash::ZERO; 100], ..proof };
                assert!(!endless.leads(leaves[index], root));
            }
        }
    }
}
