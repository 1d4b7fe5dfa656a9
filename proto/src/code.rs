//! Codes: values that people carry from one machine to another as one word of text.
//!
//! A prefix says what it is and in which version; base64url holds the CBOR and a checksum, so that a slip in
//! copying is noticed. The checksum is no protection against anyone: what a code names is checked by keys.

use data_encoding::BASE64URL_NOPAD;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cbor;
use crate::key::Hash;

/// Length of the checksum in bytes.
const CHECK_LEN: usize = 4;

/// What sets one kind of code apart from another.
pub(crate) struct Kind {
    /// How every code of the kind begins.
    pub(crate) prefix: &'static str,
    /// Domain of the checksum.
    pub(crate) domain: &'static str,
    /// Longest encoded value in bytes.
    pub(crate) max_len: usize,
}

/// Why text isn't a code of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It doesn't begin as the kind does.
    Prefix,
    /// A character is missing, doubled or wrong.
    Damaged(String),
}

/// `value` as text.
pub(crate) fn write<T: Serialize>(kind: &Kind, value: &T) -> String {
    let mut bytes = cbor::encode(value);
    let check = Hash::of(kind.domain, &[&bytes]);
    bytes.extend_from_slice(&check.as_bytes()[..CHECK_LEN]);
    format!("{}{}", kind.prefix, BASE64URL_NOPAD.encode(&bytes))
}

/// The value in `text`; white space around it doesn't matter.
pub(crate) fn read<T: DeserializeOwned>(kind: &Kind, text: &str) -> Result<T, Fault> {
    let damaged = |problem: &str| Fault::Damaged(problem.into());
    let body = text.trim().strip_prefix(kind.prefix).ok_or(Fault::Prefix)?;
    if body.len() > 2 * kind.max_len {
        return Err(damaged("it is too long"));
    }
    let bytes = BASE64URL_NOPAD
        .decode(body.as_bytes())
        .map_err(|error| Fault::Damaged(error.to_string()))?;
    let Some(split) = bytes.len().checked_sub(CHECK_LEN) else {
        return Err(damaged("it is too short"));
    };
    let (body, check) = bytes.split_at(split);
    if Hash::of(kind.domain, &[body]).as_bytes()[..CHECK_LEN] != *check {
        return Err(damaged("its checksum is wrong"));
    }
    cbor::decode(body, kind.max_len).map_err(|error| Fault::Damaged(error.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KIND: Kind = Kind { prefix: "anteroom-test-1.", domain: "anteroom test", max_len: 64 };

    #[test]
    fn the_checksum_belongs_to_its_kind() {
        let text = write(&KIND, &vec![1, 2, 3]);
        assert_eq!(read::<Vec<u8>>(&KIND, &text), Ok(vec![1, 2, 3]));
        let other = Kind { domain: "anteroom other", ..KIND };
        assert_eq!(
            read::<Vec<u8>>(&other, &text),
            Err(Fault::Damaged("its checksum is wrong".into()))
        );
    }

    proptest! {
        #[test]
        fn anything_at_all_is_read_without_a_panic(text in ".{0,200}", body in "[A-Za-z0-9_-]{0,150}") {
            let _ = read::<Vec<u8>>(&KIND, &text);
            let _ = read::<Vec<u8>>(&KIND, &format!("{}{body}", KIND.prefix));
        }
    }
}
