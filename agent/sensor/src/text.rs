//! Text as old protocols write it.

use std::net::IpAddr;

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

/// A host's name: nothing but what one is made of. What people type where one is asked for is none.
pub(crate) fn host_name(name: &[u8]) -> Option<&[u8]> {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (!name.is_empty() && name.len() <= 253 && name.iter().all(is_part)).then_some(name)
}

/// The address in a URL: `http://10.0.0.7:8080/x`, `https://[fe80::1%1]/`. None where a name stands there.
pub(crate) fn address_of_url(url: &[u8]) -> Option<IpAddr> {
    let (_, rest) = std::str::from_utf8(url).ok()?.split_once("://")?;
    let host = rest.split(['/', '?', '#']).next()?;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next()?.split('%').next()?,
        None => host.split(':').next()?,
    };
    host.parse().ok()
}

/// Whether one of these addresses is the sender's. None where none of them tells, for want of the sender's family.
pub(crate) fn is_own(sender: IpAddr, addresses: impl IntoIterator<Item = IpAddr>) -> Option<bool> {
    let alike = addresses.into_iter().filter(|address| address.is_ipv4() == sender.is_ipv4());
    alike.map(|address| address == sender).reduce(|own, next| own || next)
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

    #[test]
    fn addresses_stand_in_urls_where_hosts_do() {
        for (url, wanted) in [
            ("http://10.0.0.7:8080/x", Some("10.0.0.7")),
            ("https://[fe80::1%25eth0]:6464", Some("fe80::1")),
            ("soap.udp://10.0.0.7?x", Some("10.0.0.7")),
            ("http://pump-7.local/", None),
            ("http://x/10.0.0.7", None),
            ("urn:uuid:10.0.0.7", None),
            ("http://[fe80::1", Some("fe80::1")),
        ] {
            let wanted = wanted.map(|ip| ip.parse::<IpAddr>().unwrap());
            assert_eq!(address_of_url(url.as_bytes()), wanted, "{url}");
        }
        assert_eq!(address_of_url(b"http://\xff/"), None);
    }

    #[test]
    fn what_is_no_name_of_a_host_is_none() {
        for name in ["ct-1.ward", "_ldap._tcp.ward", "xn--mnchen-3ya.example"] {
            assert_eq!(host_name(name.as_bytes()), Some(name.as_bytes()));
        }
        for name in ["", "erika@ris", "Erika Mustermann", "ris/x", "a\0b", &"a".repeat(254)] {
            assert_eq!(host_name(name.as_bytes()), None, "{name:?}");
        }
    }
}
