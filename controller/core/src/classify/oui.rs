//! Whose an Ethernet address is: by the lists of the IEEE, or by the makers that rule files name.

use std::collections::BTreeMap;

use anteroom_proto::mac::MacAddr;

/// Longest list that is read, in bytes.
pub const MAX_LIST_LEN: usize = 64 * 1024 * 1024;
/// The prefix that the IEEE's lists have as ICANN's.
const IANA: [u8; 3] = [0x00, 0x00, 0x5e];
/// Most prefixes that are kept.
const MAX_PREFIXES: usize = 200_000;
/// Words that say of a firm what kind it is and not which.
const FORMS: [&str; 41] = [
    "ab",
    "ag",
    "and",
    "as",
    "asa",
    "bv",
    "co",
    "coltd",
    "company",
    "corp",
    "corporate",
    "corporation",
    "electronic",
    "electronics",
    "entwicklung",
    "europe",
    "gmbh",
    "group",
    "holding",
    "inc",
    "incorporated",
    "international",
    "intl",
    "kg",
    "kgaa",
    "limited",
    "llc",
    "ltd",
    "mbh",
    "nv",
    "oy",
    "oyj",
    "plc",
    "private",
    "pte",
    "pty",
    "sa",
    "spa",
    "srl",
    "technologies",
    "technology",
];

/// Prefixes of Ethernet addresses and whose they are. The longest that fits counts: 24 bits (MA-L), 28 (MA-M), 36 (MA-S), or what rule files name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ouis {
    /// By length in bits, then by the prefix's bits.
    by_len: BTreeMap<u8, BTreeMap<u64, String>>,
    turned_away: usize,
}

/// Text that is no list of the IEEE's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no line assigns a prefix: a list of the IEEE has lines such as \"00-22-72   (hex)\\t\\tMAKER\" and \"002272     (base 16)\\t\\tMAKER\"; Debian's package ieee-data has oui.txt, mam.txt and oui36.txt"
)]
pub struct NotAList;

impl Ouis {
    /// Adds a list of the IEEE's in its text form, as Debian's package `ieee-data` has it: `oui.txt`, `mam.txt` or `oui36.txt`.
    /// Gives how many prefixes it assigns.
    ///
    /// # Errors
    /// When it has none.
    pub fn read(&mut self, text: &str) -> Result<usize, NotAList> {
        let mut read = 0;
        let mut head = None;
        for line in text.lines() {
            if let Some((prefix, _)) = line.split_once("(hex)") {
                head = hex(prefix).filter(|(_, bits)| *bits == 24);
                continue;
            }
            let Some((range, maker)) = line.split_once("(base 16)") else { continue };
            let (Some((high, _)), maker) = (head.take(), maker.trim()) else { continue };
            let prefix = match range.trim().split_once('-') {
                None => hex(range).filter(|(bits, _)| *bits == high).map(|_| (high, 24)),
                Some((first, last)) => of_range(high, first, last),
            };
            let Some((bits, len)) = prefix else { continue };
            read += 1;
            if !maker.eq_ignore_ascii_case("private") && !maker.is_empty() {
                self.insert(bits, len, maker);
            }
        }
        if read == 0 { Err(NotAList) } else { Ok(read) }
    }

    /// Says whose a prefix is; `bits` are its leading `len` bits.
    pub(super) fn insert(&mut self, bits: u64, len: u8, maker: &str) {
        if self.len() >= MAX_PREFIXES {
            self.turned_away += 1;
            return;
        }
        let maker = maker.chars().take(120).collect();
        self.by_len.entry(len).or_default().insert(bits, maker);
    }

    /// Whose the address is. Nobody's where it was assigned locally or names a group.
    #[must_use]
    pub fn maker(&self, mac: MacAddr) -> Option<&str> {
        self.longest(mac).map(|(_, maker)| maker)
    }

    /// The length in bits of the longest prefix that fits, and whose it is.
    pub(super) fn longest(&self, mac: MacAddr) -> Option<(u8, &str)> {
        // All zeros is what has none. Addresses of the IANA are no maker's: virtual routers and examples have them (RFC 9542).
        let nobodys = mac.0 == [0; 6] || mac.0.starts_with(&IANA);
        if mac.is_local() || mac.is_group() || nobodys {
            return None;
        }
        let all = mac.0.iter().fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
        self.by_len.iter().rev().find_map(|(len, prefixes)| {
            let maker = prefixes.get(&(all >> (48 - u32::from(*len))))?;
            Some((*len, maker.as_str()))
        })
    }

    /// How many prefixes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_len.values().map(BTreeMap::len).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many found no room.
    #[must_use]
    pub const fn turned_away(&self) -> usize {
        self.turned_away
    }
}

/// A prefix in hexadecimal digits, with or without signs between them: its bits, and how many.
pub(super) fn hex(text: &str) -> Option<(u64, u8)> {
    let digits: String = text.trim().chars().filter(|c| !matches!(c, ':' | '-')).collect();
    let fits = (6..=12).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let bits = u64::from_str_radix(&digits, 16).ok().filter(|_| fits)?;
    Some((bits, u8::try_from(digits.len() * 4).ok()?))
}

/// The prefix that a range within 24 bits is.
fn of_range(high: u64, first: &str, last: &str) -> Option<(u64, u8)> {
    let number = |text: &str| {
        let text = text.trim();
        (text.len() == 6).then(|| u64::from_str_radix(text, 16).ok()).flatten()
    };
    let (first, last) = (number(first)?, number(last)?);
    let free = (first ^ last).count_ones();
    let whole = last == first | ((1 << free) - 1) && first.trailing_zeros() >= free;
    let len = u8::try_from(48 - free).ok()?;
    (whole && (24..48).contains(&len)).then_some(((high << 24 | first) >> free, len))
}

/// A firm's name without what kind of firm it is: `Edimax Technology Co. Ltd.` is `Edimax`.
#[must_use]
pub fn short(maker: &str) -> String {
    let maker = maker.split(['(', ',', ';']).next().unwrap_or(maker);
    let words: Vec<&str> = maker.split_whitespace().collect();
    let form = |word: &&str| {
        let plain: String = word.chars().filter(|c| c.is_alphanumeric()).collect();
        plain.is_empty() || FORMS.binary_search(&plain.to_lowercase().as_str()).is_ok()
    };
    let kept = words.iter().rposition(|word| !form(word)).map_or(1, |last| last + 1);
    let name = words.get(..kept).unwrap_or(&words).join(" ");
    // What a list shouts is said.
    let shouts = name.len() > 5 && !name.contains(|c: char| c.is_lowercase() || c.is_numeric());
    if !shouts {
        return name;
    }
    let mut start = true;
    name.chars()
        .flat_map(|c| {
            let said = if start { vec![c] } else { c.to_lowercase().collect() };
            start = !c.is_alphanumeric();
            said
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "OUI/MA-L   Organization\n00-22-72   (hex)\t\tAmerican Micro-Fuel Device Corp.\n002272     (base 16)\t\tAmerican Micro-Fuel Device Corp.\n\t\t\t\t2181 Buchanan Loop\n\n\
        74-1A-E0   (hex)\t\tPrivate\n900000-9FFFFF     (base 16)\t\tPrivate\n\
        20-85-93   (hex)\t\tIOG Products LLC\nB00000-BFFFFF     (base 16)\t\tIOG Products LLC\n\
        70-B3-D5   (hex)\t\t2M Technology\n719000-719FFF     (base 16)\t\t2M Technology\n\
        70-B3-D5   (hex)\t\tIEEE Registration Authority\n70B3D5     (base 16)\t\tIEEE Registration Authority\n\
        00-00-01   (hex)\t\tBroken\n00000       (base 16)\t\tBroken\n00-00-02   (hex)\t\tCrooked\n100000-2FFFFE     (base 16)\t\tCrooked\n";

    fn maker(ouis: &Ouis, mac: &str) -> Option<String> {
        ouis.maker(mac.parse().unwrap()).map(str::to_owned)
    }

    #[test]
    fn the_longest_prefix_says_whose_an_address_is() {
        let mut ouis = Ouis::default();
        assert_eq!(ouis.read(LIST), Ok(5));
        let found = |mac| maker(&ouis, mac);
        assert_eq!(found("00:22:72:01:02:03").as_deref(), Some("American Micro-Fuel Device Corp."));
        assert_eq!(found("20:85:93:b0:00:01").as_deref(), Some("IOG Products LLC"));
        assert_eq!(found("20:85:93:c0:00:01"), None);
        assert_eq!(found("70:b3:d5:71:90:01").as_deref(), Some("2M Technology"));
        assert_eq!(found("70:b3:d5:71:a0:01").as_deref(), Some("IEEE Registration Authority"));
        assert_eq!(found("74:1a:e0:90:00:01"), None, "private is nobody's name");
        assert_eq!(found("00:00:01:00:00:01"), None);
        assert_eq!(found("00:00:02:10:00:01"), None);
    }

    #[test]
    fn addresses_that_no_maker_assigned_have_none() {
        let mut ouis = Ouis::default();
        ouis.insert(0x02_22_72, 24, "Nobody");
        ouis.insert(0x01_22_72, 24, "Nobody");
        assert_eq!(maker(&ouis, "02:22:72:01:02:03"), None);
        assert_eq!(maker(&ouis, "01:22:72:01:02:03"), None);
        ouis.insert(0, 24, "Xerox");
        assert_eq!(maker(&ouis, "00:00:00:00:00:00"), None);
        assert_eq!(maker(&ouis, "00:00:00:00:00:01").as_deref(), Some("Xerox"));
        ouis.insert(0x00_00_5e, 24, "ICANN, IANA Department");
        assert_eq!(maker(&ouis, "00:00:5e:00:53:01"), None);
    }

    #[test]
    fn what_is_no_list_says_so() {
        for text in [
            "",
            "Registry,Assignment\nMA-L,002272,American",
            "(hex)\n(base 16)",
            "002272 (base 16) x",
        ] {
            assert_eq!(Ouis::default().read(text), Err(NotAList), "{text:?}");
        }
    }

    #[test]
    fn firms_are_called_by_their_names() {
        assert!(FORMS.is_sorted());
        for (long, name) in [
            ("Edimax Technology Co. Ltd.", "Edimax"),
            ("TP-LINK TECHNOLOGIES CO.,LTD.", "Tp-Link"),
            ("D-Link International", "D-Link"),
            ("BELKIN INTERNATIONAL INC.", "Belkin"),
            (
                "Philips Medical Systems - Cardiac and Monitoring Systems (CM",
                "Philips Medical Systems - Cardiac and Monitoring Systems",
            ),
            ("IGT", "IGT"),
            ("Technology Co", "Technology"),
            ("B.Braun Melsungen AG", "B.Braun Melsungen"),
            ("", ""),
        ] {
            assert_eq!(short(long), name);
        }
    }
}
