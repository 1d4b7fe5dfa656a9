//! The controller's directory: keys, certificate, configuration, database. Readable by its owner only.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anteroom_proto::key::{Hash, IdentityKey};
use data_encoding::BASE64URL_NOPAD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Longest file that is read.
const MAX_LEN: u64 = 256 * 1024;

/// What is wrong with the directory or a file in it.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Something is there already.
    #[error("{} is there already: this directory holds a controller. Choose another, or use this one with `anteroom-controller run`", file.display())]
    Exists {
        /// What is there.
        file: PathBuf,
    },
    /// Something is there already, and no configuration.
    #[error("{} is there already, and no controller.toml: what made or copied a controller here was cut short, or the configuration is lost. Choose another directory, or empty this one if nothing in it is needed", file.display())]
    Unfinished {
        /// What is there.
        file: PathBuf,
    },
    /// The system refuses.
    #[error("{}: {problem}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system says.
        problem: io::Error,
    },
    /// Others can read what only the owner may.
    #[error("{} can be read by others than its owner: run `chmod 600 {}`, and think about who has read it", file.display(), file.display())]
    Open {
        /// The file.
        file: PathBuf,
    },
    /// The file doesn't hold what it should.
    #[error("{}: {problem}. Restore it from a backup", file.display())]
    Content {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// The directory.
#[derive(Debug, Clone)]
pub struct Directory(PathBuf);

/// What HTTPS is served with.
#[derive(Debug)]
pub struct Https {
    /// The certificate, and those that it hangs on, if there are any.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
    /// SHA-256 of the certificate, by which operators pin it.
    pub fingerprint: Hash,
}

impl Directory {
    /// The directory at `path`, which may not be there yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self(path.into())
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.0.join("controller.toml")
    }

    /// The database.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.0.join("controller.db")
    }

    /// What the database is called while it is being copied.
    #[must_use]
    pub fn database_draft(&self) -> PathBuf {
        self.0.join("controller.db.new")
    }

    /// The identity key.
    #[must_use]
    pub fn identity(&self) -> PathBuf {
        self.0.join("identity.key")
    }

    /// The HTTPS certificate.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.0.join("https.crt")
    }

    /// The HTTPS certificate's key.
    #[must_use]
    pub fn https_key(&self) -> PathBuf {
        self.0.join("https.key")
    }

    /// The claim secret, which is there until the controller is claimed.
    #[must_use]
    pub fn claim_secret(&self) -> PathBuf {
        self.0.join("claim.secret")
    }

    /// All files that a controller has.
    #[must_use]
    pub fn files(&self) -> [PathBuf; 6] {
        [
            self.identity(),
            self.https_key(),
            self.certificate(),
            self.claim_secret(),
            self.config(),
            self.database(),
        ]
    }

    /// Reads one of the small files.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn read(&self, file: &Path) -> Result<Zeroizing<Vec<u8>>, DirectoryError> {
        read(file)
    }

    /// Reads a file of up to `max` bytes.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn read_long(&self, file: &Path, max: usize) -> Result<Vec<u8>, DirectoryError> {
        let mut bytes = Vec::new();
        File::open(file)
            .and_then(|handle| handle.take(max as u64 + 1).read_to_end(&mut bytes))
            .map_err(|problem| DirectoryError::Io { file: file.into(), problem })?;
        Ok(bytes)
    }

    /// Replaces a file in one step by one that only its owner can read, and waits until it is on disk.
    ///
    /// # Errors
    /// When the system refuses; what was there before then still is.
    pub fn replace(&self, file: &Path, content: &[u8]) -> Result<(), DirectoryError> {
        let mut draft = file.as_os_str().to_owned();
        draft.push(".new");
        let draft = PathBuf::from(draft);
        // One that an earlier try left behind is of no use.
        let _ = fs::remove_file(&draft);
        self.create(&draft, content)?;
        self.rename(&draft, file)
    }

    /// Gives a file of the directory another name in one step, and waits until that is on disk.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn rename(&self, from: &Path, to: &Path) -> Result<(), DirectoryError> {
        fs::rename(from, to)
            .and_then(|()| File::open(&self.0)?.sync_all())
            .map_err(|problem| DirectoryError::Io { file: to.into(), problem })
    }

    /// Makes the directory, or takes one that holds no controller yet.
    ///
    /// # Errors
    /// [`DirectoryError::Exists`] where it holds one, [`DirectoryError::Unfinished`] where it holds parts of one.
    pub fn prepare(&self) -> Result<(), DirectoryError> {
        let there = |file: &PathBuf| file.symlink_metadata().is_ok();
        if let Some(file) = self.files().into_iter().find(there) {
            return Err(match there(&self.config()) {
                true => DirectoryError::Exists { file },
                false => DirectoryError::Unfinished { file },
            });
        }
        let io = |problem| DirectoryError::Io { file: self.0.clone(), problem };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0).map_err(io)?;
        fs::set_permissions(&self.0, fs::Permissions::from_mode(0o700)).map_err(io)
    }

    /// Writes a new file that only its owner can read, and waits until it is on disk.
    ///
    /// # Errors
    /// When the file is there already, or the system refuses.
    pub fn create(&self, file: &Path, content: &[u8]) -> Result<(), DirectoryError> {
        let io = |problem: io::Error| match problem.kind() {
            io::ErrorKind::AlreadyExists => DirectoryError::Exists { file: file.into() },
            _ => DirectoryError::Io { file: file.into(), problem },
        };
        let mut handle =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(file).map_err(io)?;
        handle.write_all(content).and_then(|()| handle.sync_all()).map_err(io)?;
        File::open(&self.0).and_then(|directory| directory.sync_all()).map_err(io)
    }

    /// Reads the identity key.
    ///
    /// # Errors
    /// When it isn't there, isn't private, or isn't a key.
    pub fn load_identity(&self) -> Result<IdentityKey, DirectoryError> {
        let seed = self.load_secret(&self.identity())?;
        Ok(IdentityKey::from_seed(&seed))
    }

    /// Reads the claim secret; none where there is no file, as once the controller is claimed.
    ///
    /// # Errors
    /// When it isn't private, or isn't 32 bytes.
    pub fn load_claim_secret(&self) -> Result<Option<Zeroizing<[u8; 32]>>, DirectoryError> {
        let file = self.claim_secret();
        if file.symlink_metadata().is_err() {
            return Ok(None);
        }
        self.load_secret(&file).map(Some)
    }

    /// Removes the claim secret, if it is there.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn remove_claim_secret(&self) -> Result<(), DirectoryError> {
        let file = self.claim_secret();
        match fs::remove_file(&file) {
            Err(problem) if problem.kind() != io::ErrorKind::NotFound => {
                Err(DirectoryError::Io { file, problem })
            }
            _ => Ok(()),
        }
    }

    /// Reads what HTTPS is served with.
    ///
    /// # Errors
    /// When a file isn't there, isn't PEM, or the key isn't private.
    pub fn load_https(&self) -> Result<Https, DirectoryError> {
        let file = self.certificate();
        let content =
            |file: &Path, problem: String| DirectoryError::Content { file: file.into(), problem };
        let pem = read(&file)?;
        let chain = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| content(&file, format!("it isn't a certificate: {error}")))?;
        let Some(first) = chain.first() else {
            return Err(content(&file, "it holds no certificate".into()));
        };
        let fingerprint = certificate_fingerprint(first);
        let file = self.https_key();
        check_private(&file)?;
        let pem = read(&file)?;
        let key = PrivateKeyDer::from_pem_slice(&pem)
            .map_err(|error| content(&file, format!("it isn't a private key: {error}")))?;
        Ok(Https { chain, key, fingerprint })
    }

    fn load_secret(&self, file: &Path) -> Result<Zeroizing<[u8; 32]>, DirectoryError> {
        check_private(file)?;
        let text = read(file)?;
        let bytes = BASE64URL_NOPAD.decode(text.trim_ascii()).ok().map(Zeroizing::new);
        bytes
            .and_then(|bytes| <[u8; 32]>::try_from(bytes.as_slice()).ok())
            .map(Zeroizing::new)
            .ok_or_else(|| DirectoryError::Content {
                file: file.into(),
                problem: "it isn't 32 bytes of base64url".into(),
            })
    }
}

/// A secret as its file holds it.
pub(crate) fn secret_text(secret: &[u8; 32]) -> Zeroizing<String> {
    let mut text = BASE64URL_NOPAD.encode(secret);
    text.push('\n');
    Zeroizing::new(text)
}

/// SHA-256 of a certificate, under no domain: what other programs call its fingerprint.
#[must_use]
pub fn certificate_fingerprint(certificate: &CertificateDer<'_>) -> Hash {
    let digest: [u8; 32] = Sha256::digest(certificate).into();
    // Every 32 bytes are a hash.
    Hash::try_from(digest).unwrap_or(Hash::ZERO)
}

fn check_private(file: &Path) -> Result<(), DirectoryError> {
    let io = |problem| DirectoryError::Io { file: file.into(), problem };
    let mode = fs::metadata(file).map_err(io)?.permissions().mode();
    if mode & 0o077 == 0 { Ok(()) } else { Err(DirectoryError::Open { file: file.into() }) }
}

fn read(file: &Path) -> Result<Zeroizing<Vec<u8>>, DirectoryError> {
    let mut bytes = Zeroizing::new(Vec::new());
    File::open(file)
        .and_then(|handle| handle.take(MAX_LEN).read_to_end(&mut bytes))
        .map_err(|problem| DirectoryError::Io { file: file.into(), problem })?;
    Ok(bytes)
}
