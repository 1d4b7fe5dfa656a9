//! Length-prefixed frames: four bytes of length, big-endian, and that many bytes of CBOR.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cbor::{self, CborError};
use crate::view::SignedView;

/// Length of the prefix in bytes.
pub const PREFIX_LEN: usize = 4;
/// Longest message that a controller reads: telemetry.
pub const MAX_TO_CONTROLLER: usize = 1024 * 1024;
/// Longest message that a controller reads before it knows who speaks.
pub const MAX_FIRST: usize = 64 * 1024;
/// Longest message that an agent reads: a view.
pub const MAX_TO_AGENT: usize = SignedView::MAX_LEN;

/// `message` behind its length.
#[must_use]
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    let body = cbor::encode(message);
    let mut bytes = Vec::with_capacity(PREFIX_LEN + body.len());
    bytes.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

/// The length that a prefix announces.
///
/// # Errors
/// [`CborError::TooLong`] when it is more than `max`.
pub fn body_len(prefix: [u8; PREFIX_LEN], max: usize) -> Result<usize, CborError> {
    let len = u32::from_be_bytes(prefix) as usize;
    if len > max { Err(CborError::TooLong { len, max }) } else { Ok(len) }
}

/// Reads the body of a frame.
///
/// # Errors
/// [`CborError`] when it isn't one strict `T`.
pub fn decode<T: DeserializeOwned>(body: &[u8], max: usize) -> Result<T, CborError> {
    cbor::decode(body, max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{Refusal, RefusalCode, ToAgent};

    #[test]
    fn a_frame_is_read_as_it_was_written() {
        let message = ToAgent::Refused(Refusal {
            code: RefusalCode::InviteUsed,
            message: "another gateway used this invite".into(),
            fatal: true,
        });
        let frame = encode(&message);
        let (prefix, body) = frame.split_first_chunk::<PREFIX_LEN>().unwrap();
        assert_eq!(body_len(*prefix, MAX_FIRST).unwrap(), body.len());
        assert_eq!(decode::<ToAgent>(body, MAX_FIRST).unwrap(), message);
    }

    #[test]
    fn a_long_frame_is_refused_by_its_prefix() {
        assert!(matches!(body_len([0, 1, 0, 1], MAX_FIRST), Err(CborError::TooLong { .. })));
        assert_eq!(body_len([0, 1, 0, 0], MAX_FIRST), Ok(MAX_FIRST));
    }
}
