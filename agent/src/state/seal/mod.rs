//! Private keys that don't lie around: sealed with this machine's TPM 2.0, with a secret of this machine, or both.
//!
//! The identity key and the tunnel keys are encrypted with one key of their own (AES-256-GCM), the **opener**. That one
//! lies sealed in the file `seal`, and whoever copies the disk can't open it elsewhere. So the TPM is asked once a
//! start, however often tunnel keys change; and a file of keys says by its format whether it is sealed, so that
//! changing from one way to the other may be interrupted anywhere.
//!
//! Sealing is done by systemd-creds, not by a library: the `tss-esapi` crate is well kept (Apache-2.0) but wants the
//! C library of tpm2-tss at build time, speaks for itself about sessions and encryption on the bus, and has no answer for
//! machines without a TPM. systemd-creds comes with the system that runs the agent, encrypts what crosses the bus,
//! loads tpm2-tss only where it is used, and seals with a TPM, with a secret in /var/lib/systemd, or both.
//!
//! Nothing is tied to what the machine has booted: an update of firmware or of Secure Boot's lists must not need
//! somebody who enrols gateways at night. What is kept out is a copied disk, not a changed boot.

mod change;
mod credentials;

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anteroom_proto::cbor::{self, Blob};
use anteroom_proto::key::Hash;
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

pub(crate) use credentials::Credentials;
pub use credentials::SealError;

use super::StateError;
use super::file::{self, Kind};
use super::records::SEAL;

#[cfg(test)]
mod tests;

/// Format of a file whose body is sealed, apart from all that plain ones may come to have.
const SEALED: u32 = 256;
/// Openers at once: the one in use, and where changes were cut short, one after the other, another one for each file.
const MAX_OPENERS: usize = change::PRIVATE.len() + 1;
/// How soon what failed is tried again.
const AGAIN: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

/// With what private keys are sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sealing {
    /// Nothing: they lie in files that only root can read.
    #[serde(rename = "none")]
    None,
    /// A secret of this machine that only root can read, apart from the state directory.
    #[serde(rename = "host")]
    Host,
    /// The TPM 2.0 of this machine.
    #[serde(rename = "tpm2")]
    Tpm2,
    /// Both: neither a copied disk nor the TPM alone opens them.
    #[serde(rename = "host+tpm2")]
    HostAndTpm2,
}

impl Sealing {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::None, Self::Host, Self::Tpm2, Self::HostAndTpm2];

    /// As it is written on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Host => "host",
            Self::Tpm2 => "tpm2",
            Self::HostAndTpm2 => "host+tpm2",
        }
    }
}

impl fmt::Display for Sealing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Sealing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|sealing| sealing.as_str() == text).ok_or_else(|| {
            format!("{text:?} is no way of sealing: write none, host, tpm2 or host+tpm2")
        })
    }
}

/// An opener, sealed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SealedOpener {
    sealing: Sealing,
    /// Which one it is: a hash of it.
    id: Hash,
    /// What systemd-creds made of it.
    credential: String,
}

/// The body of a file whose content is sealed.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SealedBody {
    /// With which opener.
    opener: Hash,
    nonce: Blob,
    sealed: Blob,
}

/// How a file of private keys lies there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// There is none.
    Nowhere,
    Plain,
    /// Sealed with this opener.
    With(Hash),
}

impl Kept {
    /// Whether that is how it should be.
    fn is(self, wanted: &SealedOpener) -> bool {
        match self {
            Self::Nowhere => true,
            Self::Plain => wanted.sealing == Sealing::None,
            Self::With(id) => wanted.sealing != Sealing::None && wanted.id == id,
        }
    }
}

/// A key that opens private keys.
struct Opener {
    id: Hash,
    bytes: Zeroizing<[u8; 32]>,
}

impl Opener {
    fn new(bytes: Zeroizing<[u8; 32]>) -> Self {
        Self { id: Hash::of("anteroom agent opener", &[bytes.as_slice()]), bytes }
    }

    fn key(&self) -> Option<RandomizedNonceKey> {
        RandomizedNonceKey::new(&AES_256_GCM, self.bytes.as_slice()).ok()
    }

    /// What is authenticated beside the content: that one file isn't put in the place of another.
    fn context(&self, kind: &Kind) -> Vec<u8> {
        let mut context = b"anteroom agent sealed file ".to_vec();
        context.extend_from_slice(kind.name.as_bytes());
        context
    }

    /// The body of a file with this content.
    fn seal(&self, kind: &Kind, content: &[u8]) -> Option<Vec<u8>> {
        let mut bytes = content.to_vec();
        let context = Aad::from(self.context(kind));
        let nonce = self.key()?.seal_in_place_append_tag(context, &mut bytes).ok()?;
        let nonce = Blob(nonce.as_ref().to_vec());
        Some(cbor::encode(&SealedBody { opener: self.id, nonce, sealed: Blob(bytes) }))
    }

    fn open(&self, kind: &Kind, body: SealedBody) -> Option<Zeroizing<Vec<u8>>> {
        let nonce = <[u8; NONCE_LEN]>::try_from(body.nonce.0.as_slice()).ok()?;
        let nonce = Nonce::assume_unique_for_key(nonce);
        let mut bytes = Zeroizing::new(body.sealed.0);
        let context = Aad::from(self.context(kind));
        let length = self.key()?.open_in_place(nonce, context, &mut bytes).ok()?.len();
        bytes.truncate(length);
        Some(bytes)
    }
}

/// The files with private keys in one state directory.
#[derive(Clone)]
pub(super) struct Secrets {
    directory: PathBuf,
    credentials: Credentials,
    known: Arc<Mutex<Known>>,
}

/// What is known of openers, so that the TPM isn't asked for each file.
#[derive(Default)]
struct Known {
    openers: Vec<Arc<Opener>>,
    failed: Option<(Instant, Hash, SealError)>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl Secrets {
    pub(super) fn new(directory: PathBuf, credentials: Credentials) -> Self {
        Self { directory, credentials, known: Arc::default() }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Reads a file, sealed or not. None where there is none.
    pub(super) fn read<T: DeserializeOwned>(&self, kind: &Kind) -> Result<Option<T>, StateError> {
        let Some((format, body)) = kind.read_body(&self.directory)? else { return Ok(None) };
        let damaged = |problem: String| kind.damaged(&self.directory, problem);
        let content = match format {
            format if format == kind.format => body,
            SEALED => {
                let body: SealedBody =
                    cbor::decode(&body, kind.max).map_err(|error| damaged(error.to_string()))?;
                let opener = self.opener(kind, body.opener)?;
                opener
                    .open(kind, body)
                    .ok_or_else(|| damaged("its content isn't what was sealed".into()))?
            }
            newer => return Err(kind.newer(&self.directory, newer)),
        };
        cbor::decode(&content, kind.max).map(Some).map_err(|error| damaged(error.to_string()))
    }

    /// How a file lies there. Whether it can be opened isn't looked at.
    fn opener_of(&self, kind: &Kind) -> Result<Kept, StateError> {
        match kind.read_body(&self.directory)? {
            None => Ok(Kept::Nowhere),
            Some((format, _)) if format == kind.format => Ok(Kept::Plain),
            Some((SEALED, body)) => cbor::decode::<SealedBody>(&body, kind.max)
                .map(|body| Kept::With(body.opener))
                .map_err(|error| kind.damaged(&self.directory, error.to_string())),
            Some((newer, _)) => Err(kind.newer(&self.directory, newer)),
        }
    }

    /// Writes a file, sealed if this directory's keys are.
    pub(super) fn write<T: Serialize>(&self, kind: &Kind, value: &T) -> Result<(), StateError> {
        let openers = self.openers()?;
        // Only a change takes the seal off.
        if openers.is_empty() && matches!(self.opener_of(kind), Ok(Kept::With(_))) {
            return Err(self.no_opener(kind));
        }
        self.put(kind, value, openers.first())
    }

    fn put<T: Serialize>(
        &self,
        kind: &Kind,
        value: &T,
        wanted: Option<&SealedOpener>,
    ) -> Result<(), StateError> {
        match wanted {
            Some(sealed) if sealed.sealing != Sealing::None => {
                let opener = self.opener(kind, sealed.id)?;
                self.write_sealed(kind, value, &opener, sealed.sealing)
            }
            _ => kind.write(&self.directory, value),
        }
    }

    /// Takes a file away.
    pub(super) fn remove(&self, kind: &Kind) -> Result<(), StateError> {
        let path = kind.path(&self.directory);
        let gone = match file::may_write().and_then(|()| fs::remove_file(&path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => File::open(&self.directory).and_then(|directory| directory.sync_all()),
        };
        gone.map_err(|error| StateError::File { path, verb: "written", error })
    }

    fn no_opener(&self, kind: &Kind) -> StateError {
        kind.damaged(&self.directory, format!("there is no key to open it in {}", SEAL.name))
    }

    fn write_sealed<T: Serialize>(
        &self,
        kind: &Kind,
        value: &T,
        opener: &Opener,
        sealing: Sealing,
    ) -> Result<(), StateError> {
        let content = Zeroizing::new(cbor::encode(value));
        let body = opener.seal(kind, &content).ok_or_else(|| StateError::NotSealed {
            path: self.directory.clone(),
            sealing,
            error: SealError::Failed { said: "the cipher refuses".into() },
        })?;
        kind.write_body(&self.directory, SEALED, &body)
    }

    /// Spares asking for an opener.
    fn know(&self, opener: Opener) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.openers.push(Arc::new(opener));
    }

    /// The sealed openers, the one in use first.
    fn openers(&self) -> Result<Vec<SealedOpener>, StateError> {
        let openers: Vec<SealedOpener> = SEAL.read(&self.directory)?.unwrap_or_default();
        if openers.len() > MAX_OPENERS {
            return Err(SEAL.damaged(&self.directory, format!("{} openers", openers.len())));
        }
        Ok(openers)
    }

    /// The opener of this id, unsealed.
    fn opener(&self, kind: &Kind, id: Hash) -> Result<Arc<Opener>, StateError> {
        // Whoever comes while the TPM works waits for the answer, and doesn't ask again.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(opener) = known.openers.iter().find(|opener| opener.id == id) {
            return Ok(opener.clone());
        }
        let Some(sealed) = self.openers()?.into_iter().find(|sealed| sealed.id == id) else {
            return Err(self.no_opener(kind));
        };
        let failed = |error| StateError::Sealed {
            path: self.directory.clone(),
            sealing: sealed.sealing,
            error,
        };
        if let Some((at, of, error)) = &known.failed
            && *of == id
            && at.elapsed() < AGAIN
        {
            return Err(failed(error.clone()));
        }
        let opened = self.credentials.open(&sealed.credential).map(Opener::new);
        match opened {
            Ok(opener) if opener.id == id => {
                let opener = Arc::new(opener);
                known.failed = None;
                known.openers.push(opener.clone());
                Ok(opener)
            }
            Ok(_) => Err(SEAL.damaged(&self.directory, "it opens to another key".into())),
            Err(error) => {
                known.failed = Some((Instant::now(), id, error.clone()));
                Err(failed(error))
            }
        }
    }
}
