//! Files of the home directory: written whole or not at all, readable by their owner only.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::HomeError;

/// Longest file that is read from the home directory, in bytes: an authority chain of the greatest length.
const MAX_LEN: u64 = 128 * 1024 * 1024;

/// Makes the directory `path`, and those above it, for its owner only; or checks that it is so.
pub(super) fn private_dir(path: &Path) -> Result<(), HomeError> {
    match fs::metadata(path) {
        Ok(found) if !found.is_dir() => {
            Err(HomeError::file(path, "it is there, but it isn't a directory"))
        }
        Ok(found) => refuse_lax(path, found.mode(), 0o700),
        Err(error) if error.kind() == io::ErrorKind::NotFound => DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| HomeError::file(path, error)),
        Err(error) => Err(HomeError::file(path, error)),
    }
}

fn refuse_lax(path: &Path, mode: u32, want: u32) -> Result<(), HomeError> {
    if mode & 0o077 == 0 {
        Ok(())
    } else {
        Err(HomeError::Lax { path: path.display().to_string(), mode: mode & 0o777, want })
    }
}

/// Reads the file at `path`, or nothing where there is none. A `secret` one must be its owner's alone.
pub(super) fn read(path: &Path, secret: bool) -> Result<Option<String>, HomeError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(HomeError::file(path, error)),
    };
    let found = file.metadata().map_err(|error| HomeError::file(path, error))?;
    if secret {
        refuse_lax(path, found.mode(), 0o600)?;
    }
    let mut text = String::new();
    file.take(MAX_LEN).read_to_string(&mut text).map_err(|error| HomeError::file(path, error))?;
    Ok(Some(text))
}

/// Replaces the file at `path` by `text`, in one step and on the disk before it returns.
pub(super) fn write(path: &Path, text: &str) -> Result<(), HomeError> {
    let fail = |error: io::Error| HomeError::file(path, error);
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}.new", std::process::id()));
    let draft = Path::new(&draft);
    let written = || -> io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(draft, path)?;
        match path.parent() {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    };
    written().map_err(|error| {
        // What is left of the draft is of no use to anyone.
        let _ = fs::remove_file(draft);
        fail(error)
    })
}

/// Writes `text` to a new file at `path`, for its owner only. A file that is there stays as it is.
///
/// # Errors
/// When there is a file already, or it can't be written.
pub fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
