//! Files that are replaced as a whole and notice any damage.
//!
//! A file is one line of text, `anteroom-agent KIND FORMAT DIGEST`, and a body in CBOR. The digest covers kind,
//! format and body.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anteroom_proto::cbor;
use anteroom_proto::key::Hash;
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::StateError;

const MAGIC: &str = "anteroom-agent";
const DOMAIN: &str = "anteroom agent state";
/// Longest first line in bytes.
const MAX_HEADER: usize = 160;

#[cfg(test)]
std::thread_local! {
    /// How many more changes this thread may make to a disk before each fails, as if the power had gone. None: any number.
    pub(super) static WRITES_LEFT: std::cell::Cell<Option<u32>> = const { std::cell::Cell::new(None) };
}

/// Whether the disk may be changed: always, but in tests.
pub(super) fn may_write() -> io::Result<()> {
    #[cfg(test)]
    if let Some(left) = WRITES_LEFT.get() {
        let left = left.checked_sub(1).ok_or_else(|| io::Error::other("the power is gone"))?;
        WRITES_LEFT.set(Some(left));
    }
    Ok(())
}

/// A file's format and body.
pub(super) type Body = (u32, Zeroizing<Vec<u8>>);

/// A kind of file in the state directory.
pub(super) struct Kind {
    /// Its name, which its first line repeats.
    pub(super) name: &'static str,
    /// Newest format of its body.
    pub(super) format: u32,
    /// Longest body in bytes.
    pub(super) max: usize,
    /// What its loss means for the gateway, and what to do.
    pub(super) loss: &'static str,
}

impl Kind {
    pub(super) fn path(&self, directory: &Path) -> PathBuf {
        directory.join(self.name)
    }

    fn digest(&self, format: u32, body: &[u8]) -> String {
        Hash::of(DOMAIN, &[self.name.as_bytes(), &format.to_be_bytes(), body]).to_string()
    }

    /// Writes the file: a power cut leaves the old one or the new one, and it is on the disk on return.
    pub(super) fn write<T: Serialize>(
        &self,
        directory: &Path,
        value: &T,
    ) -> Result<(), StateError> {
        self.write_body(directory, self.format, &Zeroizing::new(cbor::encode(value)))
    }

    /// Writes the file with a body of this format, as [`Kind::write`] does.
    pub(super) fn write_body(
        &self,
        directory: &Path,
        format: u32,
        body: &[u8],
    ) -> Result<(), StateError> {
        let path = self.path(directory);
        self.write_at(directory, format, body).map_err(|error| StateError::File {
            path,
            verb: "written",
            error,
        })
    }

    fn write_at(&self, directory: &Path, format: u32, body: &[u8]) -> io::Result<()> {
        may_write()?;
        let header = format!("{MAGIC} {} {format} {}\n", self.name, self.digest(format, body));
        let draft = directory.join(format!(".{}.new", self.name));
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        file.write_all(header.as_bytes())?;
        file.write_all(body)?;
        file.sync_all()?;
        fs::rename(&draft, self.path(directory))?;
        File::open(directory)?.sync_all()
    }

    /// The file that is about to be replaced, to be [wiped](wipe) then.
    pub(super) fn held_open(&self, directory: &Path) -> Option<File> {
        OpenOptions::new().write(true).open(self.path(directory)).ok()
    }

    /// Takes the file away, if there is one.
    pub(super) fn remove(&self, directory: &Path) -> Result<(), StateError> {
        let path = self.path(directory);
        match may_write().and_then(|()| fs::remove_file(&path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StateError::File { path, verb: "removed", error })
            }
            _ => Ok(()),
        }
    }

    /// Reads the file. None where there is none.
    pub(super) fn read<T: DeserializeOwned>(
        &self,
        directory: &Path,
    ) -> Result<Option<T>, StateError> {
        let Some((format, body)) = self.read_body(directory)? else { return Ok(None) };
        if format != self.format {
            return Err(self.newer(directory, format));
        }
        cbor::decode(&body, self.max)
            .map(Some)
            .map_err(|error| self.damaged(directory, error.to_string()))
    }

    /// The file's format and body, the digest checked. None where there is no file.
    pub(super) fn read_body(&self, directory: &Path) -> Result<Option<Body>, StateError> {
        let path = self.path(directory);
        let bytes = match self.bytes(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StateError::File { path, verb: "read", error }),
        };
        let opened = self.open(&bytes).map_err(|problem| self.damaged(directory, problem))?;
        Ok(Some((opened.0, Zeroizing::new(opened.1.to_vec()))))
    }

    /// That the file isn't as the agent wrote it.
    pub(super) fn damaged(&self, directory: &Path, problem: String) -> StateError {
        StateError::Damaged { path: self.path(directory), problem, consequence: self.loss }
    }

    /// That the file is of a newer agent.
    pub(super) fn newer(&self, directory: &Path, found: u32) -> StateError {
        StateError::Newer { path: self.path(directory), found, known: self.format }
    }

    fn bytes(&self, path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
        let file = File::open(path)?;
        let mut bytes = Zeroizing::new(Vec::new());
        // One byte more than may be there shows that there is more.
        let most = (self.max + MAX_HEADER + 1) as u64;
        file.take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn open<'a>(&self, bytes: &'a [u8]) -> Result<(u32, &'a [u8]), String> {
        let cut = bytes.iter().take(MAX_HEADER).position(|byte| *byte == b'\n');
        let Some((header, body)) = cut.and_then(|at| bytes.split_at_checked(at + 1)) else {
            return Err("its first line is missing or cut short".into());
        };
        let words = std::str::from_utf8(header).unwrap_or_default().trim_end_matches('\n');
        let words: Vec<&str> = words.split(' ').collect();
        let [MAGIC, name, format, digest] = words.as_slice() else {
            return Err("its first line isn't an agent's".into());
        };
        if *name != self.name {
            return Err(format!("it is said to be {name:?}, not {:?}", self.name));
        }
        let Ok(found) = format.parse::<u32>() else {
            return Err(format!("it has no format {format:?}"));
        };
        // Before the format counts, so that damage isn't taken for a newer agent's work.
        if found.to_string() != *format || *digest != self.digest(found, body) {
            return Err("its digest is wrong".into());
        }
        Ok((found, body))
    }
}

/// Overwrites what was replaced. The name leads to the new file by now, so that a power cut does no harm; one that comes
/// just then leaves the old one in blocks that no file has any more, where nothing can overwrite it later. Where the disk
/// writes elsewhere (flash, snapshots), the old may be found there all the same.
pub(super) fn wipe(old: Option<File>) {
    let Some(mut file) = old else { return };
    let wiped = file.metadata().and_then(|metadata| {
        let mut left = metadata.len();
        let zeros = [0; 512];
        while left > 0 {
            let now = left.min(zeros.len() as u64);
            file.write_all(
                zeros.get(..usize::try_from(now).unwrap_or(zeros.len())).unwrap_or(&zeros),
            )?;
            left -= now;
        }
        file.sync_all()
    });
    if let Err(error) = wiped.map_err(|error: io::Error| error.to_string()) {
        tracing::warn!("a private key that was replaced can't be overwritten on the disk: {error}");
    }
}
