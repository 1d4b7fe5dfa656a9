//! The identity key, and those that this gateway has offered in its place.
//!
//! An offered key lies beside the one in use until operators have signed it into this gateway's leaf. Then it takes that
//! one's place, which is wiped. Whatever is cut short in between, one start later the key that counts is there.

use anteroom_proto::key::{IdentityKey, PublicKey};
use serde::{Deserialize, Serialize};

use super::file::{Kind, wipe};
use super::records::{self, Seed};
use super::{StateDir, StateError};

/// Most keys on offer: more than one only where operators ordered another before the one before was given up.
pub(super) const MOST: usize = 4;

pub(super) const IDENTITY_NEXT: Kind = Kind {
    name: "identity-next",
    format: 1,
    max: 4096,
    loss: "Identity keys that were offered and not in use yet are gone: withdraw the offer (`anteroom gateway rekey NAME --withdraw`), or have another one made (`--anew`). If one of them was approved already, enrol the machine anew.",
};

/// A key on offer.
#[derive(Debug, Clone)]
pub struct NextKey {
    /// The order that asked for it.
    pub order: u64,
    /// The key.
    pub key: IdentityKey,
}

/// The identity keys that this gateway has offered in the place of the one in use, oldest first.
#[derive(Debug, Clone, Default)]
pub struct Nexts {
    /// Orders up to this one are done: nothing is made or offered upon them any more.
    pub done: u64,
    keys: Vec<NextKey>,
}

impl Nexts {
    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// All of them, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &NextKey> {
        self.keys.iter()
    }

    /// The key with this public half.
    #[must_use]
    pub fn find(&self, public: PublicKey) -> Option<&NextKey> {
        self.keys.iter().find(|next| next.key.public() == public)
    }

    /// The key that was made upon an order.
    #[must_use]
    pub fn of(&self, order: u64) -> Option<&NextKey> {
        self.keys.iter().find(|next| next.order == order)
    }

    /// The newest order that was followed.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.keys.iter().map(|next| next.order).max().unwrap_or_default().max(self.done)
    }

    /// The same with a key more, made upon a newer order than all before. The oldest makes room, unless it is among those
    /// `kept`.
    #[must_use]
    pub fn with(&self, next: NextKey, kept: &[PublicKey]) -> Self {
        let mut all = self.clone();
        if all.keys.len() >= MOST
            && let Some(oldest) =
                all.keys.iter().position(|held| !kept.contains(&held.key.public()))
        {
            all.keys.remove(oldest);
        }
        all.keys.push(next);
        all
    }

    /// The same after an order to forget what was offered, but for those `kept`.
    #[must_use]
    pub fn withdrawn(&self, order: u64, kept: &[PublicKey]) -> Self {
        let mut all = self.clone();
        all.keys.retain(|next| next.order > order || kept.contains(&next.key.public()));
        all.done = all.done.max(order);
        all
    }

    /// The same once the key with this public half is in use: those that were offered before it are of no use.
    fn adopted(&self, public: PublicKey) -> Self {
        let mut all = self.clone();
        if let Some(order) = self.find(public).map(|next| next.order) {
            all.done = all.done.max(order);
            all.keys.retain(|next| next.order > order);
        }
        all
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoredNext {
    order: u64,
    key: Seed,
}

/// What the file holds.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoredNexts {
    done: u64,
    keys: Vec<StoredNext>,
}

impl StateDir {
    /// The identity key, if there is one.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn identity(&self) -> Result<Option<IdentityKey>, StateError> {
        let Some(seed) = self.secrets.read::<Seed>(&records::IDENTITY)? else { return Ok(None) };
        let seed = seed.bytes(&records::IDENTITY, self.path())?;
        Ok(Some(IdentityKey::from_seed(&seed)))
    }

    /// The identity key; a new one is made, and is on the disk before it is used, where there is none.
    ///
    /// # Errors
    /// When the file is damaged or can't be written.
    pub fn identity_or_new(&self) -> Result<IdentityKey, StateError> {
        if let Some(identity) = self.identity()? {
            return Ok(identity);
        }
        let seed = records::random()?;
        self.secrets.write(&records::IDENTITY, &Seed::new(&seed))?;
        Ok(IdentityKey::from_seed(&seed))
    }

    /// The identity keys that were offered in its place.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn next_identities(&self) -> Result<Nexts, StateError> {
        let Some(stored) = self.secrets.read::<StoredNexts>(&IDENTITY_NEXT)? else {
            return Ok(Nexts::default());
        };
        let keys = stored.keys.iter().map(|next| {
            let seed = next.key.bytes(&IDENTITY_NEXT, self.path())?;
            Ok(NextKey { order: next.order, key: IdentityKey::from_seed(&seed) })
        });
        Ok(Nexts { done: stored.done, keys: keys.collect::<Result<_, StateError>>()? })
    }

    /// Makes an identity key that may take the place of the one in use. It is nowhere but in memory yet.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn new_identity(order: u64) -> Result<NextKey, StateError> {
        Ok(NextKey { order, key: IdentityKey::from_seed(&*records::random()?) })
    }

    /// Records the identity keys that are offered.
    ///
    /// # Errors
    /// When they can't be written. What was there is as before then.
    pub fn write_next_identities(&self, nexts: &Nexts) -> Result<(), StateError> {
        let _alone = self.changing_identity();
        // What is in use by now lies where that lies, and nowhere else.
        match self.identity()?.map(|identity| identity.public()) {
            Some(held) if nexts.find(held).is_some() => self.write_nexts(&nexts.adopted(held)),
            _ => self.write_nexts(nexts),
        }
    }

    fn write_nexts(&self, nexts: &Nexts) -> Result<(), StateError> {
        let old = IDENTITY_NEXT.held_open(self.path());
        let keys = nexts.keys.iter();
        let keys = keys
            .map(|next| StoredNext { order: next.order, key: Seed::new(&next.key.to_seed()) })
            .collect();
        self.secrets.write(&IDENTITY_NEXT, &StoredNexts { done: nexts.done, keys })?;
        wipe(old);
        Ok(())
    }

    /// Has the identity key with this public half, which was offered, in the place of the one before, and wipes that. Does
    /// nothing where that is done.
    ///
    /// # Errors
    /// When there is no such key, or files can't be read or written. Then it can be repeated.
    pub fn adopt_identity(&self, public: PublicKey) -> Result<(), StateError> {
        let _alone = self.changing_identity();
        let nexts = self.next_identities()?;
        let held = self.identity()?.map(|identity| identity.public());
        if held != Some(public) {
            let Some(next) = nexts.find(public) else {
                let path = self.path().to_owned();
                return Err(StateError::IdentityUnknown { path, wanted: public.fingerprint() });
            };
            let old = records::IDENTITY.held_open(self.path());
            self.secrets.write(&records::IDENTITY, &Seed::new(&next.key.to_seed()))?;
            wipe(old);
        }
        if nexts.find(public).is_some() {
            self.write_nexts(&nexts.adopted(public))?;
        }
        Ok(())
    }
}
