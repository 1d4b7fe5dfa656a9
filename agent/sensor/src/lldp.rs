//! LLDP (IEEE 802.1AB): name and description, a MUD URL (RFC 8520), and what LLDP-MED (ANSI/TIA-1057) has of an inventory. Serial
//! numbers and asset tags are passed by.

use anteroom_proto::inventory::HintKind;

use crate::cursor::Cursor;
use crate::sight::{Sights, Station};

/// Most units of a frame that are looked at.
const MOST_UNITS: usize = 64;
/// Types of units.
const NAME: u16 = 5;
const DESCRIPTION: u16 = 6;
const OF_AN_ORGANISATION: u16 = 127;

/// The IETF's number, with the type of a MUD URL, and that of LLDP-MED.
const MUD: [u8; 4] = [0x00, 0x00, 0x5e, 0x01];
const MED: [u8; 3] = [0x00, 0x12, 0xbb];
/// Types of LLDP-MED's inventory.
const HARDWARE: u8 = 5;
const SOFTWARE: u8 = 7;
const MAKER: u8 = 9;
const MODEL: u8 = 10;

pub(crate) fn read(from: Station, units: &[u8], sights: &mut Sights) {
    let mut units = Cursor(units);
    let (mut revisions, mut product) = (Vec::new(), Vec::new());
    for _ in 0..MOST_UNITS {
        let Some(head) = units.be16() else { break };
        let Some(value) = units.take(usize::from(head & 0x1ff)) else { break };
        match head >> 9 {
            0 => break,
            NAME => sights.tell(from, HintKind::LldpName, value),
            DESCRIPTION => sights.tell(from, HintKind::LldpDescription, value),
            OF_AN_ORGANISATION => {
                if let Some(url) = value.strip_prefix(&MUD) {
                    sights.tell(from, HintKind::LldpMudUrl, url);
                }
                match value.strip_prefix(&MED).and_then(<[u8]>::split_first) {
                    Some((&(HARDWARE..=SOFTWARE), text)) => revisions.push(text),
                    Some((&(MAKER | MODEL), text)) => product.push(text),
                    _ => {}
                }
            }
            _ => {}
        }
    }
    sights.tell(from, HintKind::LldpModel, product.join(&b' '));
    sights.tell(from, HintKind::LldpRevision, revisions.join(&b' '));
}

#[cfg(test)]
mod tests {
    use anteroom_proto::mac::MacAddr;

    use super::*;

    fn unit(kind: u8, value: &[u8]) -> Vec<u8> {
        let length = u8::try_from(value.len()).unwrap();
        [&[kind << 1, length][..], value].concat()
    }

    fn of_med(kind: u8, text: &[u8]) -> Vec<u8> {
        unit(127, &[&MED[..], &[kind], text].concat())
    }

    #[test]
    fn an_inventory_names_maker_and_model_and_keeps_its_serial_number() {
        let frame = [
            unit(1, &[4, 2, 0, 0, 0, 0, 1]),
            unit(5, b"infusion-7"),
            of_med(5, b"HW 3"),
            of_med(6, b"FW 4.1"),
            of_med(8, b"SERIAL-4711"),
            of_med(9, b"Acme"),
            of_med(10, b"Pump 9"),
            of_med(11, b"ASSET-ERIKA"),
            unit(0, &[]),
            of_med(10, b"behind the end"),
        ]
        .concat();
        let from = Station { mac: MacAddr([2, 0, 0, 0, 0, 1]), vlan: None };
        let told = |frame: &[u8]| {
            let mut sights = Sights::default();
            sights.begin();
            read(from, frame, &mut sights);
            sights.drain().map(|sight| (sight.kind, sight.value)).collect::<Vec<_>>()
        };
        let wanted = [
            (HintKind::LldpName, "infusion-7"),
            (HintKind::LldpModel, "Acme Pump 9"),
            (HintKind::LldpRevision, "HW 3 FW 4.1"),
        ];
        assert_eq!(told(&frame), wanted.map(|(kind, value)| (kind, value.to_owned())));
        for end in 0..frame.len() {
            told(&frame[..end]);
        }
    }
}
