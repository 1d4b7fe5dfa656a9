//! The authority document: who may sign for an organisation.
//!
//! Numbered and hash-chained. The first is pinned by its hash; each further one is signed by an operator of
//! the one before it, or by the recovery key that the one before it names.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::approval::Place;
use crate::cose::{Document, SignatureError, Signed, Verified};
use crate::id::OrganisationId;
use crate::key::{Hash, PublicKey};
use crate::name::Name;

/// Most operators, and most controllers, that one document may name.
pub const MAX_ENTRIES: usize = 64;
/// Longest chain that is read in one go.
pub const MAX_CHAIN: usize = 1024;

/// One authority document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authority {
    /// The organisation.
    pub organisation: OrganisationId,
    /// 1 for the first, then one more each time.
    pub number: u64,
    /// Hash of the signed document before this one; [`Hash::ZERO`] for the first.
    pub previous: Hash,
    /// Who signs what opens.
    pub operators: Vec<Operator>,
    /// How many operators must sign. Only 1 is understood.
    pub threshold: u8,
    /// Which controllers gateways speak to.
    pub controllers: Vec<Controller>,
    /// Relays that aren't controllers. Every controller is one as well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub relays: Vec<Relay>,
    /// A key kept offline that can sign the next document when every operator's key is lost.
    pub recovery: PublicKey,
    /// Counts the restores of a controller from a backup, and its changes of key; views are numbered within one.
    pub incarnation: u64,
    /// The newest root when this was signed; none before the first. No gateway takes an older one from then on,
    /// and it stays good though its signer is an operator no more.
    pub root: Option<RootId>,
}

/// A signed root, by its numbers and its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootId {
    /// The incarnation that it was signed in.
    pub incarnation: u64,
    /// Its revision.
    pub number: u64,
    /// Hash of its signed bytes.
    pub hash: Hash,
}

impl RootId {
    /// Where it stands among all roots.
    #[must_use]
    pub const fn place(&self) -> (u64, u64) {
        (self.incarnation, self.number)
    }
}

/// An operator as the authority names them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operator {
    /// What the audit log calls them.
    pub name: Name,
    /// Their key, which stays on their machine.
    pub key: PublicKey,
}

/// A controller as the authority names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Controller {
    /// Its identity key, for TLS and for the operation part of views.
    pub key: PublicKey,
    /// Where gateways reach it over QUIC, as `host:port` or `[v6]:port`.
    pub addresses: Vec<String>,
}

/// A relay as the authority names it: it carries sealed packets for those who reach each other in no other way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Relay {
    /// What operators call it.
    pub name: Name,
    /// Its identity key, for TLS.
    pub key: PublicKey,
    /// Where gateways reach it, over QUIC and over TCP, as `host:port` or `[v6]:port`.
    pub addresses: Vec<String>,
}

impl Document for Authority {
    const TYPE: &'static str = "anteroom/authority";
    const MAX_LEN: usize = 64 * 1024;

    fn organisation(&self) -> OrganisationId {
        self.organisation
    }
}

impl Authority {
    /// The operators' keys.
    #[must_use]
    pub fn operator_keys(&self) -> Vec<PublicKey> {
        self.operators.iter().map(|operator| operator.key).collect()
    }

    /// The controllers' keys.
    #[must_use]
    pub fn controller_keys(&self) -> Vec<PublicKey> {
        self.controllers.iter().map(|controller| controller.key).collect()
    }

    /// The keys of all that may relay: relays and controllers.
    #[must_use]
    pub fn relay_keys(&self) -> Vec<PublicKey> {
        let relays = self.relays.iter().map(|relay| relay.key);
        relays.chain(self.controllers.iter().map(|controller| controller.key)).collect()
    }

    /// The operator with this key.
    #[must_use]
    pub fn operator(&self, key: PublicKey) -> Option<&Operator> {
        self.operators.iter().find(|operator| operator.key == key)
    }

    /// Whether operators go on vouching for the signed root with this hash, whoever signed it.
    #[must_use]
    pub fn vouches_for(&self, root: Hash) -> bool {
        self.root.is_some_and(|known| known.hash == root)
    }

    /// The document that follows `signed`, which must be this one's signed form: the same but for its place.
    #[must_use]
    pub fn next(&self, signed: &Signed<Self>) -> Self {
        Self { number: self.number.saturating_add(1), previous: signed.hash(), ..self.clone() }
    }

    fn fault(&self) -> Option<&'static str> {
        if self.threshold != 1 {
            Some("its threshold isn't 1, which is all that this version understands")
        } else if self.operators.is_empty() || self.operators.len() > MAX_ENTRIES {
            Some("it names no operator, or too many")
        } else if self.controllers.is_empty() || self.controllers.len() > MAX_ENTRIES {
            Some("it names no controller, or too many")
        } else if self.relays.len() > MAX_ENTRIES {
            Some("it names too many relays")
        } else if repeat(self.operator_keys()) || repeat(self.relay_keys()) {
            Some("it names a key twice")
        } else if self.relays.iter().any(|relay| relay.addresses.is_empty()) {
            Some("it names a relay without an address")
        } else if repeat(self.relays.iter().map(|relay| &relay.name)) {
            Some("it names two relays alike")
        } else {
            None
        }
    }
}

/// Why a chain of authority documents isn't followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// Nothing to follow.
    #[error("the chain of authority documents is empty or longer than {MAX_CHAIN}")]
    Length,
    /// A document isn't signed by whom it must be.
    #[error("authority document {number}: {problem}")]
    Signature {
        /// The document's place in the chain.
        number: u64,
        /// What is wrong.
        problem: SignatureError,
    },
    /// The first document isn't the pinned one.
    #[error(
        "the first authority document isn't the one that was pinned ({pinned}): this controller serves another organisation"
    )]
    Pin {
        /// The hash that was pinned.
        pinned: Hash,
    },
    /// A document doesn't follow the one before it, or says what can't be.
    #[error("authority document {number}: {problem}")]
    Content {
        /// The document's place in the chain.
        number: u64,
        /// What is wrong.
        problem: &'static str,
    },
    /// The chain ends before the newest document that is already held, or differs from it.
    #[error(
        "the chain of authority documents doesn't contain document {held}, which is already held"
    )]
    Rollback {
        /// The newest number held.
        held: u64,
    },
}

/// A chain of authority documents that was followed from its pinned start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityChain {
    documents: Vec<Verified<Authority>>,
}

impl AuthorityChain {
    /// Follows `chain` from its first document, whose hash must be `pinned`.
    ///
    /// # Errors
    /// [`AuthorityError`], which names the document that doesn't fit.
    pub fn follow(pinned: Hash, chain: &[Signed<Authority>]) -> Result<Self, AuthorityError> {
        let Some(first) = chain.first().filter(|_| chain.len() <= MAX_CHAIN) else {
            return Err(AuthorityError::Length);
        };
        if first.hash() != pinned {
            return Err(AuthorityError::Pin { pinned });
        }
        Self::follow_unpinned(chain)
    }

    /// Follows `chain` from whatever its first document is. For an operator's first sight of a chain, whose
    /// hash is then pinned, and for the controller's own store.
    ///
    /// # Errors
    /// [`AuthorityError`], which names the document that doesn't fit.
    pub fn follow_unpinned(chain: &[Signed<Authority>]) -> Result<Self, AuthorityError> {
        let Some((first, rest)) = chain.split_first().filter(|_| chain.len() <= MAX_CHAIN) else {
            return Err(AuthorityError::Length);
        };
        let signature = |number| move |problem| AuthorityError::Signature { number, problem };
        let first = first.verify_self_named().map_err(signature(1))?;
        let content = |number, problem| AuthorityError::Content { number, problem };
        if first.number != 1 || first.previous != Hash::ZERO {
            return Err(content(1, "it isn't a first document"));
        }
        if first.operator(first.signer()).is_none() {
            return Err(content(1, "its signer isn't among its operators"));
        }
        if let Some(problem) = first.fault() {
            return Err(content(1, problem));
        }
        let mut followed = Self { documents: vec![first] };
        for next in rest {
            followed.extend(next)?;
        }
        Ok(followed)
    }

    /// Appends the next document.
    ///
    /// # Errors
    /// [`AuthorityError`] when `next` isn't signed by an operator (or the recovery key) of the newest document,
    /// or doesn't follow it. The chain is then unchanged.
    pub fn extend(&mut self, next: &Signed<Authority>) -> Result<(), AuthorityError> {
        let newest = self.newest();
        let number = newest.number + 1;
        let mut signers = newest.operator_keys();
        signers.push(newest.recovery);
        let next = next
            .verify(newest.organisation, &signers)
            .map_err(|problem| AuthorityError::Signature { number, problem })?;
        let problem = if next.number != number {
            Some("its number isn't the next one")
        } else if next.previous != newest.signed().hash() {
            Some("it doesn't name the document before it")
        } else if next.incarnation < newest.incarnation {
            Some("its incarnation is lower than before")
        } else if goes_back(newest, &next) {
            Some("it names an older root as the newest than the document before it does")
        } else if self.documents.len() >= MAX_CHAIN {
            Some("the chain is full")
        } else {
            next.fault()
        };
        match problem {
            Some(problem) => Err(AuthorityError::Content { number, problem }),
            None => {
                self.documents.push(next);
                Ok(())
            }
        }
    }

    /// Checks that `newer` holds every document of this chain, as it must to replace it.
    ///
    /// # Errors
    /// [`AuthorityError::Rollback`] otherwise.
    pub fn check_replacement(&self, newer: &Self) -> Result<(), AuthorityError> {
        let same = |(a, b): (&Verified<Authority>, &Verified<Authority>)| a.signed() == b.signed();
        let holds_ours = newer.documents.len() >= self.documents.len()
            && self.documents.iter().zip(&newer.documents).all(same);
        if holds_ours {
            Ok(())
        } else {
            Err(AuthorityError::Rollback { held: self.newest().number })
        }
    }

    /// All documents, from the first to the newest.
    #[must_use]
    pub fn documents(&self) -> &[Verified<Authority>] {
        &self.documents
    }

    /// The document in force.
    #[must_use]
    pub fn newest(&self) -> &Verified<Authority> {
        &self.documents[self.documents.len() - 1]
    }

    /// Whether any document named the signed root with this hash as the newest of its day.
    #[must_use]
    pub fn ever_vouched_for(&self, root: Hash) -> bool {
        self.documents.iter().any(|document| document.vouches_for(root))
    }

    /// The keys of those who were operators when the revision at `place` was made: each document names the newest root of
    /// its day, so the last one whose root is older was in force then. None for a revision that a restore gave up.
    #[must_use]
    pub fn operators_at(&self, place: Place) -> Vec<PublicKey> {
        let before = |document: &&Verified<Authority>| {
            let (incarnation, revision) = document.root.map_or((0, 0), |root| root.place());
            Place::new(incarnation, revision) < place
        };
        let of_then = self.documents.iter().rev().find(before);
        let of_then = of_then.filter(|document| document.incarnation == place.incarnation);
        of_then.map(|document| document.operator_keys()).unwrap_or_default()
    }

    /// The hash by which the chain is pinned.
    #[must_use]
    pub fn pin(&self) -> Hash {
        self.documents[0].signed().hash()
    }

    /// The documents as carried, first to newest.
    #[must_use]
    pub fn to_signed(&self) -> Vec<Signed<Authority>> {
        self.documents.iter().map(|document| document.signed().clone()).collect()
    }

    /// Every key that was a controller's at some time.
    #[must_use]
    pub fn all_controller_keys(&self) -> Vec<PublicKey> {
        let mut keys: Vec<_> =
            self.documents.iter().flat_map(|document| document.controller_keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// Every key that was an operator's at some time: who may have signed what is in the history.
    #[must_use]
    pub fn all_operator_keys(&self) -> Vec<PublicKey> {
        let mut keys: Vec<_> =
            self.documents.iter().flat_map(|document| document.operator_keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}

/// Whether anything comes twice.
fn repeat<T: Ord>(all: impl IntoIterator<Item = T>) -> bool {
    let mut known = BTreeSet::new();
    !all.into_iter().all(|one| known.insert(one))
}

/// Whether `next` names an older root than `before`, or another in the same place. A new incarnation may: what a
/// lost controller held may be lost for good.
fn goes_back(before: &Authority, next: &Authority) -> bool {
    match (before.root, next.root) {
        _ if next.incarnation > before.incarnation => false,
        (None, _) => false,
        (Some(_), None) => true,
        (Some(was), Some(is)) => {
            is.place() < was.place() || (is.place() == was.place() && is != was)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::IdentityKey;

    fn key(seed: u8) -> IdentityKey {
        IdentityKey::from_seed(&[seed; 32])
    }

    fn first() -> Authority {
        Authority {
            organisation: OrganisationId::from_bytes([1; 16]),
            number: 1,
            previous: Hash::ZERO,
            operators: vec![Operator { name: "ana".parse().unwrap(), key: key(1).public() }],
            threshold: 1,
            controllers: vec![Controller {
                key: key(100).public(),
                addresses: vec!["10.0.0.5:4433".into()],
            }],
            relays: vec![],
            recovery: key(200).public(),
            incarnation: 0,
            root: None,
        }
    }

    fn after(before: &Signed<Authority>, change: impl FnOnce(&mut Authority)) -> Authority {
        let mut next = before.verify_self_named().unwrap().into_document();
        next.number += 1;
        next.previous = before.hash();
        change(&mut next);
        next
    }

    #[test]
    fn a_chain_is_followed_through_operators_and_recovery() {
        let one = Signed::sign(&first(), &key(1));
        let two = Signed::sign(
            &after(&one, |next| {
                next.operators
                    .push(Operator { name: "ben".parse().unwrap(), key: key(2).public() });
            }),
            &key(1),
        );
        let three = Signed::sign(&after(&two, |next| next.operators.truncate(1)), &key(2));
        let four =
            Signed::sign(&after(&three, |next| next.operators[0].key = key(3).public()), &key(200));
        let chain = AuthorityChain::follow(one.hash(), &[one.clone(), two, three, four]).unwrap();
        assert_eq!(chain.newest().number, 4);
        assert_eq!(chain.newest().operator_keys(), [key(3).public()]);
        assert_eq!(chain.all_operator_keys().len(), 3);
        assert_eq!(chain.pin(), one.hash());
    }

    #[test]
    fn relays_are_named_beside_the_controllers_and_no_key_is_both() {
        let name = |seed: u8| format!("relay-{seed}").parse().unwrap();
        let relay = |seed| Relay {
            name: name(seed),
            key: key(seed).public(),
            addresses: vec!["r:443".into()],
        };
        let with = |relays| Signed::sign(&Authority { relays, ..first() }, &key(1));
        let plain = with(vec![]);
        assert!(!plain.as_bytes().windows(6).any(|six| six == b"relays"), "read by those before");
        let named = with(vec![relay(50), relay(51)]);
        let chain = AuthorityChain::follow(named.hash(), &[named]).unwrap();
        let keys = [key(50).public(), key(51).public(), key(100).public()];
        assert_eq!(chain.newest().relay_keys(), keys);
        for bad in [vec![relay(50), relay(50)], vec![relay(100)], vec![relay(50); 65]] {
            assert!(AuthorityChain::follow_unpinned(&[with(bad)]).is_err());
        }
    }

    #[test]
    fn breaks_in_the_chain_are_refused() {
        let one = Signed::sign(&first(), &key(1));
        let follow = |next: &Authority, signer: &IdentityKey| {
            AuthorityChain::follow(one.hash(), &[one.clone(), Signed::sign(next, signer)])
                .map(|_| ())
                .unwrap_err()
        };
        let two = after(&one, |_| {});
        assert!(matches!(follow(&two, &key(9)), AuthorityError::Signature { number: 2, .. }));
        assert!(matches!(follow(&two, &key(100)), AuthorityError::Signature { .. }));
        let changes: [fn(&mut Authority); 7] = [
            |next| next.number = 3,
            |next| next.previous = Hash::ZERO,
            |next| next.threshold = 2,
            |next| next.operators.clear(),
            |next| next.controllers.clear(),
            |next| next.operators.push(next.operators[0].clone()),
            |next| next.controllers.push(next.controllers[0].clone()),
        ];
        for (i, change) in changes.into_iter().enumerate() {
            let error = follow(&after(&one, change), &key(1));
            assert!(
                matches!(error, AuthorityError::Content { number: 2, .. }),
                "change {i}: {error}"
            );
        }
        assert!(matches!(
            AuthorityChain::follow(Hash::ZERO, std::slice::from_ref(&one)),
            Err(AuthorityError::Pin { .. })
        ));
        assert!(matches!(AuthorityChain::follow(one.hash(), &[]), Err(AuthorityError::Length)));
        let stranger = Signed::sign(&first(), &key(9));
        assert!(AuthorityChain::follow(stranger.hash(), &[stranger]).is_err());
    }

    #[test]
    fn the_newest_root_goes_back_only_with_a_new_incarnation() {
        let root = |number, byte: u8| {
            let hash = Hash::of("anteroom test", &[&[byte]]);
            Some(RootId { incarnation: 0, number, hash })
        };
        let one = Signed::sign(&first(), &key(1));
        let two = Signed::sign(&after(&one, |next| next.root = root(5, 1)), &key(1));
        let follow = |change: &dyn Fn(&mut Authority)| {
            let three = Signed::sign(&after(&two, change), &key(1));
            AuthorityChain::follow(one.hash(), &[one.clone(), two.clone(), three]).map(|_| ())
        };
        assert_eq!(follow(&|_| {}), Ok(()));
        assert_eq!(follow(&|next| next.root = root(6, 2)), Ok(()));
        for older in [None, root(4, 2), root(5, 2)] {
            assert!(follow(&|next| next.root = older).is_err(), "{older:?}");
            let anew = |next: &mut Authority| (next.root, next.incarnation) = (older, 1);
            assert_eq!(follow(&anew), Ok(()), "{older:?}");
        }
    }

    #[test]
    fn a_shorter_or_forked_chain_replaces_nothing() {
        let one = Signed::sign(&first(), &key(1));
        let two = Signed::sign(&after(&one, |_| {}), &key(1));
        let fork = Signed::sign(&after(&one, |next| next.incarnation = 7), &key(1));
        let short = AuthorityChain::follow_unpinned(std::slice::from_ref(&one)).unwrap();
        let long = AuthorityChain::follow_unpinned(&[one.clone(), two]).unwrap();
        let forked = AuthorityChain::follow_unpinned(&[one, fork]).unwrap();
        assert!(short.check_replacement(&long).is_ok());
        assert!(long.check_replacement(&short).is_err());
        assert!(long.check_replacement(&forked).is_err());
    }
}
