//! Codes by which whoever shares a key is known.

use hmac::{Hmac, Mac};
use sha2::Sha256;

/// HMAC-SHA-256 (RFC 2104) of `parts`, one after the other. Where they go is no part of it: whoever uses one key for several
/// things gives all parts but one a fixed length.
#[must_use]
pub fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    // A key of any length is taken.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return [0; 32] };
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_rfc_4231_says() {
        let is = |key: &[u8], parts: &[&[u8]], expected: &str| {
            assert_eq!(hmac(key, parts).map(|byte| format!("{byte:02x}")).concat(), expected);
        };
        // Test cases 1, 2, 3 and 6: short keys, and one that is longer than a block.
        is(
            &[0x0b; 20],
            &[b"Hi ", b"There"],
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
        );
        is(
            b"Jefe",
            &[b"what do ya want ", b"for nothing?"],
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
        );
        is(
            &[0xaa; 20],
            &[&[0xdd; 50]],
            "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe",
        );
        is(
            &[0xaa; 131],
            &[b"Test Using Larger Than Block-Size Key", b" - Hash Key First"],
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
        );
    }
}
