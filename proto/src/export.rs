//! The manifest of an export for auditors: which files belong to it, and what they are of, signed by an operator.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::cose::Document;
use crate::id::OrganisationId;
use crate::key::Hash;
use crate::time::UnixMillis;

/// Most files of an export.
pub const MAX_FILES: usize = 64;
/// Longest name of a file, in bytes.
pub const MAX_NAME: usize = 64;

/// What an operator signs of an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The organisation.
    pub organisation: OrganisationId,
    /// When it was made, by the operator's clock.
    pub made_at: UnixMillis,
    /// The number of the authority document that was in force.
    pub authority: u64,
    /// The controller's incarnation.
    pub incarnation: u64,
    /// The model's revision that it is of; 0 where there was none yet.
    pub revision: u64,
    /// Hash of that revision's signed root.
    pub root: Hash,
    /// Number and hash of the newest entry of the audit log; none where it is empty.
    pub audit: Option<(u64, Hash)>,
    /// First and last packet of the recorded traffic; none where none was recorded.
    pub history: Option<(UnixMillis, UnixMillis)>,
    /// Hash of the signed manifest that it was compared with.
    pub since: Option<Hash>,
    /// The files, by name.
    pub files: Vec<FileDigest>,
}

/// A file of an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileDigest {
    /// Its name: letters, digits, `.`, `-` and `_`, at most [`MAX_NAME`].
    pub name: String,
    /// Its length in bytes.
    pub len: u64,
    /// The SHA-256 of its bytes, nothing before them: `sha256sum` comes to the same.
    pub sha256: Hash,
}

impl Document for Manifest {
    const TYPE: &'static str = "anteroom/export";
    const MAX_LEN: usize = 64 * 1024;

    fn organisation(&self) -> OrganisationId {
        self.organisation
    }
}

/// Why files aren't those that a manifest names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileFault {
    /// A file that the manifest names isn't there.
    #[error("{0} is missing")]
    Missing(String),
    /// A file is there that the manifest doesn't name.
    #[error("{0} isn't in the manifest: somebody added it")]
    Added(String),
    /// A file's bytes differ.
    #[error("{0} was altered: its SHA-256 isn't the one that was signed")]
    Altered(String),
    /// The manifest names a file twice, too many files, or one by a name that can't be.
    #[error("the manifest names {0:?}, which no manifest does")]
    Name(String),
}

impl FileDigest {
    /// The digest of a file.
    #[must_use]
    pub fn of(name: &str, content: &[u8]) -> Self {
        let digest = <[u8; 32]>::from(Sha256::digest(content));
        let sha256 = Hash::try_from(digest).unwrap_or(Hash::ZERO);
        Self { name: name.to_owned(), len: content.len() as u64, sha256 }
    }

    fn name_fits(name: &str) -> bool {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        (1..=MAX_NAME).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(plain)
    }
}

impl Manifest {
    /// Everything that `files` have otherwise than the manifest: nothing, where they are the ones that were signed.
    pub fn faults<'a>(
        &self,
        files: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    ) -> Vec<FileFault> {
        let mut faults = Vec::new();
        let mut named = std::collections::BTreeMap::new();
        for file in &self.files {
            let again = named.insert(file.name.as_str(), file).is_some();
            if again || named.len() > MAX_FILES || !FileDigest::name_fits(&file.name) {
                faults.push(FileFault::Name(file.name.chars().take(MAX_NAME).collect()));
            }
        }
        for (name, content) in files {
            match named.remove(name) {
                None => faults.push(FileFault::Added(name.chars().take(200).collect())),
                Some(file) if *file != FileDigest::of(name, content) => {
                    faults.push(FileFault::Altered(name.to_owned()));
                }
                Some(_) => {}
            }
        }
        faults.extend(named.into_keys().map(|name| FileFault::Missing(name.to_owned())));
        faults
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cose::Signed;
    use crate::key::IdentityKey;

    fn manifest(files: &[(&str, &[u8])]) -> Manifest {
        Manifest {
            organisation: OrganisationId::from_bytes([1; 16]),
            made_at: UnixMillis(5),
            authority: 1,
            incarnation: 0,
            revision: 7,
            root: Hash::ZERO,
            audit: Some((3, Hash::ZERO)),
            history: None,
            since: None,
            files: files.iter().map(|(name, content)| FileDigest::of(name, content)).collect(),
        }
    }

    #[test]
    fn digests_are_those_of_sha256sum_and_files_are_told_apart() {
        let abc = FileDigest::of("a.txt", b"abc").sha256.to_string();
        assert_eq!(abc, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let signed = manifest(&[("a.txt", b"abc"), ("b.txt", b"")]);
        assert_eq!(signed.faults([("b.txt", &b""[..]), ("a.txt", b"abc")]), []);
        let faults = signed.faults([("a.txt", &b"abd"[..]), ("c.txt", b"")]);
        assert_eq!(
            faults,
            [
                FileFault::Altered("a.txt".into()),
                FileFault::Added("c.txt".into()),
                FileFault::Missing("b.txt".into())
            ]
        );
        for name in ["", "../a", "a/b", ".a", "a\nb"] {
            let found = manifest(&[(name, b"")]).faults([(name, &b""[..])]);
            assert!(matches!(found.as_slice(), [FileFault::Name(_)]), "{name:?}: {found:?}");
        }
        let twice = manifest(&[("a", b""), ("a", b"x")]);
        assert!(!twice.faults([("a", &b"x"[..])]).is_empty());
    }

    proptest! {
        #[test]
        fn every_changed_byte_of_a_file_is_found(content in proptest::collection::vec(any::<u8>(), 1..200), at in any::<usize>(), flip in 1u8..) {
            let signed = manifest(&[("a", &content)]);
            let mut other = content.clone();
            let at = at % other.len();
            other[at] ^= flip;
            prop_assert_eq!(signed.faults([("a", other.as_slice())]), [FileFault::Altered("a".into())]);
            other.truncate(at);
            prop_assert!(!signed.faults([("a", other.as_slice())]).is_empty());
        }

        #[test]
        fn every_changed_byte_of_the_manifest_is_found(at in any::<usize>(), flip in 1u8..) {
            let key = IdentityKey::from_seed(&[1; 32]);
            let mut bytes = Signed::sign(&manifest(&[("a", b"x")]), &key).as_bytes().to_vec();
            let at = at % bytes.len();
            bytes[at] ^= flip;
            let organisation = OrganisationId::from_bytes([1; 16]);
            prop_assert!(Signed::<Manifest>::from_bytes(bytes).verify(organisation, &[key.public()]).is_err());
        }
    }
}
