//! What stays on the operator's machine: their key, which controller they trust, what they have seen.

mod files;
mod keys;
mod known;
mod trust;

use std::fmt;
use std::path::{Path, PathBuf};

use anteroom_proto::api::{ModelRevision, Session};
use anteroom_proto::id::OrganisationId;
use anteroom_proto::key::{Hash, IdentityKey, PublicKey};
use anteroom_proto::name::Name;
use anteroom_transport::exchange::KeyExchange;
use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

pub use files::write_new;
pub use keys::{NewestKey, SeenKeys};
pub use known::{Known, KnownGateway, Review};
pub use trust::{AuditSeen, Seen, Trust};

/// How a key file begins.
const KEY_PREFIX: &str = "anteroom-operator-key-1.";

/// What is wrong with the operator's own files.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// No place for them is known.
    #[error(
        "there is no home directory to keep the operator's key in: set ANTEROOM_HOME, or give --home DIR"
    )]
    Nowhere,
    /// Nobody logged in from here yet.
    #[error(
        "not logged in: {path} holds no operator's key. The first operator types `anteroom login SETUP-CODE --name NAME` with the code that `anteroom-controller init` printed"
    )]
    NotLoggedIn {
        /// The home directory.
        path: String,
    },
    /// Others can read what they mustn't.
    #[error(
        "{path} is open to others (mode {mode:03o}): type `chmod {want:o} {path}`, and if others use this machine, replace the key that it holds"
    )]
    Lax {
        /// The file or directory.
        path: String,
        /// Its permissions.
        mode: u32,
        /// What they must be.
        want: u32,
    },
    /// A file that can't be read or written.
    #[error("{path}: {problem}")]
    File {
        /// Which file.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl HomeError {
    fn file(path: &Path, problem: impl fmt::Display) -> Self {
        Self::File { path: path.display().to_string(), problem: problem.to_string() }
    }
}

/// Which controller is trusted, and by whom: `config.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Where the controller is reached, as `https://host:port`, best first.
    pub controller: Vec<String>,
    /// SHA-256 of its HTTPS certificate.
    pub certificate: Hash,
    /// Its identity key.
    pub controller_key: PublicKey,
    /// The organisation.
    pub organisation: OrganisationId,
    /// The operator's name.
    pub operator: Name,
    /// Hash of the first authority document, where a colleague has given it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<Hash>,
}

/// The directory that holds it all, and how the controller is spoken to from here.
#[derive(Debug, Clone)]
pub struct Home {
    path: PathBuf,
    exchange: KeyExchange,
}

impl Home {
    /// The directory `given`, or that of the environment: `$ANTEROOM_HOME`, `$XDG_CONFIG_HOME/anteroom` or
    /// `~/.config/anteroom`. It need not exist.
    ///
    /// # Errors
    /// [`HomeError::Nowhere`] where the environment names none.
    pub fn locate(given: Option<&Path>) -> Result<Self, HomeError> {
        let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        given
            .map(Path::to_owned)
            .or_else(|| variable("ANTEROOM_HOME"))
            .or_else(|| variable("XDG_CONFIG_HOME").map(|dir| dir.join("anteroom")))
            .or_else(|| variable("HOME").map(|dir| dir.join(".config/anteroom")))
            .map(|path| Self { path, exchange: KeyExchange::default() })
            .ok_or(HomeError::Nowhere)
    }

    /// The same with other key exchanges.
    #[must_use]
    pub fn with_exchange(self, exchange: KeyExchange) -> Self {
        Self { exchange, ..self }
    }

    /// By which key exchanges the controller is spoken to.
    #[must_use]
    pub const fn exchange(&self) -> KeyExchange {
        self.exchange
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the directory, for its owner only.
    ///
    /// # Errors
    /// When it can't be made, or is open to others.
    pub fn create(&self) -> Result<(), HomeError> {
        files::private_dir(&self.path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn not_logged_in(&self) -> HomeError {
        HomeError::NotLoggedIn { path: self.path.display().to_string() }
    }

    fn read(&self, name: &str, secret: bool) -> Result<Option<String>, HomeError> {
        if !self.path.exists() {
            return Ok(None);
        }
        files::private_dir(&self.path)?;
        files::read(&self.file(name), secret)
    }

    fn read_json<T: serde::de::DeserializeOwned>(
        &self,
        name: &str,
    ) -> Result<Option<T>, HomeError> {
        let Some(text) = self.read(name, false)? else { return Ok(None) };
        serde_json::from_str(&text).map(Some).map_err(|error| {
            HomeError::file(
                &self.file(name),
                format!("it is damaged ({error}); restore it from a backup"),
            )
        })
    }

    fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<(), HomeError> {
        let path = self.file(name);
        let text = serde_json::to_string(value).map_err(|error| HomeError::file(&path, error))?;
        self.create()?;
        files::write(&path, &text)
    }

    /// Which controller is trusted, if one is.
    ///
    /// # Errors
    /// When the file can't be read or isn't such a one.
    pub fn find_config(&self) -> Result<Option<Config>, HomeError> {
        let Some(text) = self.read("config.toml", false)? else { return Ok(None) };
        toml::from_str(&text)
            .map(Some)
            .map_err(|error| HomeError::file(&self.file("config.toml"), error.to_string().trim()))
    }

    /// Which controller is trusted.
    ///
    /// # Errors
    /// As for [`Home::find_config`], and when nobody has logged in yet.
    pub fn config(&self) -> Result<Config, HomeError> {
        self.find_config()?.ok_or_else(|| self.not_logged_in())
    }

    /// Keeps which controller is trusted.
    ///
    /// # Errors
    /// When it can't be written; what was there before then still is.
    pub fn write_config(&self, config: &Config) -> Result<(), HomeError> {
        let path = self.file("config.toml");
        let text = toml::to_string(config).map_err(|error| HomeError::file(&path, error))?;
        self.create()?;
        files::write(&path, &text)
    }

    /// The operator's key, if there is one.
    ///
    /// # Errors
    /// When others can read it, or it isn't a key.
    pub fn find_key(&self) -> Result<Option<IdentityKey>, HomeError> {
        let Some(text) = self.read("operator.key", true)?.map(Zeroizing::new) else {
            return Ok(None);
        };
        let damaged = || {
            HomeError::file(
                &self.file("operator.key"),
                "it holds no operator's key: restore it from a backup, or have another operator add a new key",
            )
        };
        let body = text.trim().strip_prefix(KEY_PREFIX).ok_or_else(damaged)?;
        let bytes = Zeroizing::new(BASE64URL_NOPAD.decode(body.as_bytes()).map_err(|_| damaged())?);
        let seed = Zeroizing::new(<[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| damaged())?);
        Ok(Some(IdentityKey::from_seed(&seed)))
    }

    /// The operator's key.
    ///
    /// # Errors
    /// As for [`Home::find_key`], and when nobody has logged in yet.
    pub fn key(&self) -> Result<IdentityKey, HomeError> {
        self.find_key()?.ok_or_else(|| self.not_logged_in())
    }

    /// Keeps the operator's key.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_key(&self, key: &IdentityKey) -> Result<(), HomeError> {
        self.create()?;
        files::write(&self.file("operator.key"), &key_text(KEY_PREFIX, key))
    }

    /// The session with the controller, if there is one. A damaged one counts as none: it costs a log-in.
    ///
    /// # Errors
    /// When others can read it.
    pub fn session(&self) -> Result<Option<Session>, HomeError> {
        let text = self.read("session.json", true)?;
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
    }

    /// Keeps the session, or forgets it.
    ///
    /// # Errors
    /// When the file can't be written or removed.
    pub fn write_session(&self, session: Option<&Session>) -> Result<(), HomeError> {
        let path = self.file("session.json");
        match session {
            Some(session) => self.write_json("session.json", session),
            None => match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(HomeError::file(&path, error))
                }
                _ => Ok(()),
            },
        }
    }

    /// The authority chain that is followed, if one is yet.
    ///
    /// # Errors
    /// When the file can't be read or is damaged.
    pub fn trust(&self) -> Result<Option<Trust>, HomeError> {
        self.read_json("authority.json")
    }

    /// Keeps the authority chain that is followed.
    ///
    /// # Errors
    /// When it can't be written; what was there before then still is.
    pub fn write_trust(&self, trust: &Trust) -> Result<(), HomeError> {
        self.write_json("authority.json", trust)
    }

    /// The newest revision that was seen, if one was.
    ///
    /// # Errors
    /// When the file can't be read or is damaged.
    pub fn seen(&self) -> Result<Option<Seen>, HomeError> {
        self.read_json("seen.json")
    }

    /// The newest revision that was seen, whole; none where none was seen yet.
    ///
    /// # Errors
    /// When the file can't be read or is damaged.
    pub fn newest(&self) -> Result<Option<ModelRevision>, HomeError> {
        self.read_json("newest.json")
    }

    /// Remembers the newest revision that was seen: that it was, and all of it, for a controller that loses it.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_seen(&self, seen: &Seen, revision: &ModelRevision) -> Result<(), HomeError> {
        self.write_json("newest.json", revision)?;
        self.write_json("seen.json", seen)
    }

    /// The newest entry of the audit log that was verified, if one was.
    ///
    /// # Errors
    /// When the file can't be read or is damaged.
    pub fn audit_seen(&self) -> Result<Option<AuditSeen>, HomeError> {
        self.read_json("audit.json")
    }

    /// Remembers the newest entry of the audit log that was verified.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_audit_seen(&self, seen: &AuditSeen) -> Result<(), HomeError> {
        self.write_json("audit.json", seen)
    }

    /// Forgets everything in the directory that this program wrote, after a log-in that came to nothing.
    pub fn forget(&self) {
        for name in [
            "operator.key",
            "config.toml",
            "authority.json",
            "seen.json",
            "newest.json",
            "session.json",
            "gateways.json",
            "tunnel-keys.json",
        ] {
            // Whatever can't be removed was not written either.
            let _ = std::fs::remove_file(self.file(name));
        }
    }
}

/// A private key as one line of text.
#[must_use]
pub fn key_text(prefix: &str, key: &IdentityKey) -> Zeroizing<String> {
    let seed = key.to_seed();
    let body = Zeroizing::new(BASE64URL_NOPAD.encode(seed.as_slice()));
    Zeroizing::new(format!("{prefix}{}\n", body.as_str()))
}

#[cfg(test)]
mod tests;
