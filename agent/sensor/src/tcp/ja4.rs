//! JA4, a short description of a client's hello that doesn't depend on the order of its extensions (FoxIO, JA4 for TLS clients,
//! BSD-3-Clause): `t13d1516h2_8daaf6152771_e5627efa2ab1`.

use sha2::{Digest, Sha256};

use super::tls::{Hello, numbers};
use crate::cursor::Cursor;

const SERVER_NAME: u16 = 0x0000;
const SIGNATURE_ALGORITHMS: u16 = 0x000d;
const PROTOCOLS: u16 = 0x0010;
const SUPPORTED_VERSIONS: u16 = 0x002b;
/// What a hash of nothing is written as.
const NOTHING: &str = "000000000000";

/// The JA4 of a hello that came by TCP.
pub(super) fn of(hello: &Hello<'_>) -> String {
    let mut ciphers: Vec<u16> = hello.ciphers.iter().copied().filter(|n| !is_grease(*n)).collect();
    let mut kinds: Vec<u16> =
        hello.extensions.iter().map(|(kind, _)| *kind).filter(|n| !is_grease(*n)).collect();
    let head = format!(
        "t{}{}{:02}{:02}{}",
        version(hello),
        if hello.extension(SERVER_NAME).is_some() { 'd' } else { 'i' },
        ciphers.len().min(99),
        kinds.len().min(99),
        protocol(hello)
    );
    ciphers.sort_unstable();
    kinds.retain(|kind| ![SERVER_NAME, PROTOCOLS].contains(kind));
    kinds.sort_unstable();
    let mut asked = list(&kinds);
    let signatures: Vec<u16> = hello
        .extension(SIGNATURE_ALGORITHMS)
        .and_then(|value| Cursor(value).long())
        .map(numbers)
        .unwrap_or_default()
        .into_iter()
        .filter(|n| !is_grease(*n))
        .collect();
    if !asked.is_empty() && !signatures.is_empty() {
        asked.push('_');
        asked.push_str(&list(&signatures));
    }
    format!("{head}_{}_{}", hash(&list(&ciphers)), hash(&asked))
}

/// Numbers that are sent so that nobody gets used to a fixed set (RFC 8701).
const fn is_grease(number: u16) -> bool {
    number & 0x0f0f == 0x0a0a && number >> 8 == number & 0xff
}

fn version(hello: &Hello<'_>) -> &'static str {
    let highest = hello
        .extension(SUPPORTED_VERSIONS)
        .and_then(|value| Cursor(value).short())
        .map(numbers)
        .unwrap_or_default()
        .into_iter()
        .filter(|n| !is_grease(*n))
        .max()
        .unwrap_or(hello.version);
    match highest {
        0x0304 => "13",
        0x0303 => "12",
        0x0302 => "11",
        0x0301 => "10",
        0x0300 => "s3",
        0x0002 => "s2",
        _ => "00",
    }
}

/// The first and last character of the first protocol that is offered (ALPN), in hex where they are no letters or digits.
fn protocol(hello: &Hello<'_>) -> String {
    let first = hello
        .extension(PROTOCOLS)
        .and_then(|value| Cursor(value).long())
        .and_then(|value| Cursor(value).short())
        .unwrap_or_default();
    let (Some(begin), Some(end)) = (first.first(), first.last()) else { return "00".to_owned() };
    if begin.is_ascii_alphanumeric() && end.is_ascii_alphanumeric() {
        format!("{}{}", char::from(*begin), char::from(*end))
    } else {
        format!("{:x}{:x}", begin >> 4, end & 0x0f)
    }
}

fn list(numbers: &[u16]) -> String {
    numbers.iter().map(|number| format!("{number:04x}")).collect::<Vec<_>>().join(",")
}

/// The first twelve hex digits of SHA-256.
fn hash(text: &str) -> String {
    if text.is_empty() {
        return NOTHING.to_owned();
    }
    Sha256::digest(text.as_bytes()).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example that JA4's own description works through.
    #[test]
    fn the_example_of_the_description_comes_out() {
        let hello = Hello {
            version: 0x0303,
            ciphers: vec![
                0x1a1a, 0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8,
                0xc013, 0xc014, 0x009c, 0x009d, 0x002f, 0x0035,
            ],
            extensions: vec![
                (0x1a1a, b""),
                (0x001b, b""),
                (0x0000, b""),
                (0x0033, b""),
                (0x0010, b"\0\x03\x02h2"),
                (0x4469, b""),
                (0x0017, b""),
                (0x002d, b""),
                (0x000d, b"\0\x10\x04\x03\x08\x04\x04\x01\x05\x03\x08\x05\x05\x01\x08\x06\x06\x01"),
                (0x0005, b""),
                (0x0023, b""),
                (0x0012, b""),
                (0x002b, b"\x06\x1a\x1a\x03\x04\x03\x03"),
                (0xff01, b""),
                (0x000b, b""),
                (0x000a, b""),
                (0x0015, b""),
            ],
        };
        assert_eq!(of(&hello), "t13d1516h2_8daaf6152771_e5627efa2ab1");
    }

    #[test]
    fn a_hello_with_nothing_in_it_has_a_description_too() {
        let hello = Hello { version: 0x0301, ciphers: vec![], extensions: vec![] };
        assert_eq!(of(&hello), "t10i000000_000000000000_000000000000");
    }
}
