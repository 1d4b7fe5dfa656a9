//! Zip archives, read with bounds: what a small file may unpack to has none of its own.

use std::io::{Cursor, Read, Write};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// Most files of one archive.
pub const MAX_FILES: usize = 2_000;

/// Length of what stands before a file's name (local file header), before its name in the list at the end (central directory header), and of the end of that list, in bytes
/// (APPNOTE.TXT 4.3.7, 4.3.12, 4.3.16).
const LOCAL_HEADER: usize = 30;
const LISTED_HEADER: usize = 46;
const END_OF_LIST: usize = 22;

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
    /// Built in a way that lets programs disagree on what is in it.
    #[error("{0}: another program could unpack other files from it than this one")]
    Ambiguous(String),
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

/// [`unpack`] for an archive that has to hold one thing only, whoever reads it: no name twice, no byte between, before or behind its files, and what stands in
/// front of each file the same as in the list at the end. What is checked here is then what any other program shows. [`pack`] makes such archives.
///
/// # Errors
/// [`ArchiveError`].
pub fn unpack_exact(bytes: &[u8], most: usize) -> Result<Vec<(String, Vec<u8>)>, ArchiveError> {
    let ambiguous = |problem: String| Err(ArchiveError::Ambiguous(problem));
    let mut archive = ZipArchive::new(Cursor::new(bytes))?;
    if archive.len() > MAX_FILES {
        return Err(ArchiveError::TooLarge(format!("{MAX_FILES} files")));
    }
    if archive.has_duplicate_names() {
        return ambiguous("it holds a name twice".into());
    }
    let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
    let part = |at: usize, len: usize| bytes.get(at..at.checked_add(len)?);
    let list = place(archive.central_directory_start());
    let (mut ranges, mut entries) = (Vec::new(), Vec::new());
    for at in 0..archive.len() {
        let file = archive.by_index_raw(at)?;
        let name = file.name()?.into_owned();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if !name.chars().all(plain) {
            return ambiguous(format!("it holds {name:?}, which is no name of a bundle's files"));
        }
        let (local, listed) = (place(file.header_start()), place(file.central_header_start()));
        let head = part(local, LOCAL_HEADER + name.len()).unwrap_or_default();
        let entry = part(listed, LISTED_HEADER + name.len()).unwrap_or_default();
        // From the version to the lengths of name and extra field both say the same, in the same order; bit 3 of the flags would put sizes behind the data.
        let same = head.get(4..LOCAL_HEADER).is_some_and(|own| entry.get(6..32) == Some(own))
            && head.get(6).is_some_and(|flags| flags & 0b1001 == 0)
            && head.get(LOCAL_HEADER..) == Some(name.as_bytes())
            && entry.get(LISTED_HEADER..) == Some(name.as_bytes());
        if !same {
            return ambiguous(format!("what it says of {name} in two places differs"));
        }
        // An extra field or a comment would leave a gap.
        let data = local.saturating_add(head.len());
        ranges.push((local, data.saturating_add(place(file.compressed_size()))));
        entries.push((listed, listed.saturating_add(entry.len())));
    }
    let follow = |mut parts: Vec<(usize, usize)>, from: usize| {
        parts.sort_unstable();
        parts.into_iter().try_fold(from, |end, (start, next)| (start == end).then_some(next))
    };
    let end = follow(entries, list).unwrap_or_default();
    if follow(ranges, 0) != Some(list) || end.saturating_add(END_OF_LIST) != bytes.len() {
        return ambiguous("it holds bytes that belong to no file".into());
    }
    let tail = part(end, END_OF_LIST).unwrap_or_default();
    let count = u16::try_from(archive.len()).unwrap_or(u16::MAX).to_le_bytes();
    let begin = u32::try_from(list).unwrap_or(u32::MAX).to_le_bytes();
    let len = u32::try_from(end.saturating_sub(list)).unwrap_or(u32::MAX).to_le_bytes();
    let wanted = [&b"PK\x05\x06\0\0\0\0"[..], &count, &count, &len, &begin, b"\0\0"].concat();
    if tail != wanted {
        return ambiguous("the list at its end isn't what it says it is".into());
    }
    unpack(bytes, most)
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

    #[test]
    fn an_archive_that_can_be_read_in_two_ways_is_refused() {
        let (one, other) =
            (pack([("a", &b"good"[..])]).unwrap(), pack([("a", &b"evil"[..])]).unwrap());
        let two = pack([("a", &b"good"[..]), ("b", b"evil")]).unwrap();
        assert_eq!(unpack_exact(&two, 100).unwrap().len(), 2);
        let renamed = |archive: &[u8], last: bool| {
            let mut bytes = archive.to_vec();
            let places: Vec<usize> = (0..bytes.len() - 4)
                .filter(|at| {
                    bytes[*at..].starts_with(b"PK\x03\x04")
                        || bytes[*at..].starts_with(b"PK\x01\x02")
                })
                .collect();
            // Local headers of a and b, then their entries in the list.
            let [_, local, _, listed] = places[..] else { panic!("{places:?}") };
            bytes[local + 30] = b'a';
            if last {
                bytes[listed + 46] = b'a';
            }
            bytes
        };
        for (what, bytes) in [
            ("another archive in front", [other.as_slice(), &one].concat()),
            ("rubbish in front", [b"#!/bin/sh\n".as_slice(), &one].concat()),
            ("another archive behind", [one.as_slice(), &other].concat()),
            ("bytes behind", [one.as_slice(), b"x"].concat()),
            ("a name twice", renamed(&two, true)),
            ("two names for one file", renamed(&two, false)),
            ("a path", pack([("../a", &b"x"[..])]).unwrap()),
        ] {
            assert!(unpack_exact(&bytes, 100).is_err(), "{what}");
        }
        for at in 0..two.len() {
            assert!(
                unpack_exact(&[&two[..at], &two[at + 1..]].concat(), 100).is_err(),
                "without byte {at}"
            );
            assert!(
                unpack_exact(&[&two[..at], b"x", &two[at..]].concat(), 100).is_err(),
                "more at {at}"
            );
        }
    }
}
