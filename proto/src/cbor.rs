//! CBOR (RFC 8949) as Anteroom writes and takes it.
//!
//! What is read must be one well-formed item of bounded length and depth, with definite lengths, no key twice
//! in a map, and nothing behind it. Readers then can't disagree about what a signature covers.

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use serde::de::{DeserializeOwned, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Deepest nesting that is read.
pub const MAX_DEPTH: usize = 24;

/// Bytes that aren't the CBOR asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CborError {
    /// More bytes than this kind of message may have.
    #[error("{len} bytes are more than the {max} that are read here")]
    TooLong {
        /// Length offered.
        len: usize,
        /// Length allowed.
        max: usize,
    },
    /// Not well-formed, or well-formed in a way that isn't taken.
    #[error("at byte {offset}: {problem}")]
    Malformed {
        /// Where, from the first byte.
        offset: usize,
        /// What.
        problem: &'static str,
    },
    /// Well-formed, but not of the type asked for.
    #[error("not {expected}: {problem}")]
    Shape {
        /// The type asked for.
        expected: &'static str,
        /// What the decoder says.
        problem: String,
    },
}

/// `value` as CBOR, in the order of its fields: the same value gives the same bytes.
#[must_use]
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    match ciborium::into_writer(value, &mut bytes) {
        Ok(()) => bytes,
        Err(error) => unreachable!("writing a message to memory failed: {error}"),
    }
}

/// Reads one `T` from all of `bytes`.
///
/// # Errors
/// When `bytes` are longer than `max`, not strict CBOR, or not a `T`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], max: usize) -> Result<T, CborError> {
    if bytes.len() > max {
        return Err(CborError::TooLong { len: bytes.len(), max });
    }
    check(bytes)?;
    ciborium::de::from_reader_with_recursion_limit(bytes, 2 * MAX_DEPTH).map_err(|error| {
        CborError::Shape {
            expected: std::any::type_name::<T>().rsplit("::").next().unwrap_or_default(),
            problem: error.to_string(),
        }
    })
}

/// Checks that `bytes` are one strict item and nothing more.
///
/// # Errors
/// [`CborError::Malformed`] with the place of the first fault.
pub fn check(bytes: &[u8]) -> Result<(), CborError> {
    let mut walker = Walker { bytes, at: 0 };
    walker.item(0)?;
    if walker.at == bytes.len() {
        Ok(())
    } else {
        Err(walker.fault(walker.at, "bytes behind the item"))
    }
}

struct Walker<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Walker<'a> {
    #[allow(clippy::unused_self, reason = "reads as a verb of the walker")]
    const fn fault(&self, offset: usize, problem: &'static str) -> CborError {
        CborError::Malformed { offset, problem }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], CborError> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.bytes.len());
        let Some(end) = end else { return Err(self.fault(self.at, "cut short")) };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// Major type and argument of the next head. Arguments must be as short as they can be (RFC 8949 4.2.1).
    fn head(&mut self) -> Result<(u8, u64), CborError> {
        let start = self.at;
        let first = self.take(1)?[0];
        let (major, info) = (first >> 5, first & 0x1f);
        let (argument, floor) = match info {
            0..=23 => (u64::from(info), 0),
            24 => (u64::from(self.take(1)?[0]), 24),
            25..=27 => {
                let wide = self.take(1 << (info - 24))?;
                let argument = wide.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
                (argument, [1 << 8, 1 << 16, 1 << 32][usize::from(info - 25)])
            }
            31 => return Err(self.fault(start, "a length is left open")),
            _ => return Err(self.fault(start, "a reserved length")),
        };
        // Floats and simple values (major 7) carry no length.
        if major != 7 && argument < floor {
            return Err(self.fault(start, "a number is longer than it need be"));
        }
        Ok((major, argument))
    }

    fn item(&mut self, depth: usize) -> Result<(), CborError> {
        let start = self.at;
        if depth > MAX_DEPTH {
            return Err(self.fault(start, "nested too deeply"));
        }
        let (major, argument) = self.head()?;
        let len = usize::try_from(argument).map_err(|_| self.fault(start, "cut short"));
        match major {
            0 | 1 | 7 => {}
            2 => {
                self.take(len?)?;
            }
            3 => {
                if std::str::from_utf8(self.take(len?)?).is_err() {
                    return Err(self.fault(start, "text that isn't UTF-8"));
                }
            }
            4 => {
                for _ in 0..len? {
                    self.item(depth + 1)?;
                }
            }
            5 => self.map(len?, depth)?,
            6 => self.item(depth + 1)?,
            _ => unreachable!("three bits make at most 7"),
        }
        Ok(())
    }

    fn map(&mut self, len: usize, depth: usize) -> Result<(), CborError> {
        // A pair takes two bytes at least, which bounds what is reserved by what was sent.
        let mut keys = Vec::with_capacity(len.min(self.bytes.len().saturating_sub(self.at) / 2));
        for _ in 0..len {
            let key = self.at;
            self.item(depth + 1)?;
            keys.push((&self.bytes[key..self.at], key));
            self.item(depth + 1)?;
        }
        keys.sort_unstable();
        match keys.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            Some(pair) => Err(self.fault(pair[1].1, "a key stands twice in a map")),
            None => Ok(()),
        }
    }
}

/// Reads a byte string of exactly `N` bytes.
pub(crate) fn deserialize_array<'de, const N: usize, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<[u8; N], D::Error> {
    let bytes = deserializer.deserialize_byte_buf(BytesVisitor)?;
    let len = bytes.len();
    bytes.try_into().map_err(|_| de::Error::invalid_length(len, &format!("{N} bytes").as_str()))
}

struct BytesVisitor;

impl<'de> Visitor<'de> for BytesVisitor {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a byte string")
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
        Ok(bytes.to_vec())
    }

    fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Self::Value, E> {
        Ok(bytes)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
        Err(de::Error::invalid_type(de::Unexpected::Seq, &self))
    }
}

/// Bytes that stand as a byte string in CBOR and as base64url in JSON.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Blob(pub Vec<u8>);

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({} bytes)", self.0.len())
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.serialize_str(&BASE64URL_NOPAD.encode(&self.0))
        } else {
            serializer.serialize_bytes(&self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            BASE64URL_NOPAD
                .decode(text.as_bytes())
                .map(Self)
                .map_err(|_| de::Error::custom("expected base64url without padding"))
        } else {
            deserializer.deserialize_byte_buf(BytesVisitor).map(Self)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn problem(bytes: &[u8]) -> &'static str {
        match check(bytes) {
            Err(CborError::Malformed { problem, .. }) => problem,
            other => panic!("{bytes:02x?} gave {other:?}"),
        }
    }

    #[test]
    fn lax_encodings_are_refused() {
        assert_eq!(problem(&[]), "cut short");
        assert_eq!(problem(&[0x00, 0x00]), "bytes behind the item");
        assert_eq!(problem(&[0x9f, 0xff]), "a length is left open");
        assert_eq!(problem(&[0x5f, 0x41, 0x00, 0xff]), "a length is left open");
        assert_eq!(problem(&[0x18, 0x01]), "a number is longer than it need be");
        assert_eq!(problem(&[0x1c]), "a reserved length");
        assert_eq!(problem(&[0xa2, 0x01, 0x00, 0x01, 0x00]), "a key stands twice in a map");
        assert_eq!(problem(&[0x61, 0xff]), "text that isn't UTF-8");
        assert_eq!(problem(&[0x81; 100]), "nested too deeply");
        assert_eq!(problem(&[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), "cut short");
        assert_eq!(problem(&[0xbb, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), "cut short");
    }

    proptest! {
        #[test]
        fn anything_at_all_is_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = check(&bytes);
            let _ = decode::<Vec<u64>>(&bytes, 100);
        }

        #[test]
        fn what_is_written_is_read(value in proptest::collection::btree_map("[a-z]{0,9}", any::<(u64, i64, Vec<u8>)>(), 0..9)) {
            prop_assert_eq!(decode::<std::collections::BTreeMap<String, (u64, i64, Vec<u8>)>>(&encode(&value), 1 << 16).unwrap(), value);
        }
    }
}
