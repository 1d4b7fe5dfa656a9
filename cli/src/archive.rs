//! Zip archives, read with bounds: what a small file may unpack to has none of its own.

use std::io::{Cursor, Read, Write};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// Most files of one archive.
pub const MAX_FILES: usize = 2_000;

/// Why an archive isn't read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Not a zip archive, or a broken one.
    #[error("it is no zip archive, or a broken one: {0}")]
    Broken(#[from] zip::result::ZipError),
    /// A file in it that can't be unpacked.
    #[error("{name} in it can't be unpacked: {problem}")]
    File {
        /// Which file.
        name: String,
        /// What is wrong.
        problem: std::io::Error,
    },
    /// More than is taken in.
    #[error("it unpacks to more than {0}, which is more than such a file ever has")]
    TooLarge(String),
}

/// Unpacks all files of `bytes`, as long as they are no more than `most` bytes together, whatever their headers say.
///
/// # Errors
/// [`ArchiveError`].
pub fn unpack(bytes: &[u8], most: usize) -> Result<Vec<(String, Vec<u8>)>, ArchiveError> {
    let mut archive = ZipArchive::new(Cursor::new(bytes))?;
    if archive.len() > MAX_FILES {
        return Err(ArchiveError::TooLarge(format!("{MAX_FILES} files")));
    }
    let mut left = most;
    let mut files = Vec::with_capacity(archive.len());
    for at in 0..archive.len() {
        let file = archive.by_index(at)?;
        let name = file.name()?.into_owned();
        if file.is_dir() {
            continue;
        }
        let mut content = Vec::new();
        let limit = u64::try_from(left).unwrap_or(u64::MAX).saturating_add(1);
        let read = file.take(limit).read_to_end(&mut content);
        read.map_err(|problem| ArchiveError::File { name: name.clone(), problem })?;
        left = left
            .checked_sub(content.len())
            .ok_or_else(|| ArchiveError::TooLarge(format!("{} MB", most / 1_000_000)))?;
        files.push((name, content));
    }
    Ok(files)
}

/// Packs `files`. The same files give the same archive.
///
/// # Errors
/// When one can't be packed.
pub fn pack<'a>(
    files: impl IntoIterator<Item = (&'a str, &'a [u8])>,
) -> Result<Vec<u8>, ArchiveError> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Deflated)
        .unix_permissions(0o644);
    for (name, content) in files {
        archive.start_file(name, options)?;
        archive
            .write_all(content)
            .map_err(|problem| ArchiveError::File { name: name.to_owned(), problem })?;
    }
    Ok(archive.finish()?.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_packed_is_unpacked_within_bounds() {
        let files: [(&str, &[u8]); 2] = [("a.txt", b"hello"), ("dir/b.txt", &[0; 5_000_000])];
        let packed = pack(files).unwrap();
        assert!(packed.len() < 100_000, "it is a small bomb");
        assert_eq!(pack(files).unwrap(), packed, "the same each time");
        let unpacked = unpack(&packed, 6_000_000).unwrap();
        assert_eq!(unpacked[0], ("a.txt".to_owned(), b"hello".to_vec()));
        assert_eq!(unpacked[1].1.len(), 5_000_000);
        let error = unpack(&packed, 5_000_000).unwrap_err().to_string();
        assert!(error.contains("unpacks to more than 5 MB"), "{error}");
        // A header that lies about the size doesn't get more in.
        let mut lying = packed.clone();
        let size = 5_000_000_u32.to_le_bytes();
        let mut at = 0;
        while let Some(found) = lying[at..].windows(4).position(|window| window == size) {
            lying[at + found..at + found + 4].copy_from_slice(&1_u32.to_le_bytes());
            at += found + 4;
        }
        assert!(unpack(&lying, 1_000_000).is_err());
        assert!(unpack(b"PK\x03\x04nonsense", 10).is_err());
        let many: Vec<String> = (0..=MAX_FILES).map(|n| n.to_string()).collect();
        let many = pack(many.iter().map(|name| (name.as_str(), &b""[..]))).unwrap();
        assert!(unpack(&many, 10).unwrap_err().to_string().contains("2000 files"));
    }
}
