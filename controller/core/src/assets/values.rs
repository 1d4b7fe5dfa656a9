//! Values of lists: many ways to write the same thing.

use std::net::Ipv4Addr;

use anteroom_proto::mac::MacAddr;
use anteroom_proto::name::Name;

use super::{Asset, AssetList};
use crate::edit::MAX_LABEL_LEN;
use crate::surface::{self, CRITICALITY, Criticality, SENSITIVITY, Sensitivity};

/// What people write where they have nothing to write.
const NOTHING: [&str; 13] = [
    "",
    "-",
    "--",
    "?",
    "n/a",
    "na",
    "none",
    "null",
    "unknown",
    "tbd",
    "dhcp",
    "unbekannt",
    "keine",
];
/// Most addresses of one kind that one thing has.
const MAX_ADDRESSES: usize = 16;

/// What a field of a list is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Field {
    Name,
    Mac,
    Address,
    Hostname,
    Serial,
    /// A label by this name.
    Label(Name),
}

/// A text without what can't stand in a label: control characters become spaces, and runs of them one. None where nothing is left, or a word for nothing.
pub(super) fn clean(text: &str) -> Option<String> {
    let words: Vec<&str> = text
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|w| !w.is_empty())
        .collect();
    let text = words.join(" ");
    // What an export wrote in order that its text isn't taken for a formula.
    let text = text.strip_prefix('\'').unwrap_or(&text);
    (!NOTHING.contains(&text.to_lowercase().as_str())).then(|| text.to_owned())
}

/// An Ethernet address in any of its four ways: 00:1b:21:aa:bb:cc, 00-1b-…, 001b.21aa.bbcc, 001b21aabbcc.
pub(super) fn mac(text: &str) -> Option<MacAddr> {
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let rest = text.chars().all(|c| c.is_ascii_hexdigit() || matches!(c, ':' | '-' | '.'));
    if !rest || digits.len() != 12 {
        return None;
    }
    let mut bytes = [0; 6];
    for (byte, at) in bytes.iter_mut().zip((0..12).step_by(2)) {
        *byte = u8::from_str_radix(digits.get(at..at + 2)?, 16).ok()?;
    }
    let mac = MacAddr(bytes);
    (!mac.is_group() && bytes != [0; 6]).then_some(mac)
}

/// An IPv4 address, with or without the length of its network behind it.
pub(super) fn address(text: &str) -> Option<Ipv4Addr> {
    let text = text.split_once('/').map_or(text, |(address, _)| address);
    let found: Ipv4Addr = text.parse().ok()?;
    let nobody = found.is_unspecified() || found.is_broadcast() || found.is_multicast();
    (!nobody && !found.is_loopback()).then_some(found)
}

/// The word of the protect surface that `text` spells in whatever way: `Life Support`, `life_support`. Any other text stays as it is.
fn spelt(label: &str, text: String) -> String {
    let letters = |text: &str| -> String {
        text.chars().filter(char::is_ascii_alphabetic).collect::<String>().to_ascii_lowercase()
    };
    let words: Vec<&'static str> = match label {
        CRITICALITY => Criticality::ALL.iter().map(|one| one.as_str()).collect(),
        SENSITIVITY => Sensitivity::ALL.iter().map(|one| one.as_str()).collect(),
        _ => return text,
    };
    let same = words.into_iter().find(|word| letters(word) == letters(&text));
    same.map_or(text, str::to_owned)
}

/// Puts `text` into `field` of `asset`; what can't be read is told as a problem of `place`.
pub(super) fn put(
    asset: &mut Asset,
    field: &Field,
    text: &str,
    place: &dyn Fn() -> String,
    list: &mut AssetList,
) {
    let Some(text) = clean(text) else { return };
    let quoted = || -> String { text.chars().take(60).collect() };
    let parts = || text.split([',', ';', '|', ' ']).filter(|part| !part.is_empty());
    match field {
        Field::Mac => {
            for part in parts() {
                match mac(part) {
                    Some(mac) if asset.macs.contains(&mac) => {}
                    Some(mac) if asset.macs.len() < MAX_ADDRESSES => asset.macs.push(mac),
                    Some(_) => list
                        .problem(place(), format!("more than {MAX_ADDRESSES} Ethernet addresses")),
                    None => list.problem(
                        place(),
                        format!(
                            "{:?} is no device's Ethernet address: write it as 00:1b:21:aa:bb:cc",
                            quoted()
                        ),
                    ),
                }
            }
        }
        Field::Address => {
            for part in parts() {
                match address(part) {
                    Some(found) if asset.addresses.contains(&found) => {}
                    Some(found) if asset.addresses.len() < MAX_ADDRESSES => {
                        asset.addresses.push(found);
                    }
                    Some(_) => {
                        list.problem(place(), format!("more than {MAX_ADDRESSES} addresses"));
                    }
                    // IPv6 identifies nothing here, and isn't wrong either.
                    None if part.parse::<std::net::Ipv6Addr>().is_ok() => {}
                    None => {
                        list.problem(
                            place(),
                            format!("{:?} is no device's IPv4 address", quoted()),
                        );
                    }
                }
            }
        }
        _ if text.len() > MAX_LABEL_LEN => {
            list.problem(place(), format!("{:?}… is longer than {MAX_LABEL_LEN} bytes", quoted()));
        }
        Field::Name => asset.name = asset.name.take().or(Some(text)),
        Field::Hostname => asset.hostname = asset.hostname.take().or(Some(text)),
        Field::Serial => asset.serial = asset.serial.take().or(Some(text)),
        Field::Label(label) => {
            let text = spelt(label.as_str(), text);
            match surface::problem(label.as_str(), &text) {
                Some(problem) => list.problem(
                    place(),
                    format!("{:?}: {problem}", text.chars().take(60).collect::<String>()),
                ),
                None => drop(asset.attributes.entry(label.clone()).or_insert(text)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_however_they_are_written() {
        let wanted = Some(MacAddr([0, 0x1b, 0x21, 0xaa, 0xbb, 0xcc]));
        for text in ["00:1b:21:aa:bb:cc", "00-1B-21-AA-BB-CC", "001b.21aa.bbcc", "001B21AABBCC"] {
            assert_eq!(mac(text), wanted, "{text}");
        }
        for bad in [
            "",
            "00:1b:21:aa:bb",
            "ff:ff:ff:ff:ff:ff",
            "000000000000",
            "00 1b 21 aa bb cc",
            "001b21aabbcg",
        ] {
            assert_eq!(mac(bad), None, "{bad}");
        }
        assert_eq!(address("10.20.1.10/24"), Some([10, 20, 1, 10].into()));
        for bad in ["10.20.1", "0.0.0.0", "224.0.0.1", "127.0.0.1", "x"] {
            assert_eq!(address(bad), None, "{bad}");
        }
    }

    #[test]
    fn words_are_made_of_what_people_write() {
        assert_eq!(clean(" a\r\n b\t"), Some("a b".into()));
        assert_eq!(clean("'=1"), Some("=1".into()));
        assert_eq!((clean("N/A"), clean(" ")), (None, None));
        assert_eq!(spelt("criticality", "Life Support".into()), "life-support");
        assert_eq!(spelt("criticality", "A1".into()), "A1");
        assert_eq!(spelt("owner", "Life Support".into()), "Life Support");
    }
}
