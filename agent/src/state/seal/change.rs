//! From one way of keeping private keys to another.

use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::{Kept, Opener, SEAL, SealError, SealedOpener, Sealing, Secrets};
use crate::state::file::Kind;
use crate::state::identity::{IDENTITY_NEXT, StoredNexts};
use crate::state::records::{
    IDENTITY, KEM_KEYS, Seed, StoredKemKey, StoredTunnelKey, TUNNEL_KEYS, random,
};
use crate::state::{StateDir, StateError};

/// All files with private keys. The first two are always there; the others may be missing.
pub(super) const PRIVATE: [&Kind; 4] = [&IDENTITY, &TUNNEL_KEYS, &KEM_KEYS, &IDENTITY_NEXT];

impl StateDir {
    /// With what private keys are sealed that are written from now on.
    ///
    /// # Errors
    /// When that can't be read.
    pub fn sealing(&self) -> Result<Sealing, StateError> {
        Ok(self.secrets.openers()?.first().map_or(Sealing::None, |opener| opener.sealing))
    }

    /// Whether all private keys are kept as [`StateDir::sealing`] says. They aren't where a change was cut short.
    ///
    /// # Errors
    /// When that can't be read.
    pub fn sealing_is_finished(&self) -> Result<bool, StateError> {
        self.secrets.is_finished()
    }

    /// Whether no private key may be sealed: nothing is, nor is a change from or to that under way.
    pub(crate) fn seals_nothing(&self) -> bool {
        self.secrets.openers().is_ok_and(|openers| openers.is_empty())
    }

    /// Seals all private keys with something else, or with nothing. Cut short anywhere, it leaves keys that can be
    /// read; it can be repeated, or another change begun. The caller has the directory's lock.
    ///
    /// # Errors
    /// When keys can't be opened as they are, or not be sealed: then everything stays as it was. When a file can't be
    /// written: then some may be sealed anew and others not yet.
    pub fn seal(&self, sealing: Sealing) -> Result<(), StateError> {
        self.secrets.change(sealing)
    }

    /// Ends a change that was cut short. Does nothing where none was. The caller has the directory's lock.
    ///
    /// # Errors
    /// When keys can't be opened, or not be written.
    pub fn finish_sealing(&self) -> Result<(), StateError> {
        if self.secrets.is_finished()? { Ok(()) } else { self.secrets.finish() }
    }
}

impl Secrets {
    fn change(&self, sealing: Sealing) -> Result<(), StateError> {
        // All that must be read can be, before anything is written.
        self.check::<Seed>(&IDENTITY)?;
        self.check::<Vec<StoredTunnelKey>>(&TUNNEL_KEYS)?;
        self.check::<Vec<StoredKemKey>>(&KEM_KEYS)?;
        self.check::<StoredNexts>(&IDENTITY_NEXT)?;
        let wanted = match sealing {
            // Says that what is written from now on isn't sealed, until the file goes.
            Sealing::None => SealedOpener {
                sealing,
                id: anteroom_proto::key::Hash::ZERO,
                credential: String::new(),
            },
            sealing => {
                let (opener, sealed) = self.new_opener(sealing)?;
                self.know(opener);
                sealed
            }
        };
        // Each file stays readable until it has been written anew, however often changes before were cut short.
        let used = PRIVATE.map(|kind| self.opener_of(kind));
        let used = used.into_iter().collect::<Result<Vec<_>, _>>()?;
        let used = |opener: &SealedOpener| used.contains(&Kept::With(opener.id));
        let mut openers = vec![wanted];
        openers.extend(self.openers()?.into_iter().filter(used));
        SEAL.write(self.directory(), &openers)?;
        self.finish()
    }

    /// Brings all files to what the first opener says, and drops the others.
    fn finish(&self) -> Result<(), StateError> {
        let Some(wanted) = self.openers()?.into_iter().next() else { return Ok(()) };
        self.rewrite::<Seed>(&IDENTITY, &wanted)?;
        self.rewrite::<Vec<StoredTunnelKey>>(&TUNNEL_KEYS, &wanted)?;
        self.rewrite::<Vec<StoredKemKey>>(&KEM_KEYS, &wanted)?;
        self.rewrite::<StoredNexts>(&IDENTITY_NEXT, &wanted)?;
        match wanted.sealing {
            Sealing::None => self.remove(&SEAL)?,
            _ => SEAL.write(self.directory(), &vec![wanted])?,
        }
        self.check::<Seed>(&IDENTITY)?;
        self.check::<Vec<StoredTunnelKey>>(&TUNNEL_KEYS)?;
        self.check::<Vec<StoredKemKey>>(&KEM_KEYS)?;
        self.check::<StoredNexts>(&IDENTITY_NEXT)
    }

    fn is_finished(&self) -> Result<bool, StateError> {
        let openers = self.openers()?;
        let [wanted] = openers.as_slice() else { return Ok(openers.is_empty()) };
        let mut all = wanted.sealing != Sealing::None;
        for kind in PRIVATE {
            all &= self.opener_of(kind)?.is(wanted);
        }
        Ok(all)
    }

    /// A new opener, and the same sealed, after it has been opened again.
    fn new_opener(&self, sealing: Sealing) -> Result<(Opener, SealedOpener), StateError> {
        let bytes = random()?;
        let failed =
            |error| StateError::NotSealed { path: self.directory().to_owned(), sealing, error };
        let credential = self.credentials.seal(sealing, &bytes).map_err(failed)?;
        let opened: Zeroizing<[u8; 32]> = self.credentials.open(&credential).map_err(failed)?;
        if opened != bytes {
            return Err(failed(SealError::Failed {
                said: "what it sealed opens to something else".into(),
            }));
        }
        let opener = Opener::new(bytes);
        let sealed = SealedOpener { sealing, id: opener.id, credential };
        Ok((opener, sealed))
    }

    /// Writes a file anew, unless it is as it should be.
    fn rewrite<T: Serialize + DeserializeOwned>(
        &self,
        kind: &Kind,
        wanted: &SealedOpener,
    ) -> Result<(), StateError> {
        if self.opener_of(kind)?.is(wanted) {
            return Ok(());
        }
        match self.read::<T>(kind)? {
            Some(value) => self.put(kind, &value, Some(wanted)),
            None => Ok(()),
        }
    }

    fn check<T: DeserializeOwned>(&self, kind: &Kind) -> Result<(), StateError> {
        self.read::<T>(kind).map(drop)
    }
}
