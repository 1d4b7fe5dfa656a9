//! From one way of keeping private keys to another.

use std::fs::{self, File};
use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::{Opener, SEAL, SealError, SealedOpener, Sealing, Secrets};
use crate::state::file::Kind;
use crate::state::records::{IDENTITY, Seed, StoredTunnelKey, TUNNEL_KEYS, random};
use crate::state::{StateDir, StateError};

impl StateDir {
    /// With what private keys are sealed that are written from now on.
    ///
    /// # Errors
    /// When that can't be read.
    pub fn sealing(&self) -> Result<Sealing, StateError> {
        Ok(self.secrets.openers()?.first().map_or(Sealing::None, |opener| opener.sealing))
    }

    /// Seals all private keys with something else, or with nothing. Cut short anywhere, it leaves keys that can be
    /// read, and can be repeated. The caller has the directory's lock.
    ///
    /// # Errors
    /// When keys can't be opened as they are, or not be sealed: then everything stays as it was.
    pub fn seal(&self, sealing: Sealing) -> Result<(), StateError> {
        self.secrets.change(sealing)
    }
}

impl Secrets {
    fn change(&self, sealing: Sealing) -> Result<(), StateError> {
        let before = self.openers()?;
        // All that must be read is, before anything is written.
        let identity = self.read::<Seed>(&IDENTITY)?;
        let tunnels = self.read::<Vec<StoredTunnelKey>>(&TUNNEL_KEYS)?;
        let last = before.first().cloned();
        let opener = match sealing {
            Sealing::None => None,
            sealing => Some(self.new_opener(sealing)?),
        };
        let entry = match &opener {
            Some((_, entry)) => entry.clone(),
            // Says that what is written from now on isn't sealed, until the file goes.
            None => SealedOpener {
                sealing,
                id: anteroom_proto::key::Hash::ZERO,
                credential: String::new(),
            },
        };
        // Files that were left sealed by a change cut short have been read by the one in use or the one before.
        let kept = last.into_iter().filter(|last| last.sealing != Sealing::None);
        let kept: Vec<_> = kept.chain(before.into_iter().skip(1)).collect();
        SEAL.write(
            self.directory(),
            &[vec![entry.clone()], kept.into_iter().take(1).collect()].concat(),
        )?;
        self.rewrite(&IDENTITY, identity.as_ref(), opener.as_ref())?;
        self.rewrite(&TUNNEL_KEYS, tunnels.as_ref(), opener.as_ref())?;
        match &opener {
            Some(_) => SEAL.write(self.directory(), &vec![entry])?,
            None => self.forget()?,
        }
        // As the next start will, but for the TPM, which has shown above that it opens what it sealed.
        let again = Self::new(self.directory().to_owned(), self.credentials.clone());
        if let Some((opener, _)) = opener {
            again.know(opener);
        }
        again.check::<Seed>(&IDENTITY)?;
        again.check::<Vec<StoredTunnelKey>>(&TUNNEL_KEYS)
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

    fn rewrite<T: Serialize>(
        &self,
        kind: &Kind,
        value: Option<&T>,
        opener: Option<&(Opener, SealedOpener)>,
    ) -> Result<(), StateError> {
        match (value, opener) {
            (None, _) => Ok(()),
            (Some(value), None) => kind.write(self.directory(), value),
            (Some(value), Some((opener, sealed))) => {
                self.write_sealed(kind, value, opener, sealed.sealing)
            }
        }
    }

    /// Takes the file with the openers away.
    fn forget(&self) -> Result<(), StateError> {
        let path = SEAL.path(self.directory());
        let gone = match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => File::open(self.directory()).and_then(|directory| directory.sync_all()),
        };
        gone.map_err(|error| StateError::File { path, verb: "written", error })
    }

    fn check<T: DeserializeOwned>(&self, kind: &Kind) -> Result<(), StateError> {
        self.read::<T>(kind).map(drop)
    }
}
