//! Text as old protocols write it.

/// Longest text that is made of UTF-16: far more than a hint holds.
const MOST_UNITS: usize = 256;

/// UTF-16 in little-endian order up to its end or a zero, as UTF-8.
pub(crate) fn utf16(bytes: &[u8]) -> String {
    let units = bytes
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .take_while(|unit| *unit != 0)
        .take(MOST_UNITS);
    char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

/// Up to the first zero.
pub(crate) fn until_zero(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    &bytes[..end]
}

/// Up to the end of the first line, which isn't part of it.
pub(crate) fn first_line(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n'))?;
    Some(&bytes[..end])
}

/// A domain name in DNS' wire format, uncompressed: `ct-1.example.org`. None where it isn't whole or has no labels.
pub(crate) fn wire_name(mut bytes: &[u8]) -> Option<String> {
    let mut name = String::new();
    while let Some((length, rest)) = bytes.split_first() {
        if *length == 0 {
            break;
        }
        if *length > 63 {
            return None;
        }
        let (label, rest) = rest.split_at_checked((*length).into())?;
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(&String::from_utf8_lossy(label));
        bytes = rest;
    }
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_dns_are_read_and_broken_ones_refused() {
        assert_eq!(wire_name(b"\x04ct-1\x07example\0"), Some("ct-1.example".to_owned()));
        assert_eq!(wire_name(b"\x04ct-1"), Some("ct-1".to_owned()));
        assert_eq!(wire_name(b"\x05ct-1"), None);
        assert_eq!(wire_name(b"\xc0\x0c"), None);
        assert_eq!(wire_name(b"\0"), None);
    }

    #[test]
    fn utf16_ends_at_its_zero() {
        assert_eq!(utf16(b"W\0i\0n\0\0\0x\0"), "Win");
        assert_eq!(utf16(b"W"), "");
    }
}
